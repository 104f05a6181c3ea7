//! From VHDX images that QEMU made, and from such that were made to do harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crc_fast::CrcAlgorithm::Crc32Iscsi;
use lithos_convert::{ErrorKind, Format, Guest, ReadAt, Target, inspect, open, plan};

use crate::support::{Bench, Hollow, HostileCase, hold_rules, source, start_of};

/// Makes `disk.vhdx` with patterns and holes in it.
fn bench_with(options: &str, size: &str, commands: &[&str]) -> Result<Bench> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "vhdx", "-o", options, "disk.vhdx", size])?;
    bench.qemu_io_as("vhdx", "disk.vhdx", commands)?;
    Ok(bench)
}

const PATTERNS: &[&str] = &[
    "write -P 3 4000k 90k",
    "write -P 1 0 512",
    "write -P 2 2M 100k",
    "write -z 2100k 4k",
];

#[test]
fn fixed_and_dynamic() -> Result<()> {
    for (options, variant) in [
        ("subformat=dynamic,block_size=1M", "dynamic"),
        ("subformat=dynamic,block_size=1M,block_state_zero=off", "dynamic"),
        ("subformat=dynamic,block_size=8M,log_size=2M", "dynamic"),
        ("subformat=fixed,block_size=1M", "fixed"),
        ("subformat=fixed,block_size=16M", "fixed"),
    ] {
        for size in ["5M", "5243392"] {
            let bench = bench_with(options, size, PATTERNS)?;
            bench.judge("disk.vhdx", "vhdx").context(options)?;
            let inspection = inspect(&*source(&bench.path("disk.vhdx"))?)?;
            ensure!(inspection.format == Format::Vhdx && inspection.variant == Some(variant));
            ensure!(inspection.warnings.is_empty(), "{:?}", inspection.warnings);
        }
    }
    Ok(())
}

#[test]
fn large_disks_are_sparse_and_have_sector_bitmaps_between() -> Result<()> {
    // With blocks of 1 MiB a chunk is 4 GiB.
    for (options, size) in [("block_size=1M", "9G"), ("block_size=32M", "20G")] {
        let writes = ["write -P 5 8700M 64k", "write -P 6 1M 3M", "write -P 7 4095M 2M"];
        let bench = bench_with(options, size, &writes)?;
        let plan = bench.convert("disk.vhdx", "out.vhdx", Target::VHDX)?;
        bench.check("out.vhdx", Target::VHDX)?;
        bench.qemu_img(&["compare", "disk.vhdx", "out.vhdx"])?;
        if options == "block_size=1M" {
            ensure!(plan.totals().copied == 6 << 20, "{:?}", plan.totals());
        }
    }
    Ok(())
}

#[test]
fn the_largest_disk_has_the_largest_blocks() -> Result<()> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "qcow2", "disk.qcow2", "64T"])?;
    bench.qemu_io("disk.qcow2", &["write -P 5 60T 64k", "write -P 6 70368744112128 64k"])?;
    let plan = bench.convert("disk.qcow2", "out.vhdx", Target::VHDX)?;
    ensure!(plan.size() == (6 << 20) + (512 << 20), "{}", plan.size());
    bench.check("out.vhdx", Target::VHDX)?;
    let guest = Guest::new(source(&bench.path("out.vhdx"))?, bench.open("out.vhdx")?);
    let mut sector = [0; 512];
    guest.read_exact_at(&mut sector, 60 << 40)?;
    ensure!(sector == [5; 512]);
    bench.qemu_io_as(
        "vhdx",
        "out.vhdx",
        &["read -P 6 70368744112128 64k", "read -P 0 1T 64k"],
    )
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

fn le_u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

/// Makes the checksum of a structure right again.
fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = u32::try_from(crc_fast::checksum(Crc32Iscsi, bytes)).expect("32 bits");
    put_u32(bytes, 4, sum);
}

/// Changes both headers.
fn headers(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    for start in [0x10000, 0x20000] {
        let header = &mut bytes[start..start + 4096];
        change(header);
        seal(header);
    }
}

/// Changes both region tables.
fn regions(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    for start in [0x30000, 0x40000] {
        let table = &mut bytes[start..start + 0x10000];
        change(table);
        seal(table);
    }
}

/// Where QEMU puts things.
const BAT: usize = 2 << 20;
const METADATA: usize = 3 << 20;
const ITEMS: usize = METADATA + 0x10000;

