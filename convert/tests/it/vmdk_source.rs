//! From VMDK images that QEMU made, and from such that were made to do harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lithos_convert::{Codec, Error, ErrorKind, Format, Mapping, ReadAt, Segment, Target, inspect, open, plan};

use crate::support::{Bench, Hollow, HostileCase, build, hold_rules, noise, source};

/// Makes `disk.vmdk` with patterns and holes in it.
fn bench_with(options: &str, size: &str, commands: &[&str]) -> Result<Bench> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "vmdk", "-o", options, "disk.vmdk", size])?;
    bench.qemu_io_as("vmdk", "disk.vmdk", commands)?;
    Ok(bench)
}

/// Makes `disk.img`, and a compressed `disk.vmdk` of it.
fn stream_bench(len: usize) -> Result<Bench> {
    let bench = Bench::new()?;
    let mut disk = vec![0; len];
    disk[1000..70_000].fill(7);
    disk[500_000..700_000].copy_from_slice(&noise(3, 200_000));
    disk[len - 700..].copy_from_slice(&noise(4, 700));
    bench.write("disk.img", &disk)?;
    let options = "subformat=streamOptimized";
    bench.qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        options,
        "disk.img",
        "disk.vmdk",
    ])?;
    Ok(bench)
}

const PATTERNS: &[&str] = &[
    "write -P 3 34000k 90k",
    "write -P 1 0 512",
    "write -P 2 2M 100k",
    "write -z 2112k 64k",
];

#[test]
fn sparse_files_of_every_sort() -> Result<()> {
    for options in [
        "subformat=monolithicSparse",
        "subformat=monolithicSparse,zeroed_grain=on",
        "subformat=monolithicSparse,adapter_type=lsilogic,hwversion=10",
        "subformat=monolithicSparse,compat6=on",
    ] {
        let bench = bench_with(options, "34920960", PATTERNS)?;
        bench
            .judge_as("disk.vmdk", "vmdk", &[Target::VMDK, Target::QCOW2])
            .context(options)?;
        let inspection = inspect(&*source(&bench.path("disk.vmdk"))?)?;
        ensure!(inspection.format == Format::Vmdk && inspection.variant == Some("monolithicSparse"));
    }
    bench_with("subformat=monolithicSparse", "35M", PATTERNS)?.judge("disk.vmdk", "vmdk")
}

#[test]
fn compressed_streams() -> Result<()> {
    for len in [1_048_576, 1_048_576 + 512, 3_000_320] {
        let bench = stream_bench(len)?;
        bench.judge("disk.vmdk", "vmdk")?;
        bench.qemu_img(&["compare", "disk.img", "disk.vmdk.out.vmdk"])?;
        let inspection = inspect(&*source(&bench.path("disk.vmdk"))?)?;
        ensure!(inspection.variant == Some("streamOptimized"), "{inspection:?}");
        let plan = plan(bench.open("disk.vmdk")?, &Target::VMDK)?;
        let codecs: Vec<Codec> = plan
            .segments()
            .filter_map(|segment| match segment {
                Ok(Segment::Decode { codec, .. }) => Some(codec),
                _ => None,
            })
            .collect();
        ensure!(codecs.len() > 3 && codecs.iter().all(|codec| *codec == Codec::Zlib));
    }
    Ok(())
}

#[test]
fn large_disks_are_sparse() -> Result<()> {
    for (size, place) in [("9G", "8700M"), ("600G", "500G")] {
        let writes = [format!("write -P 5 {place} 64k"), "write -P 6 1M 3M".to_owned()];
        let writes: Vec<&str> = writes.iter().map(String::as_str).collect();
        let bench = bench_with("subformat=monolithicSparse", size, &writes)?;
        let plan = bench.convert("disk.vmdk", "out.vmdk", Target::VMDK)?;
        ensure!(plan.totals().copied == (3 << 20) + 65536, "{:?}", plan.totals());
        let tables: u64 = plan
            .segments()
            .map(|segment| match segment {
                Ok(Segment::Bytes(bytes)) => bytes.len() as u64,
                _ => 0,
            })
            .sum();
        ensure!(tables < 1 << 20, "{tables} bytes of tables");
        let read = format!("read -P 5 {place} 64k");
        bench.qemu_io_as("vmdk", "out.vmdk", &[&read, "read -P 6 1M 3M", "read -P 0 4M 1G"])?;
    }
    let bench = bench_with("subformat=monolithicSparse", "9G", PATTERNS)?;
    bench.convert("disk.vmdk", "out.vmdk", Target::VMDK)?;
    bench.qemu_img(&["compare", "disk.vmdk", "out.vmdk"])?;
    bench.check("out.vmdk", Target::VMDK)
}

