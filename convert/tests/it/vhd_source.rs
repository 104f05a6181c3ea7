//! From VHD images that QEMU made, and from such that were made to do harm.

use anyhow::{Result, ensure};
use lithos_convert::{ErrorKind, Format, Guest, ReadAt, Target, inspect};

use crate::support::{Bench, HostileCase, hold_rules, source};

/// Makes `disk.vhd` with patterns and holes in it.
fn bench_with(options: &str, size: &str, commands: &[&str]) -> Result<Bench> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "vpc", "-o", options, "disk.vhd", size])?;
    bench.qemu_io_as("vpc", "disk.vhd", commands)?;
    Ok(bench)
}

const PATTERNS: &[&str] = &[
    "write -P 1 0 512",
    "write -P 2 2M 100k",
    "write -P 3 5000k 1k",
    "write -P 4 4190208 8k",
    "write -z 2100k 4k",
];

#[test]
fn fixed_and_dynamic_by_size_and_by_geometry() -> Result<()> {
    for options in [
        "subformat=dynamic",
        "subformat=dynamic,force_size=on",
        "subformat=fixed",
        "subformat=fixed,force_size=on",
    ] {
        for size in ["6M", "6292992", "7M"] {
            let bench = bench_with(options, size, PATTERNS)?;
            bench.judge("disk.vhd", "vpc")?;
            let said = bench.qemu_img(&["info", "-f", "vpc", "--output=json", "disk.vhd"])?;
            let info: serde_json::Value = serde_json::from_str(&said)?;
            let inspection = inspect(&*source(&bench.path("disk.vhd"))?)?;
            ensure!(
                inspection.virtual_size == info["virtual-size"].as_u64(),
                "{inspection:?}"
            );
            let variant = options.split([',', '=']).nth(1);
            ensure!(inspection.format == Format::Vhd && inspection.variant == variant);
        }
    }
    Ok(())
}

#[test]
fn empty_disks_and_disks_without_data() -> Result<()> {
    let bench = bench_with("subformat=dynamic,force_size=on", "3M", &[])?;
    bench.judge("disk.vhd", "vpc")
}

#[test]
fn large_disks_are_sparse() -> Result<()> {
    for (size, place) in [("9G", "8700M"), ("2040G", "2000G")] {
        let writes = [format!("write -P 5 {place} 64k"), "write -P 6 1M 3M".to_owned()];
        let writes: Vec<&str> = writes.iter().map(String::as_str).collect();
        let bench = bench_with("subformat=dynamic,force_size=on", size, &writes)?;
        let plan = bench.convert("disk.vhd", "out.vhd", Target::VHD)?;
        ensure!(plan.totals().copied == 6 << 20, "{:?}", plan.totals());
        bench.qemu_img(&["compare", "-f", "vpc", "-F", "vpc", "disk.vhd", "out.vhd"])?;
        let fixed = bench.convert("disk.vhd", "out.fixed.vhd", Target::VHD_FIXED)?;
        ensure!(fixed.size() == fixed.virtual_size() + 512);
        let image = bench.open("out.fixed.vhd")?;
        let guest = Guest::new(source(&bench.path("out.fixed.vhd"))?, image);
        let mut sector = [0; 512];
        guest.read_exact_at(&mut sector, 2 << 20)?;
        ensure!(sector == [6; 512]);
    }
    Ok(())
}

#[test]
fn a_disk_beyond_2040_gib_is_refused_as_a_target() -> Result<()> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "qcow2", "disk.qcow2", "2041G"])?;
    for target in [Target::VHD, Target::VHD_FIXED] {
        let error = bench.convert("disk.qcow2", "out", target).expect_err("too large");
        let error = error.downcast::<lithos_convert::Error>()?;
        ensure!(error.kind() == ErrorKind::TooLarge, "{error}");
        ensure!(error.to_string() == "vhd: too large: virtual size 2191507062784 is more than 2190433320960");
    }
    Ok(())
}

#[test]
fn our_headers_are_those_of_qemu() -> Result<()> {
    for size in ["1M", "100M", "9G", "130G", "600G"] {
        let bench = bench_with("subformat=dynamic,force_size=on", size, &[])?;
        bench.convert("disk.vhd", "out.vhd", Target::VHD)?;
        let theirs = std::fs::read(bench.path("disk.vhd"))?;
        let ours = std::fs::read(bench.path("out.vhd"))?;
        // All but time stamp, checksum and identifier.
        for range in [0..24, 28..64, 84..1536] {
            ensure!(ours[range.clone()] == theirs[range.clone()], "{size} {range:?}");
        }
    }
    Ok(())
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_be_bytes());
}

/// Makes the checksum at `field` right again.
fn sum(bytes: &mut [u8], field: usize) {
    bytes[field..field + 4].fill(0);
    let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    put_u32(bytes, field, sum);
}

