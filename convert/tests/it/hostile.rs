//! Images that were made to do harm. Each case names the rule that it breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lithos_convert::{ErrorKind, Format, Image, ReadAt, Target, inspect, open, plan};

use crate::support::{Bench, Hollow, HostileCase, hold_rules, source, start_of};

/// A small image with some data, as QEMU makes it: header, refcount table, refcount block, L1 table, L2 table, data.
fn good() -> Result<Vec<u8>> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "qcow2", "disk.qcow2", "1G"])?;
    bench.qemu_io("disk.qcow2", &["write -P 1 0 200k", "write -P 2 600M 64k"])?;
    Ok(std::fs::read(bench.path("disk.qcow2"))?)
}

fn be_u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_be_bytes());
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
}

fn l1(bytes: &[u8]) -> usize {
    usize::try_from(be_u64(bytes, 40)).expect("small")
}

fn l2(bytes: &[u8]) -> usize {
    usize::try_from(be_u64(bytes, l1(bytes)) & 0xff_ffff_ffff).expect("small")
}

const COPIED: u64 = 1 << 63;
/// No walk over the tables of an image of these takes longer.
const WALK_MAX: Duration = Duration::from_secs(2);

const CASES: &[HostileCase] = &[
    (
        "version is known",
        |b| put_u32(b, 4, 9),
        ErrorKind::Unsupported,
        "version 9",
    ),
    (
        "clusters are at most 2 MiB",
        |b| put_u32(b, 20, 63),
        ErrorKind::Corrupt,
        "cluster bits 63",
    ),
    (
        "backing files are never opened",
        |b| {
            put(b, 8, 0x8000);
            put_u32(b, 16, 11);
            b[0x8000..0x800b].copy_from_slice(b"/etc/shadow");
        },
        ErrorKind::ReferenceDenied,
        "backing file \"/etc/shadow\"",
    ),
    (
        "external data files are never opened",
        |b| put(b, 72, 4),
        ErrorKind::ReferenceDenied,
        "external data file",
    ),
    (
        "encryption needs a key",
        |b| put_u32(b, 32, 2),
        ErrorKind::Unsupported,
        "encrypted (LUKS",
    ),
    (
        "images marked corrupt stay alone",
        |b| put(b, 72, 2),
        ErrorKind::Corrupt,
        "incompatible feature bit 1",
    ),
    (
        "unknown incompatible features are",
        |b| put(b, 72, 1 << 40),
        ErrorKind::Unsupported,
        "feature bit 40",
    ),
    (
        "disks are bounded",
        |b| put(b, 24, u64::MAX),
        ErrorKind::TooLarge,
        "virtual size",
    ),
    (
        "disks fit their L1 table",
        |b| put(b, 24, 1 << 40),
        ErrorKind::Corrupt,
        "L1 size 2 is too small",
    ),
    (
        "L1 size is bounded",
        |b| put_u32(b, 36, u32::MAX),
        ErrorKind::TooLarge,
        "L1 table of 34359738360 bytes",
    ),
    (
        "L1 table is in the file",
        |b| put_u32(b, 36, 4 << 20),
        ErrorKind::Corrupt,
        "L1 table of 33554432 bytes",
    ),
    (
        "L1 offset does not overflow",
        |b| put(b, 40, u64::MAX << 16),
        ErrorKind::Corrupt,
        "reaches beyond the end",
    ),
    (
        "L1 table is aligned",
        |b| put(b, 40, 0x30008),
        ErrorKind::Corrupt,
        "L1 table offset",
    ),
    (
        "L1 table is not the header",
        |b| put(b, 40, 0),
        ErrorKind::Corrupt,
        "L1 table overlaps the header",
    ),
    (
        "refcount table is in the file",
        |b| put(b, 48, 1 << 60),
        ErrorKind::Corrupt,
        "refcount table of",
    ),
    (
        "refcount table is bounded",
        |b| put_u32(b, 56, u32::MAX),
        ErrorKind::TooLarge,
        "refcount table of",
    ),
    (
        "refcounts are at most 64 bits",
        |b| put_u32(b, 96, 40),
        ErrorKind::Corrupt,
        "refcount order 40",
    ),
    (
        "header length is in the cluster",
        |b| put_u32(b, 100, 0xffff_fff8),
        ErrorKind::Corrupt,
        "header length",
    ),
    (
        "extensions are in the cluster",
        |b| put_u32(b, 116, u32::MAX),
        ErrorKind::Corrupt,
        "header extension",
    ),
    (
        "snapshots are bounded",
        |b| put_u32(b, 60, u32::MAX),
        ErrorKind::TooLarge,
        "snapshots",
    ),
    (
        "L2 table is in the file",
        |b| {
            let at = l1(b);
            put(b, at, COPIED | 1 << 40);
        },
        ErrorKind::Corrupt,
        "L2 table of 65536 bytes",
    ),
    (
        "L2 table is aligned",
        |b| {
            let at = l1(b);
            put(b, at, COPIED | 0x40200);
        },
        ErrorKind::Corrupt,
        "L2 table offset",
    ),
    (
        "L2 table is not the L1 table",
        |b| {
            let at = l1(b);
            put(b, at, COPIED | at as u64);
        },
        ErrorKind::Corrupt,
        "overlaps the L1 table",
    ),
    (
        "L2 table is not the refcount table",
        |b| {
            let at = l1(b);
            put(b, at, COPIED | 0x10000);
        },
        ErrorKind::Corrupt,
        "overlaps the refcount table",
    ),
    (
        "L1 entry has no reserved bits",
        |b| {
            let at = l1(b);
            put(b, at, 1 << 60);
        },
        ErrorKind::Corrupt,
        "reserved bits",
    ),
    (
        "data is in the file",
        |b| {
            let at = l2(b);
            put(b, at, COPIED | 1 << 50);
        },
        ErrorKind::Corrupt,
        "beyond the end of the file",
    ),
    (
        "data is aligned",
        |b| {
            let at = l2(b);
            put(b, at, COPIED | 0x50200);
        },
        ErrorKind::Corrupt,
        "data cluster offset",
    ),
    (
        "data is not the header",
        |b| {
            let at = l2(b);
            put(b, at, COPIED | 0xff << 48);
        },
        ErrorKind::Corrupt,
        "beyond the end of the file",
    ),
    (
        "data is not the L1 table",
        |b| {
            let (at, l1) = (l2(b), l1(b));
            put(b, at, COPIED | l1 as u64);
        },
        ErrorKind::Corrupt,
        "overlaps the L1 table",
    ),
    (
        "L2 entry has no reserved bits",
        |b| {
            let at = l2(b);
            put(b, at, 2);
        },
        ErrorKind::Corrupt,
        "reserved bits",
    ),
    (
        "compressed cluster is in the file",
        |b| {
            let at = l2(b);
            put(b, at, 1 << 62 | 1 << 50);
        },
        ErrorKind::Corrupt,
        "compressed cluster at",
    ),
    (
        "compressed cluster is not the header",
        |b| {
            let at = l2(b);
            put(b, at, 1 << 62 | 64);
        },
        ErrorKind::Corrupt,
        "overlaps the header",
    ),
    (
        "data is used once",
        |b| {
            let at = l2(b);
            let data = be_u64(b, at);
            for index in 0..8192 {
                put(b, at + index * 8, data);
            }
        },
        ErrorKind::Corrupt,
        "is used twice",
    ),
    (
        "compressed data is used once",
        |b| {
            let at = l2(b);
            b.truncate(0x60000);
            let second = l1(b) + 8;
            put(b, second, 0);
            put(b, 24, 1 << 30);
            for index in 0..8192 {
                put(b, at + index * 8, 1 << 62 | 0x50000);
            }
        },
        ErrorKind::Corrupt,
        "more data than a file of",
    ),
    (
        "a cut-off file is noticed",
        |b| b.truncate(b.len() - 0x20000),
        ErrorKind::Corrupt,
        "beyond the end of the file",
    ),
    (
        "a cut-off header is noticed",
        |b| b.truncate(90),
        ErrorKind::Corrupt,
        "inside of the header",
    ),
];