const CASES: &[HostileCase] = &[
    (
        "headers have their signature",
        |b| headers(b, |h| h[0] = 0),
        ErrorKind::Corrupt,
        "at byte 65536: the signature of the header",
    ),
    (
        "header checksums hold",
        |b| {
            b[0x10fff] ^= 1;
            b[0x20fff] ^= 1;
        },
        ErrorKind::Corrupt,
        "at byte 65540: header checksum",
    ),
    (
        "version is known",
        |b| headers(b, |h| h[66] = 2),
        ErrorKind::Unsupported,
        "at byte 65602: version 2",
    ),
    (
        "headers of one number are the same",
        |b| {
            headers(b, |h| {
                h[8..16].fill(1);
                h[16] = h[4];
            });
        },
        ErrorKind::Corrupt,
        "both headers have sequence number 72340172838076673, but differ",
    ),
    (
        "log version is known",
        |b| headers(b, |h| h[64] = 1),
        ErrorKind::Unsupported,
        ": log version 1",
    ),
    (
        "log length is in MiB",
        |b| headers(b, |h| put_u32(h, 68, 4096)),
        ErrorKind::Corrupt,
        "log length 4096",
    ),
    (
        "log is aligned",
        |b| headers(b, |h| put_u64(h, 72, (1 << 20) + 4096)),
        ErrorKind::Corrupt,
        "log offset 1052672",
    ),
    (
        "log is not the header",
        |b| headers(b, |h| put_u64(h, 72, 0)),
        ErrorKind::Corrupt,
        "log at 0 overlaps the header section",
    ),
    (
        "log is in the file",
        |b| headers(b, |h| put_u64(h, 72, 1 << 60)),
        ErrorKind::Corrupt,
        ": log of 1048576 bytes",
    ),
    (
        "a log in use is bounded",
        |b| {
            headers(b, |h| {
                h[48] = 1;
                put_u32(h, 68, 5 << 20);
            });
        },
        ErrorKind::TooLarge,
        "the length of a log to be replayed 5242880 is more than 4194304",
    ),
    (
        "a log in use has entries",
        |b| headers(b, |h| h[48] = 1),
        ErrorKind::Corrupt,
        "at byte 1048576: the log is in use, but has no valid sequence",
    ),
    (
        "region tables have their signature",
        |b| regions(b, |t| t[0] = 0),
        ErrorKind::Corrupt,
        "at byte 196608: the signature of the region table",
    ),
    (
        "region table checksums hold",
        |b| {
            b[0x3ffff] ^= 1;
            b[0x4ffff] ^= 1;
        },
        ErrorKind::Corrupt,
        "at byte 196612: region table checksum",
    ),
    (
        "region tables are bounded",
        |b| regions(b, |t| put_u32(t, 8, 2048)),
        ErrorKind::TooLarge,
        "at byte 196616: entry count 2048 is more than 2047",
    ),
    (
        "required regions are known",
        |b| {
            regions(b, |t| {
                t[16] = 0;
                t[44] = 1;
            });
        },
        ErrorKind::Unsupported,
        "at byte 196624: the required region 2DC27700-F623-4200-9D64-115E9BFD4A08 is not known",
    ),
    (
        "there is a BAT",
        |b| {
            regions(b, |t| t[16] = 0);
        },
        ErrorKind::Corrupt,
        "there is no BAT region",
    ),
    (
        "there is but one BAT",
        |b| regions(b, |t| t.copy_within(16..32, 48)),
        ErrorKind::Corrupt,
        "at byte 196656: there are two of the BAT region",
    ),
    (
        "regions are aligned",
        |b| regions(b, |t| put_u64(t, 32, (2 << 20) + 65536)),
        ErrorKind::Corrupt,
        "at byte 196624: BAT region offset 2162688",
    ),
    (
        "regions are in MiB",
        |b| regions(b, |t| put_u32(t, 40, 65536)),
        ErrorKind::Corrupt,
        "at byte 196624: BAT region length 65536",
    ),
    (
        "regions are in the file",
        |b| regions(b, |t| put_u64(t, 32, 1 << 50)),
        ErrorKind::Corrupt,
        "at byte 196624: BAT region of 1048576 bytes",
    ),
    (
        "regions are not the log",
        |b| regions(b, |t| put_u64(t, 32, 1 << 20)),
        ErrorKind::Corrupt,
        "at byte 196624: BAT region at 1048576 overlaps the log",
    ),
    (
        "regions do not overlap",
        |b| regions(b, |t| put_u64(t, 64, 2 << 20)),
        ErrorKind::Corrupt,
        "at byte 196656: metadata region at 2097152 overlaps the BAT region",
    ),
    (
        "the metadata table has its signature",
        |b| b[METADATA] = 0,
        ErrorKind::Corrupt,
        "at byte 3145728: the signature of the metadata table",
    ),
    (
        "the metadata table is bounded",
        |b| b[METADATA + 11] = 0xff,
        ErrorKind::TooLarge,
        "at byte 3145738: entry count 65285 is more than 2047",
    ),
    (
        "required metadata is known",
        |b| b[METADATA + 128] = 0,
        ErrorKind::Unsupported,
        "at byte 3145856: the required metadata item 8141BF00-A96F-4709-BA47-F233A8FAAB5F is not known",
    ),
    (
        "metadata is there",
        |b| {
            b[METADATA + 64] = 0;
            b[METADATA + 88] = 0;
        },
        ErrorKind::Corrupt,
        "the metadata item virtual disk size is missing",
    ),
    (
        "metadata is there once",
        |b| b.copy_within(METADATA + 64..METADATA + 80, METADATA + 128),
        ErrorKind::Corrupt,
        "at byte 3145856: the metadata item 2FA54224-CD1B-4876-B211-5DBED83BF4B8 is there twice",
    ),
    (
        "metadata has its length",
        |b| put_u32(b, METADATA + 64 + 20, 4),
        ErrorKind::Corrupt,
        "at byte 3145792: the metadata item virtual disk size has 4 bytes instead of 8",
    ),
    (
        "metadata is in its region",
        |b| put_u32(b, METADATA + 64 + 16, (1 << 20) - 4),
        ErrorKind::Corrupt,
        "at byte 3145792: the metadata item virtual disk size at 1048572 reaches beyond its region",
    ),
    (
        "metadata is not the table",
        |b| put_u32(b, METADATA + 64 + 16, 65532),
        ErrorKind::Corrupt,
        "at byte 3145792: virtual disk size at 65532 overlaps the metadata table",
    ),
    (
        "parents are never opened",
        |b| b[ITEMS + 4] = 2,
        ErrorKind::ReferenceDenied,
        "at byte 3145760: the disk is differencing and needs its parent (file parameters)",
    ),
    (
        "parent locators are refused",
        |b| {
            let parent = [
                0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c,
            ];
            b[METADATA + 10] = 6;
            b[METADATA + 192..METADATA + 208].copy_from_slice(&parent);
        },
        ErrorKind::ReferenceDenied,
        "at byte 3145920: the disk is differencing and needs its parent (parent locator)",
    ),
    (
        "block size is a power of 2",
        |b| put_u32(b, ITEMS, 3 << 20),
        ErrorKind::Corrupt,
        "at byte 3145760: block size 3145728",
    ),
    (
        "block size is bounded",
        |b| put_u32(b, ITEMS, 512 << 20),
        ErrorKind::Corrupt,
        "at byte 3145760: block size 536870912",
    ),
    (
        "block size is not zero",
        |b| put_u32(b, ITEMS, 0),
        ErrorKind::Corrupt,
        "at byte 3145760: block size 0",
    ),
    (
        "sector size is known",
        |b| put_u32(b, ITEMS + 32, 1024),
        ErrorKind::Unsupported,
        "at byte 3145856: logical sector size 1024",
    ),
    (
        "disks are bounded",
        |b| put_u64(b, ITEMS + 8, u64::MAX - 511),
        ErrorKind::TooLarge,
        "at byte 3145792: virtual size",
    ),
    (
        "disks are in sectors",
        |b| put_u64(b, ITEMS + 8, 5000),
        ErrorKind::Corrupt,
        "at byte 3145792: virtual disk size 5000 is not a multiple",
    ),
    (
        "there is an entry for each block",
        |b| put_u64(b, ITEMS + 8, 1 << 40),
        ErrorKind::Corrupt,
        "at byte 2097152: BAT region of 1048576 bytes is too small for virtual disk size 1099511627776",
    ),
    (
        "payload is in the file",
        |b| put_u64(b, BAT, 6 | 1 << 50),
        ErrorKind::Corrupt,
        "at byte 2097152: payload block of 1048576 bytes",
    ),
    (
        "payload is not the header",
        |b| put_u64(b, BAT, 6),
        ErrorKind::Corrupt,
        "at byte 2097152: payload block at 0 overlaps the header section",
    ),
    (
        "payload is not the log",
        |b| put_u64(b, BAT, 6 | 1 << 20),
        ErrorKind::Corrupt,
        "payload block at 1048576 overlaps the log",
    ),
    (
        "payload is not the BAT",
        |b| put_u64(b, BAT, 6 | 2 << 20),
        ErrorKind::Corrupt,
        "payload block at 2097152 overlaps the BAT region",
    ),
    (
        "payload is not the metadata",
        |b| put_u64(b, BAT, 6 | 3 << 20),
        ErrorKind::Corrupt,
        "payload block at 3145728 overlaps the metadata region",
    ),
    (
        "payload is used once",
        |b| b.copy_within(BAT..BAT + 8, BAT + 8),
        ErrorKind::Corrupt,
        "at byte 2097160: the payload block at",
    ),
    (
        "entries have no reserved bits",
        |b| b[BAT] |= 8,
        ErrorKind::Corrupt,
        "at byte 2097152: BAT entry 0x000000000080000e has reserved bits set",
    ),
    (
        "blocks are present or not",
        |b| b[BAT] |= 7,
        ErrorKind::Corrupt,
        "is partially present in a disk without a parent",
    ),
    (
        "states are known",
        |b| b[BAT] = 5,
        ErrorKind::Corrupt,
        "has the unknown state 5",
    ),
    (
        "a cut-off file is noticed",
        |b| b.truncate(b.len() - (3 << 20)),
        ErrorKind::Corrupt,
        "reaches beyond the end of the file",
    ),
    (
        "a cut-off header is noticed",
        |b| b.truncate(3000),
        ErrorKind::Corrupt,
        "header of 4096 bytes at 65536 reaches beyond",
    ),
];