#[test]
fn our_layout_is_that_of_qemu() -> Result<()> {
    let bench = bench_with(
        "subformat=monolithicSparse",
        "100M",
        &["write -P 1 0 64k", "write -P 2 64M 64k"],
    )?;
    bench.convert("disk.vmdk", "out.vmdk", Target::VMDK)?;
    let theirs = std::fs::read(bench.path("disk.vmdk"))?;
    let ours = std::fs::read(bench.path("out.vmdk"))?;
    // All but the descriptor.
    ensure!(ours[..512] == theirs[..512]);
    ensure!(ours[21 * 512..] == theirs[21 * 512..]);
    Ok(())
}

#[test]
fn more_data_than_a_file_can_place_is_refused() -> Result<()> {
    struct Full;
    impl ReadAt for Full {
        fn size(&self) -> u64 {
            2 << 40
        }

        fn read_exact_at(&self, buf: &mut [u8], _: u64) -> std::io::Result<()> {
            buf.fill(1);
            Ok(())
        }
    }
    let error = plan(open(Arc::new(Full))?.into(), &Target::VMDK).expect_err("2 TiB and tables");
    ensure!(
        error.to_string() == "vmdk: too large: the file with its grains 2199292280832 is more than 2199023255552",
        "{error}"
    );
    Ok(())
}

fn le_u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

fn le_u32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

/// Where the grain directory is.
fn directory(bytes: &[u8]) -> usize {
    usize::try_from(le_u64(bytes, 56) * 512).expect("small")
}

/// Where the first grain table is.
fn table(bytes: &[u8]) -> usize {
    le_u32(bytes, directory(bytes)) as usize * 512
}

/// Replaces a word of the descriptor by one of the same length.
fn reword(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let place = bytes
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .expect("it is in the descriptor");
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
}