#[test]
fn each_rule_is_held_with_its_reason() -> Result<()> {
    let good = good()?;
    hold_rules(Format::Qcow2, &good, CASES)
}

#[test]
fn entries_beyond_the_end_of_the_disk_mean_nothing() -> Result<()> {
    let mut bytes = good()?;
    put(&mut bytes, 24, 100 << 20);
    let table = l2(&bytes);
    put(&mut bytes, table + 1600 * 8, 2);
    plan(open(Arc::new(bytes.clone()))?.into(), &Target::RAW)?;
    put(&mut bytes, table + 1599 * 8, 2);
    let error = open(Arc::new(bytes)).expect_err("the last entry of the disk");
    ensure!(error.reason().contains("reserved bits"), "{error}");
    Ok(())
}

#[test]
fn broken_compressed_cluster_is_found_when_it_is_decoded() -> Result<()> {
    let mut bytes = good()?;
    let at = l2(&bytes);
    put(&mut bytes, at, 1 << 62 | 0x50000);
    let source: Arc<dyn ReadAt> = Arc::new(bytes);
    let plan = plan(open(Arc::clone(&source))?.into(), &Target::RAW)?;
    let error = crate::support::carry_out(&plan, &*source, |_, _| Ok(())).expect_err("it is not deflate");
    let error = error.downcast::<lithos_convert::Error>()?;
    ensure!(
        error.kind() == ErrorKind::Corrupt && error.reason().starts_with("zlib cluster"),
        "{error}"
    );
    Ok(())
}