#[test]
fn each_rule_is_held_with_its_reason() -> Result<()> {
    let bench = bench_with("block_size=1M", "3M", &["write -P 1 0 1k", "write -P 2 2M 1k"])?;
    hold_rules(Format::Vhdx, &std::fs::read(bench.path("disk.vhdx"))?, CASES)
}

#[test]
fn sectors_of_4096_bytes_are_read() -> Result<()> {
    let bench = bench_with("block_size=1M", "3M", &["write -P 1 0 1k", "write -P 2 2M 1k"])?;
    bench.convert("disk.vhdx", "disk.raw", Target::RAW)?;
    let mut bytes = std::fs::read(bench.path("disk.vhdx"))?;
    put_u32(&mut bytes, ITEMS + 32, 4096);
    bench.write("disk.vhdx", &bytes)?;
    bench.convert("disk.vhdx", "out.raw", Target::RAW)?;
    ensure!(std::fs::read(bench.path("out.raw"))? == std::fs::read(bench.path("disk.raw"))?);
    let inspection = inspect(&bytes)?;
    ensure!(
        inspection.warnings == ["logical sectors of 4096 bytes, which a conversion leaves behind"],
        "{inspection:?}"
    );
    Ok(())
}

#[test]
fn one_good_copy_of_each_table_is_enough() -> Result<()> {
    let bench = bench_with("block_size=1M", "3M", &["write -P 1 0 1k", "write -P 2 2M 1k"])?;
    bench.convert("disk.vhdx", "disk.raw", Target::RAW)?;
    let good = std::fs::read(bench.path("disk.vhdx"))?;
    for place in [0x10000, 0x20000, 0x30000, 0x40000] {
        let mut bytes = good.clone();
        bytes[place + 9] ^= 0xff;
        bench.write("one.vhdx", &bytes)?;
        bench.convert("one.vhdx", "one.raw", Target::RAW)?;
        ensure!(std::fs::read(bench.path("one.raw"))? == std::fs::read(bench.path("disk.raw"))?);
    }
    Ok(())
}

