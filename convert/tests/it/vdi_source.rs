//! From VDI images that QEMU made, and from such that were made to do harm.

use anyhow::{Result, ensure};
use lithos_convert::{ErrorKind, Format, Target, inspect};

use crate::support::{Bench, HostileCase, hold_rules, source};

/// Makes `disk.vdi` with patterns and holes in it.
fn bench_with(options: &str, size: &str, commands: &[&str]) -> Result<Bench> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "vdi", "-o", options, "disk.vdi", size])?;
    bench.qemu_io_as("vdi", "disk.vdi", commands)?;
    Ok(bench)
}

#[test]
fn fixed_and_dynamic() -> Result<()> {
    for (options, variant) in [("static=off", "dynamic"), ("static=on", "fixed")] {
        for size in ["5M", "5243392", "4195328"] {
            let writes = ["write -P 3 4000k 90k", "write -P 1 0 512", "write -P 2 2M 100k"];
            let bench = bench_with(options, size, &writes)?;
            bench.judge("disk.vdi", "vdi")?;
            let inspection = inspect(&*source(&bench.path("disk.vdi"))?)?;
            ensure!(inspection.format == Format::Vdi && inspection.variant == Some(variant));
        }
    }
    Ok(())
}

#[test]
fn large_disks_are_sparse() -> Result<()> {
    let bench = bench_with("static=off", "9G", &["write -P 5 8700M 64k", "write -P 6 1M 3M"])?;
    let plan = bench.convert("disk.vdi", "out.vdi", Target::VDI)?;
    ensure!(plan.totals().copied == 4 << 20, "{:?}", plan.totals());
    bench.check("out.vdi", Target::VDI)?;
    bench.qemu_img(&["compare", "disk.vdi", "out.vdi"])?;
    Ok(())
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

const CASES: &[HostileCase] = &[
    (
        "version is known",
        |b| put_u32(b, 68, 0x1_0000),
        ErrorKind::Unsupported,
        "at byte 68: version 0x10000",
    ),
    (
        "sectors are 512 bytes",
        |b| put_u32(b, 360, 4096),
        ErrorKind::Unsupported,
        "at byte 360: sector size 0x1000",
    ),
    (
        "blocks are 1 MiB",
        |b| put_u32(b, 376, 2 << 20),
        ErrorKind::Unsupported,
        "at byte 376: block size 0x200000",
    ),
    (
        "blocks have nothing before them",
        |b| put_u32(b, 380, 512),
        ErrorKind::Unsupported,
        "at byte 380: block extra data 0x200",
    ),
    (
        "undo images need another file",
        |b| put_u32(b, 76, 3),
        ErrorKind::ReferenceDenied,
        "at byte 76: the image is an undo image",
    ),
    (
        "differencing images need another file",
        |b| put_u32(b, 76, 4),
        ErrorKind::ReferenceDenied,
        "at byte 76: the image is differencing",
    ),
    (
        "image type is known",
        |b| put_u32(b, 76, 5),
        ErrorKind::Unsupported,
        "at byte 76: image type 5",
    ),
    (
        "links are refused",
        |b| b[430] = 1,
        ErrorKind::ReferenceDenied,
        "at byte 424: the image is linked to another one",
    ),
    (
        "parents are refused",
        |b| b[455] = 1,
        ErrorKind::ReferenceDenied,
        "at byte 440: the image has a parent",
    ),
    (
        "disks are bounded",
        |b| b[368..376].fill(0xff),
        ErrorKind::TooLarge,
        "at byte 368: virtual size",
    ),
    (
        "there is an entry for each block",
        |b| put_u32(b, 384, 2),
        ErrorKind::Corrupt,
        "at byte 384: 2 blocks in image have no room for disk size 3145728",
    ),
    (
        "map is in the file",
        |b| put_u32(b, 340, u32::MAX - 511),
        ErrorKind::Corrupt,
        "at byte 340: block map of 12 bytes",
    ),
    (
        "map is bounded by the file",
        |b| {
            b[368..376].copy_from_slice(&(64_u64 << 40).to_le_bytes());
            put_u32(b, 384, u32::MAX);
        },
        ErrorKind::Corrupt,
        "at byte 340: block map of 268435456 bytes",
    ),
    (
        "map is aligned",
        |b| put_u32(b, 340, 513),
        ErrorKind::Corrupt,
        "at byte 340: block map offset 513",
    ),
    (
        "map is not the header",
        |b| put_u32(b, 340, 0),
        ErrorKind::Corrupt,
        "at byte 340: block map at 0 overlaps the header",
    ),
    (
        "data is aligned",
        |b| put_u32(b, 344, 1025),
        ErrorKind::Corrupt,
        "at byte 344: data offset 1025",
    ),
    (
        "data is not the map",
        |b| put_u32(b, 344, 512),
        ErrorKind::Corrupt,
        "at byte 344: data at 512 overlaps the block map",
    ),
    (
        "block is in the file",
        |b| put_u32(b, 516, 2),
        ErrorKind::Corrupt,
        "at byte 516: block of 1048576 bytes at 2098176 reaches beyond",
    ),
    (
        "block index does not overflow",
        |b| put_u32(b, 516, u32::MAX - 2),
        ErrorKind::Corrupt,
        "at byte 516: block of 1048576 bytes",
    ),
    (
        "blocks are used once",
        |b| put_u32(b, 516, 0),
        ErrorKind::Corrupt,
        "at byte 516: block 0 of the file is used twice",
    ),
    (
        "block is not the map",
        |b| {
            b.extend_from_slice(&[0; 512]);
            b.copy_within(512..524, 2048);
            put_u32(b, 340, 2048);
        },
        ErrorKind::Corrupt,
        "at byte 2048: block at 1024 overlaps the block map",
    ),
    (
        "a cut-off file is noticed",
        |b| b.truncate(b.len() - 1),
        ErrorKind::Corrupt,
        "reaches beyond the end of the file",
    ),
    (
        "a cut-off header is noticed",
        |b| b.truncate(300),
        ErrorKind::Corrupt,
        "at byte 300: the file ends inside of the header",
    ),
];

#[test]
fn each_rule_is_held_with_its_reason() -> Result<()> {
    let bench = bench_with("static=off", "3M", &["write -P 1 0 1k", "write -P 2 2M 1k"])?;
    hold_rules(Format::Vdi, &std::fs::read(bench.path("disk.vdi"))?, CASES)
}

#[test]
fn discarded_blocks_are_zeros() -> Result<()> {
    let bench = bench_with("static=off", "3M", &["write -P 1 0 1k", "write -P 2 2M 1k"])?;
    let mut bytes = std::fs::read(bench.path("disk.vdi"))?;
    put_u32(&mut bytes, 512, u32::MAX - 1);
    bench.write("disk.vdi", &bytes)?;
    let plan = bench.convert("disk.vdi", "out.raw", Target::RAW)?;
    ensure!(plan.totals().copied == 1 << 20 && plan.totals().zero == 2 << 20);
    Ok(())
}