/// Changes both footers.
fn footer(bytes: &mut [u8], change: impl FnOnce(&mut [u8])) {
    change(&mut bytes[..512]);
    sum(&mut bytes[..512], 64);
    let end = bytes.len() - 512;
    bytes.copy_within(0..512, end);
}

fn header(bytes: &mut [u8], change: impl FnOnce(&mut [u8])) {
    change(&mut bytes[512..1536]);
    sum(&mut bytes[512..1536], 36);
}

const DYNAMIC_CASES: &[HostileCase] = &[
    (
        "footer checksum holds",
        |b| b[50] ^= 1,
        ErrorKind::Corrupt,
        "at byte 64: footer checksum",
    ),
    (
        "footers are alike",
        |b| {
            let end = b.len() - 512;
            b[end + 70] ^= 1;
        },
        ErrorKind::Corrupt,
        "the footer is unlike its copy",
    ),
    (
        "version is known",
        |b| footer(b, |f| f[13] = 2),
        ErrorKind::Unsupported,
        "at byte 12: file format version 0x00020000",
    ),
    (
        "disk type is known",
        |b| footer(b, |f| f[63] = 6),
        ErrorKind::Unsupported,
        "at byte 60: disk type 6",
    ),
    (
        "a fixed disk has no header",
        |b| footer(b, |f| f[63] = 2),
        ErrorKind::Corrupt,
        "the disk is fixed, but there is a footer at the start",
    ),
    (
        "parents are never opened",
        |b| {
            footer(b, |f| f[63] = 4);
            header(b, |h| h[64..72].copy_from_slice(b"\0a\0.\0v\0h"));
        },
        ErrorKind::ReferenceDenied,
        "needs its parent \"a.vh\"",
    ),
    (
        "the copy of the footer is there",
        |b| b[0] = 0,
        ErrorKind::Corrupt,
        "the copy of the footer at the start of the file is missing",
    ),
    (
        "disks are bounded",
        |b| footer(b, |f| put_u64(f, 48, u64::MAX)),
        ErrorKind::TooLarge,
        "at byte 48: virtual size",
    ),
    (
        "header is in the file",
        |b| footer(b, |f| put_u64(f, 16, u64::MAX - 3)),
        ErrorKind::Corrupt,
        "at byte 16: dynamic header of 1024 bytes",
    ),
    (
        "header is not the footer",
        |b| footer(b, |f| put_u64(f, 16, 0)),
        ErrorKind::Corrupt,
        "dynamic header at 0 overlaps the footer",
    ),
    (
        "header has its cookie",
        |b| header(b, |h| h[0] = 0),
        ErrorKind::Corrupt,
        "at byte 512: the cookie of the dynamic header",
    ),
    (
        "header checksum holds",
        |b| b[512 + 600] ^= 1,
        ErrorKind::Corrupt,
        "at byte 548: dynamic header checksum",
    ),
    (
        "header version is known",
        |b| header(b, |h| h[25] = 2),
        ErrorKind::Unsupported,
        "at byte 536: dynamic header version 0x00020000",
    ),
    (
        "block size is a power of 2",
        |b| header(b, |h| put_u32(h, 32, 3 << 20)),
        ErrorKind::Corrupt,
        "at byte 544: block size 3145728",
    ),
    (
        "block size is a sector at least",
        |b| header(b, |h| put_u32(h, 32, 256)),
        ErrorKind::Corrupt,
        "at byte 544: block size 256",
    ),
    (
        "there is an entry for each block",
        |b| header(b, |h| put_u32(h, 28, 2)),
        ErrorKind::Corrupt,
        "at byte 540: max table entries 2 are too few",
    ),
    (
        "table is in the file",
        |b| header(b, |h| put_u64(h, 16, 1 << 60)),
        ErrorKind::Corrupt,
        "at byte 528: block allocation table of",
    ),
    (
        "table is bounded by the file",
        |b| {
            footer(b, |f| put_u64(f, 48, 2 << 40 >> 4));
            header(b, |h| {
                put_u32(h, 28, u32::MAX);
                put_u32(h, 32, 64 << 10);
            });
        },
        ErrorKind::Corrupt,
        "block allocation table of 8388608 bytes at 1536 reaches beyond",
    ),
    (
        "table is bounded",
        |b| {
            footer(b, |f| put_u64(f, 48, 2000 << 30));
            header(b, |h| {
                put_u32(h, 28, u32::MAX);
                put_u32(h, 32, 512);
            });
        },
        ErrorKind::TooLarge,
        "block allocation table of 16777216000 bytes is more than 16777216",
    ),
    (
        "table is not the header",
        |b| header(b, |h| put_u64(h, 16, 1024)),
        ErrorKind::Corrupt,
        "block allocation table at 1024 overlaps the dynamic header",
    ),
    (
        "block is in the file",
        |b| put_u32(b, 1536, 0x7fff_ffff),
        ErrorKind::Corrupt,
        "at byte 1536: block of 2097664 bytes",
    ),
    (
        "block is not the table",
        |b| put_u32(b, 1536, 3),
        ErrorKind::Corrupt,
        "block at 1536 overlaps the block allocation table",
    ),
    (
        "block is not the footer",
        |b| {
            let end = u32::try_from(b.len() / 512).expect("small") - 2_097_664 / 512;
            put_u32(b, 1536, end);
            put_u32(b, 1540, u32::MAX);
            put_u32(b, 1544, u32::MAX);
        },
        ErrorKind::Corrupt,
        "overlaps the footer",
    ),
    (
        "blocks are used once",
        |b| b.copy_within(1536..1540, 1540),
        ErrorKind::Corrupt,
        "at byte 1536: the blocks at sectors 4 and 4 overlap",
    ),
    (
        "blocks do not overlap",
        |b| put_u32(b, 1540, 5),
        ErrorKind::Corrupt,
        "the blocks at sectors 4 and 5 overlap",
    ),
    (
        "a cut-off file is noticed",
        |b| b.truncate(b.len() - 1024),
        ErrorKind::Corrupt,
        "reaches beyond the end of the file",
    ),
    (
        "a cut-off header is noticed",
        |b| b.truncate(1000),
        ErrorKind::Corrupt,
        "at byte 16: dynamic header of 1024 bytes",
    ),
    (
        "a cut-off footer is noticed",
        |b| b.truncate(200),
        ErrorKind::NotThisFormat,
        "there is no footer",
    ),
];