/// Fails every read from the n-th on.
struct Failing {
    bytes: Vec<u8>,
    left: AtomicUsize,
}

impl ReadAt for Failing {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map_err(|_| std::io::Error::other("pulled plug"))?;
        self.bytes.read_exact_at(buf, offset)
    }
}

#[test]
fn a_failing_source_is_never_taken_for_a_broken_image() -> Result<()> {
    let bytes = good()?;
    for count in 0.. {
        let failing = || Failing {
            bytes: bytes.clone(),
            left: AtomicUsize::new(count),
        };
        let planned = open(Arc::new(failing())).and_then(|image| {
            plan(image.into(), &Target::QCOW2)?
                .segments()
                .try_for_each(|segment| segment.map(drop))
        });
        let inspected = inspect(&failing());
        for error in [planned.as_ref().err(), inspected.as_ref().err()].into_iter().flatten() {
            ensure!(error.kind() == ErrorKind::Io, "after {count}: {error}");
            let source = std::error::Error::source(error).context("no source")?;
            ensure!(source.to_string() == "pulled plug", "after {count}: {source}");
        }
        ensure!(inspected.is_err() || inspected.is_ok_and(|inspection| inspection.refusal.is_none()));
        if planned.is_ok() {
            ensure!(count > 5, "only {count} reads");
            return Ok(());
        }
    }
    unreachable!("some count is enough")
}

#[test]
fn a_huge_l1_table_that_is_really_there_takes_small_reads() -> Result<()> {
    let mut start = good()?;
    start.truncate(0x30000);
    put(&mut start, 24, 64 << 40);
    put_u32(&mut start, 36, 4 << 20);
    let source: Arc<dyn ReadAt> = Arc::new(Hollow {
        start,
        size: 64 << 20,
        stripe: None,
    });
    let image: Arc<dyn Image> = open(source)?.into();
    let plan = plan(image, &Target::QCOW2)?;
    ensure!(plan.totals().zero == 64 << 40);
    Ok(())
}

#[test]
fn clusters_in_a_row_with_holes_in_them_are_walked_over_once() -> Result<()> {
    const DISK: u64 = 2 << 30;
    let raw: Arc<dyn ReadAt> = Arc::new(Hollow {
        start: Vec::new(),
        size: DISK,
        stripe: None,
    });
    let good = plan(open(raw)?.into(), &Target::QCOW2)?;
    let source: Arc<dyn ReadAt> = Arc::new(Hollow {
        start: start_of(&good)?,
        size: good.size(),
        stripe: Some(4096),
    });
    let begun = Instant::now();
    let plan = plan(open(source)?.into(), &Target::RAW)?;
    let taken = begun.elapsed();
    ensure!(plan.totals().copied == DISK / 2, "{:?}", plan.totals());
    ensure!(taken < WALK_MAX, "{taken:?}");
    Ok(())
}

#[test]
fn many_l1_entries_for_few_tables_are_refused() -> Result<()> {
    let mut bytes = good()?;
    let table = be_u64(&bytes, l1(&bytes));
    let l1 = l1(&bytes);
    put(&mut bytes, 24, 100 << 29);
    put_u32(&mut bytes, 36, 100);
    for index in 0..100 {
        put(&mut bytes, l1 + index * 8, table);
    }
    let error = open(Arc::new(bytes)).expect_err("one table a hundred times");
    ensure!(
        error.reason().starts_with("the L1 table refers to 100 L2 tables"),
        "{error}"
    );
    Ok(())
}

#[test]
fn refused_formats_are_named() -> Result<()> {
    let bench = Bench::new()?;
    for (format, options, name) in [("qed", "table_size=4", "qed"), ("qcow", "encryption=off", "qcow")] {
        bench.qemu_img(&["create", "-f", format, "-o", options, "disk", "1M"])?;
        let error = open(source(&bench.path("disk"))?).expect_err(format);
        let expected = format!("{name}: not supported: images of this format are recognised but cannot be read");
        ensure!(error.to_string() == expected, "{error}");
        let inspection = inspect(&*source(&bench.path("disk"))?)?;
        ensure!(
            inspection.format.name() == name && inspection.refusal.is_some(),
            "{inspection:?}"
        );
    }
    Ok(())
}