const CASES: &[HostileCase] = &[
    (
        "COWD is refused",
        |b| b[..4].copy_from_slice(b"COWD"),
        ErrorKind::Unsupported,
        "at byte 0: the file is a VMFS sparse extent (COWD)",
    ),
    (
        "SESparse is refused",
        |b| put_u64(b, 0, 0xcafe_babe),
        ErrorKind::Unsupported,
        "at byte 0: the file is a VMFS sparse extent (SESparse)",
    ),
    (
        "a descriptor alone is refused",
        |b| {
            b.drain(..512);
        },
        ErrorKind::Unsupported,
        "at byte 0: the file is a descriptor alone",
    ),
    (
        "version is known",
        |b| put_u32(b, 4, 4),
        ErrorKind::Unsupported,
        "at byte 4: version 4",
    ),
    (
        "flags are known",
        |b| b[11] = 1,
        ErrorKind::Unsupported,
        "at byte 8: unknown flag bit 24",
    ),
    (
        "line ends are as they were",
        |b| b[75] = b'\n',
        ErrorKind::Corrupt,
        "at byte 73: the line ends are changed",
    ),
    (
        "compression is known",
        |b| b[77] = 2,
        ErrorKind::Unsupported,
        "at byte 77: compression algorithm 2",
    ),
    (
        "compression is said twice",
        |b| b[77] = 1,
        ErrorKind::Corrupt,
        "at byte 77: compression algorithm 1 and flag bit 16 (0) contradict each other",
    ),
    (
        "markers come with compression",
        |b| b[10] = 2,
        ErrorKind::Unsupported,
        "at byte 8: compressed grains without markers",
    ),
    (
        "grains are a power of 2",
        |b| put_u64(b, 20, 100),
        ErrorKind::Corrupt,
        "at byte 20: grain size 100",
    ),
    (
        "grains are bounded",
        |b| put_u64(b, 20, 1 << 63),
        ErrorKind::Corrupt,
        "at byte 20: grain size 9223372036854775808",
    ),
    (
        "grains are not empty",
        |b| put_u64(b, 20, 0),
        ErrorKind::Corrupt,
        "at byte 20: grain size 0",
    ),
    (
        "tables have 512 entries",
        |b| put_u32(b, 44, 1024),
        ErrorKind::Unsupported,
        "at byte 44: grain tables of 1024 entries",
    ),
    (
        "there is a disk",
        |b| put_u64(b, 12, 0),
        ErrorKind::Unsupported,
        "at byte 12: capacity 0",
    ),
    (
        "disks are bounded",
        |b| put_u64(b, 12, u64::MAX),
        ErrorKind::TooLarge,
        "at byte 12: virtual size",
    ),
    (
        "there is a descriptor",
        |b| put_u64(b, 28, 0),
        ErrorKind::ReferenceDenied,
        "at byte 28: there is no descriptor",
    ),
    (
        "the descriptor is bounded",
        |b| put_u64(b, 36, 129),
        ErrorKind::TooLarge,
        "at byte 36: descriptor size 66048 is more than 65536",
    ),
    (
        "the descriptor is in the file",
        |b| put_u64(b, 28, 1 << 60),
        ErrorKind::Corrupt,
        "at byte 28: descriptor of 10240 bytes",
    ),
    (
        "the descriptor agrees on the capacity",
        |b| put_u64(b, 12, 81_919),
        ErrorKind::Corrupt,
        "at byte 12: the capacity is 81919 sectors, the extent in the descriptor has 81920",
    ),
    (
        "the descriptor agrees on compression",
        |b| reword(b, "monolithicSparse\"", "streamOptimized\" "),
        ErrorKind::Corrupt,
        "at byte 8: create type streamOptimized and flag bit 16 contradict each other",
    ),
    (
        "create type is known",
        |b| reword(b, "monolithicSparse", "twoGbMaxXXSparse"),
        ErrorKind::Unsupported,
        "create type \"twoGbMaxXXSparse\"",
    ),
    (
        "parents are never opened",
        |b| reword(b, "parentCID=ffffffff", "parentCID=fffffff0"),
        ErrorKind::ReferenceDenied,
        "at byte 557: the disk needs its parent, with the content \"fffffff0\"",
    ),
    (
        "extents are never opened",
        |b| reword(b, "\"disk.vmdk\"", "\"/etc/disk\""),
        ErrorKind::ReferenceDenied,
        "the extent \"/etc/disk\" is a path",
    ),
    (
        "extents are sparse",
        |b| reword(b, "SPARSE \"disk", "VMFSSP \"disk"),
        ErrorKind::Unsupported,
        "is of the type \"VMFSSP\"",
    ),
    (
        "lines are known",
        |b| reword(b, "ddb.adapterType", "xxx.adapterType"),
        ErrorKind::Unsupported,
        "unknown descriptor line \"xxx.adapterType = \\\"ide\\\"\"",
    ),
    (
        "the directory is in the file",
        |b| put_u64(b, 56, 1 << 54),
        ErrorKind::Corrupt,
        "at byte 56: grain directory of 8 bytes",
    ),
    (
        "the directory is not the header",
        |b| put_u64(b, 56, 0),
        ErrorKind::Corrupt,
        "at byte 56: grain directory at 0 overlaps the header",
    ),
    (
        "the directory is not the descriptor",
        |b| put_u64(b, 56, 1),
        ErrorKind::Corrupt,
        "at byte 56: grain directory at 512 overlaps the descriptor",
    ),
    (
        "the redundant directory is another one",
        |b| b.copy_within(56..64, 48),
        ErrorKind::Corrupt,
        "at byte 48: redundant grain directory at 15360 overlaps the grain directory",
    ),
    (
        "the redundant directory is in the file",
        |b| put_u64(b, 48, 1 << 54),
        ErrorKind::Corrupt,
        "at byte 48: redundant grain directory of 8 bytes",
    ),
    (
        "tables are in the file",
        |b| {
            let at = directory(b);
            put_u32(b, at, u32::MAX);
        },
        ErrorKind::Corrupt,
        "at byte 15360: grain table of 2048 bytes",
    ),
    (
        "tables are not the directory",
        |b| {
            let at = directory(b);
            put_u32(b, at, 30);
        },
        ErrorKind::Corrupt,
        "at byte 15360: grain table at 15360 overlaps the grain directory",
    ),
    (
        "grains are in the file",
        |b| {
            let at = table(b);
            put_u32(b, at, u32::MAX);
        },
        ErrorKind::Corrupt,
        "at byte 15872: grain of 1 bytes at 2199023255040 reaches beyond",
    ),
    (
        "grains are not the header",
        |b| {
            let at = table(b);
            put_u32(b, at, 1);
        },
        ErrorKind::Corrupt,
        "at byte 15872: grain at 512 overlaps the descriptor",
    ),
    (
        "grains are used once",
        |b| {
            let at = table(b);
            let grain = le_u32(b, at);
            for index in 0..512 {
                put_u32(b, at + index * 4, grain);
            }
        },
        ErrorKind::Corrupt,
        "more data than a file of",
    ),
    (
        "a cut-off file is noticed",
        |b| b.truncate(65536),
        ErrorKind::Corrupt,
        "reaches beyond the end of the file",
    ),
    (
        "a cut-off header is noticed",
        |b| b.truncate(70),
        ErrorKind::Corrupt,
        "at byte 70: the file ends inside of the header",
    ),
];