/// A log entry with the 4096 bytes of `page`, which belong at `place`.
fn log_entry(page: &[u8], place: u64, file_size: u64, log_guid: [u8; 16]) -> Vec<u8> {
    const NUMBER: u64 = 7;
    let mut entry = b"loge\0\0\0\0".to_vec();
    entry.extend(8192_u32.to_le_bytes());
    entry.extend(0_u32.to_le_bytes());
    entry.extend(NUMBER.to_le_bytes());
    entry.extend(1_u64.to_le_bytes());
    entry.extend(log_guid);
    entry.extend(file_size.to_le_bytes());
    entry.extend(file_size.to_le_bytes());
    entry.extend(b"desc");
    entry.extend(&page[4092..]);
    entry.extend(&page[..8]);
    entry.extend(place.to_le_bytes());
    entry.extend(NUMBER.to_le_bytes());
    entry.resize(4096, 0);
    entry.extend(b"data");
    entry.extend(0_u32.to_le_bytes());
    entry.extend(&page[8..4092]);
    entry.extend(7_u32.to_le_bytes());
    seal(&mut entry);
    entry
}

/// A file whose log holds the page of `good` at `place`, which has been lost in its place.
fn with_log(good: &[u8], place: usize) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let page = bytes[place..place + 4096].to_vec();
    bytes[place..place + 4096].fill(0);
    let guid = [0x42; 16];
    let entry = log_entry(&page, place as u64, bytes.len() as u64, guid);
    let log = usize::try_from(le_u64(&bytes, 0x10000 + 72)).expect("small");
    bytes[log..log + entry.len()].copy_from_slice(&entry);
    headers(&mut bytes, |h| h[48..64].copy_from_slice(&guid));
    bytes
}