const FIXED_CASES: &[HostileCase] = &[
    (
        "footer checksum holds",
        |b| {
            let end = b.len() - 512;
            b[end + 50] ^= 1;
        },
        ErrorKind::Corrupt,
        "at byte 3145792: footer checksum",
    ),
    (
        "all of the disk is in the file",
        |b| {
            b.drain(..512);
        },
        ErrorKind::Corrupt,
        "at byte 3145264: the disk of 3145728 bytes",
    ),
    (
        "disks are bounded",
        |b| {
            let end = b.len() - 512;
            put_u64(&mut b[end..], 48, 3 << 40);
            sum(&mut b[end..], 64);
        },
        ErrorKind::TooLarge,
        "at byte 3145776: virtual size 3298534883328",
    ),
];

#[test]
fn each_rule_is_held_with_its_reason() -> Result<()> {
    let bench = bench_with(
        "subformat=dynamic,force_size=on",
        "6M",
        &["write -P 1 0 1k", "write -P 2 2M 1k", "write -P 3 4M 1k"],
    )?;
    hold_rules(Format::Vhd, &std::fs::read(bench.path("disk.vhd"))?, DYNAMIC_CASES)?;
    let bench = bench_with("subformat=fixed,force_size=on", "3M", &["write -P 1 0 1k"])?;
    hold_rules(Format::Vhd, &std::fs::read(bench.path("disk.vhd"))?, FIXED_CASES)
}

#[test]
fn a_footer_lost_at_the_end_is_not_missed() -> Result<()> {
    let bench = bench_with("subformat=dynamic,force_size=on", "3M", &["write -P 1 0 1k"])?;
    let bytes = std::fs::read(bench.path("disk.vhd"))?;
    bench.write("cut.vhd", &bytes[..bytes.len() - 512])?;
    bench.convert("disk.vhd", "disk.raw", Target::RAW)?;
    bench.convert("cut.vhd", "cut.raw", Target::RAW)?;
    ensure!(std::fs::read(bench.path("disk.raw"))? == std::fs::read(bench.path("cut.raw"))?);
    Ok(())
}

#[test]
fn creators_are_read_as_qemu_reads_them() -> Result<()> {
    for creator in ["win ", "qem2", "d2v ", "tap\0", "CTXS", "qemu", "vpc ", "vs  ", "vbox"] {
        let bench = bench_with("subformat=dynamic,force_size=on", "10M", &[])?;
        let mut bytes = std::fs::read(bench.path("disk.vhd"))?;
        footer(&mut bytes, |f| f[28..32].copy_from_slice(creator.as_bytes()));
        bench.write("disk.vhd", &bytes)?;
        let said = bench.qemu_img(&["info", "-f", "vpc", "--output=json", "disk.vhd"])?;
        let info: serde_json::Value = serde_json::from_str(&said)?;
        let ours = bench.open("disk.vhd")?.virtual_size();
        ensure!(
            Some(ours) == info["virtual-size"].as_u64(),
            "{creator:?}: {ours}, {said}"
        );
    }
    Ok(())
}