#[test]
fn each_rule_is_held_with_its_reason() -> Result<()> {
    let bench = bench_with(
        "subformat=monolithicSparse",
        "40M",
        &["write -P 1 0 1k", "write -P 2 33M 1k"],
    )?;
    hold_rules(Format::Vmdk, &std::fs::read(bench.path("disk.vmdk"))?, CASES)
}

/// Turns a stream with its directory at the start into one with a footer.
fn with_footer(stream: &[u8]) -> Vec<u8> {
    let mut bytes = stream.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let header = bytes[..512].to_vec();
    put_u64(&mut bytes, 56, u64::MAX);
    let mut marker = vec![0; 512];
    put_u64(&mut marker, 0, 1);
    put_u32(&mut marker, 12, 3);
    bytes.extend(marker);
    bytes.extend(header);
    bytes.extend([0; 512]);
    bytes
}

#[test]
fn the_footer_knows_where_the_directory_is() -> Result<()> {
    let bench = stream_bench(1 << 20)?;
    let bytes = with_footer(&std::fs::read(bench.path("disk.vmdk"))?);
    bench.write("footer.vmdk", &bytes)?;
    bench.judge("footer.vmdk", "vmdk")?;
    bench.qemu_img(&["compare", "disk.img", "footer.vmdk.out.raw"])?;
    Ok(())
}

/// The footer of a stream.
fn footer(bytes: &mut [u8]) -> &mut [u8] {
    let start = bytes.len() - 1024;
    &mut bytes[start..start + 512]
}

/// The place of the first grain's marker.
fn first_marker(bytes: &mut [u8]) -> usize {
    let directory = usize::try_from(le_u64(footer(bytes), 56) * 512).expect("small");
    let table = le_u32(bytes, directory) as usize * 512;
    le_u32(bytes, table) as usize * 512
}

const STREAM_CASES: &[HostileCase] = &[
    (
        "the footer has its marker",
        |b| {
            let at = b.len() - 1536 + 12;
            b[at] = 2;
        },
        ErrorKind::Corrupt,
        "the marker of the footer is missing",
    ),
    (
        "the stream has its end",
        |b| {
            let at = b.len() - 512 + 12;
            b[at] = 1;
        },
        ErrorKind::Corrupt,
        "the end-of-stream marker is missing",
    ),
    (
        "the footer is a header",
        |b| footer(b)[0] = 0,
        ErrorKind::NotThisFormat,
        "the magic number is missing",
    ),
    (
        "the footer is like the header",
        |b| footer(b)[12] ^= 1,
        ErrorKind::Corrupt,
        "the footer is unlike the header",
    ),
    (
        "the footer knows the directory",
        |b| footer(b)[56..64].fill(0xff),
        ErrorKind::Corrupt,
        "the footer is unlike the header",
    ),
    (
        "the directory is in the file",
        |b| put_u64(footer(b), 56, 1 << 40),
        ErrorKind::Corrupt,
        "at byte 56: grain directory of 4 bytes",
    ),
    (
        "markers know their sector",
        |b| {
            let at = first_marker(b);
            b[at] = 7;
        },
        ErrorKind::Corrupt,
        "is of sector 7 instead of 0",
    ),
    (
        "grains are bounded",
        |b| {
            let at = first_marker(b);
            put_u32(b, at + 8, 1 << 20);
        },
        ErrorKind::TooLarge,
        "compressed grain of 1048576 is more than 131072",
    ),
    (
        "grains are not empty",
        |b| {
            let at = first_marker(b);
            put_u32(b, at + 8, 0);
        },
        ErrorKind::Corrupt,
        "is empty",
    ),
    (
        "a file without its end is noticed",
        |b| b.truncate(1024),
        ErrorKind::Corrupt,
        "at byte 28: descriptor of 10240 bytes",
    ),
];