#[test]
fn a_log_is_replayed_as_qemu_replays_it() -> Result<()> {
    let bench = bench_with("block_size=1M", "5M", PATTERNS)?;
    let good = std::fs::read(bench.path("disk.vhdx"))?;
    for place in [BAT, METADATA, ITEMS] {
        bench.write("dirty.vhdx", &with_log(&good, place))?;
        bench.convert("dirty.vhdx", "ours.raw", Target::RAW)?;
        bench.qemu_img(&["compare", "-f", "vhdx", "-F", "raw", "disk.vhdx", "ours.raw"])?;
        let inspection = inspect(&*source(&bench.path("dirty.vhdx"))?)?;
        ensure!(
            inspection.warnings == ["the image was not closed properly; its log is replayed in memory"],
            "{inspection:?}"
        );
        bench.qemu_img(&["check", "-f", "vhdx", "-r", "all", "dirty.vhdx"])?;
        bench.qemu_img(&["compare", "-f", "vhdx", "-F", "raw", "dirty.vhdx", "ours.raw"])?;
    }
    Ok(())
}

#[test]
fn a_log_that_writes_into_payload_is_refused() -> Result<()> {
    let bench = bench_with("block_size=1M", "3M", &["write -P 1 0 1M"])?;
    let good = std::fs::read(bench.path("disk.vhdx"))?;
    let payload = usize::try_from(le_u64(&good, BAT) >> 20 << 20)?;
    bench.write("dirty.vhdx", &with_log(&good, payload + 8192))?;
    let error = bench.open("dirty.vhdx").expect_err("it is given out by its place");
    let error = error.downcast::<lithos_convert::Error>()?;
    ensure!(
        error.kind() == ErrorKind::Unsupported && error.reason().starts_with("the log writes to"),
        "{error}"
    );
    Ok(())
}

/// A fixed disk of so many bytes, whose payload is not there.
fn hollow(disk: u64) -> Result<Hollow> {
    let raw: Arc<dyn ReadAt> = Arc::new(Hollow {
        start: Vec::new(),
        size: disk,
        stripe: None,
    });
    let made = plan(open(raw)?.into(), &Target::VHDX_FIXED)?;
    Ok(Hollow {
        start: start_of(&made)?,
        size: made.size(),
        stripe: None,
    })
}

#[test]
fn a_log_of_many_changes_is_not_held_against_each_block() -> Result<()> {
    const LOG: usize = 1 << 20;
    let (number, guid) = (7_u64, [0x42; 16]);
    // 128 Ki blocks, and as many changes as the log has room for: zeros where nothing is, in the region of the metadata.
    let mut file = hollow(256 << 30)?;
    let count = u32::try_from((LOG - 64) / 32)?;
    let mut entry = b"loge\0\0\0\0".to_vec();
    entry.extend(u32::try_from(LOG)?.to_le_bytes());
    entry.extend(0_u32.to_le_bytes());
    entry.extend(number.to_le_bytes());
    entry.extend(u64::from(count).to_le_bytes());
    entry.extend(guid);
    entry.extend([file.size.to_le_bytes(), file.size.to_le_bytes()].concat());
    for _ in 0..count {
        entry.extend(b"zero\0\0\0\0");
        for field in [4096, (3 << 20) - 4096, number] {
            entry.extend(field.to_le_bytes());
        }
    }
    seal(&mut entry);
    file.start[LOG..2 * LOG].copy_from_slice(&entry);
    headers(&mut file.start, |h| h[48..64].copy_from_slice(&guid));
    let begun = Instant::now();
    let plan = plan(open(Arc::new(file))?.into(), &Target::RAW)?;
    let taken = begun.elapsed();
    ensure!(plan.totals().copied == 256 << 30, "{:?}", plan.totals());
    ensure!(taken < Duration::from_secs(1), "{taken:?}");
    Ok(())
}

#[test]
fn a_file_of_exbibytes_takes_no_memory() -> Result<()> {
    let file = Hollow {
        size: 1 << 62,
        ..hollow(1 << 30)?
    };
    let error = open(Arc::new(file)).expect_err("it is too large to be minded");
    ensure!(
        error.kind() == ErrorKind::TooLarge && error.reason().contains("parts of the file"),
        "{error}"
    );
    Ok(())
}