#[test]
fn each_rule_of_streams_is_held_with_its_reason() -> Result<()> {
    let bench = stream_bench(1 << 20)?;
    let good = with_footer(&std::fs::read(bench.path("disk.vmdk"))?);
    hold_rules(Format::Vmdk, &good, STREAM_CASES)
}

#[test]
fn a_broken_grain_is_found_when_it_is_decoded() -> Result<()> {
    let bench = stream_bench(1 << 20)?;
    let mut bytes = with_footer(&std::fs::read(bench.path("disk.vmdk"))?);
    let at = first_marker(&mut bytes);
    bytes[at + 30] ^= 0xff;
    let source: Arc<dyn ReadAt> = Arc::new(bytes);
    let plan = plan(open(Arc::clone(&source))?.into(), &Target::RAW)?;
    let error = build(&plan, &*source)
        .expect_err("the checksum fails")
        .downcast::<Error>()?;
    ensure!(
        error.kind() == ErrorKind::Corrupt && error.reason().starts_with("zlib stream cluster"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_directory_of_nothing_is_passed_over_by_pages() -> Result<()> {
    let disk: Arc<dyn ReadAt> = Arc::new(vec![0; 1 << 20]);
    let made = plan(open(Arc::clone(&disk))?.into(), &Target::VMDK)?;
    let mut start = build(&made, &*disk)?;
    // 64 TiB in grains of 4 KiB; the directory, of 128 MiB, comes behind everything else.
    reword(
        &mut start,
        "# Extent description\nRW 2048",
        "# Extent des\nRW 137438953472",
    );
    put_u32(&mut start, 8, 1);
    put_u64(&mut start, 12, 1 << 37);
    put_u64(&mut start, 20, 8);
    let sectors = start.len().div_ceil(512) as u64;
    put_u64(&mut start, 56, sectors);
    let source: Arc<dyn ReadAt> = Arc::new(Hollow {
        start,
        size: (sectors * 512) + (128 << 20),
        stripe: None,
    });
    let begun = Instant::now();
    let image = open(source)?;
    ensure!(
        image.map(4096)?
            == (Mapping::Zero {
                len: (16384 << 21) - 4096
            })
    );
    let plan = plan(image.into(), &Target::RAW)?;
    let taken = begun.elapsed();
    ensure!(plan.totals().zero == 64 << 40, "{:?}", plan.totals());
    ensure!(taken < Duration::from_secs(1), "{taken:?}");
    Ok(())
}

#[test]
fn disks_of_several_files_are_refused() -> Result<()> {
    let bench = Bench::new()?;
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let options = format!("subformat={subformat}");
        bench.qemu_img(&["create", "-f", "vmdk", "-o", &options, "disk.vmdk", "1M"])?;
        let error = bench.open("disk.vmdk").expect_err(subformat).downcast::<Error>()?;
        ensure!(
            error.to_string()
                == "vmdk: not supported at byte 0: the file is a descriptor alone, whose disk is in other files",
            "{error}"
        );
    }
    let error = bench
        .open("disk-s001.vmdk")
        .expect_err("an extent")
        .downcast::<Error>()?;
    ensure!(error.kind() == ErrorKind::ReferenceDenied, "{error}");
    Ok(())
}
