//! From raw disks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Result, ensure};
use lithos_convert::{
    Evidence, Format, Guest, ReadAt, Run, RunKind, Segment, Signature, Target, inspect, open, plan, probe,
};

use crate::support::{Bench, Sparse, build, noise};

#[test]
fn sizes_from_nothing_to_odd() -> Result<()> {
    let bench = Bench::new()?;
    for len in [0, 1, 511, 512, 513, 65535, 65536, 65537, 1 << 20, (3 << 20) + 12345] {
        let name = format!("{len}.img");
        bench.write(&name, &noise(7, len))?;
        bench.judge(&name, "raw")?;
    }
    Ok(())
}

#[test]
fn sparse_disks_stay_sparse() -> Result<()> {
    let mut bytes = vec![0; 8 << 20];
    for (offset, len) in [
        (0, 512),
        (65536, 4096),
        (3 << 20, 70_000),
        ((5 << 20) + 4096, 8192),
        ((8 << 20) - 4096, 4096),
    ] {
        bytes[offset..offset + len].copy_from_slice(&noise(offset as u64, len));
    }
    let bench = Bench::new()?;
    bench.write("disk.img", &bytes)?;
    let source: Arc<dyn ReadAt> = Arc::new(Sparse { bytes, grain: 4096 });
    let plan = plan(open(Arc::clone(&source))?.into(), &Target::QCOW2)?;
    // Header, refcounts and tables are five clusters; data touches six.
    ensure!(plan.size() == (5 + 6) * 65536, "{}", plan.size());
    ensure!(
        plan.totals().copied == 4096 + 4096 + 73728 + 8192 + 4096,
        "{:?}",
        plan.totals()
    );
    bench.write("disk.qcow2", &build(&plan, &*source)?)?;
    let said = bench.qemu_img(&["check", "disk.qcow2"])?;
    ensure!(said.contains("No errors were found"), "{said}");
    bench.qemu_img(&["compare", "disk.img", "disk.qcow2"])?;
    Ok(())
}

/// A disk of any size with a little data in it.
struct Huge {
    size: u64,
    data: Vec<u64>,
}

const SECTOR: [u8; 512] = [0x5a; 512];

impl ReadAt for Huge {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        buf.fill(0);
        for (index, byte) in (offset..).zip(buf) {
            if self.data.iter().any(|start| (*start..start + 512).contains(&index)) {
                *byte = 0x5a;
            }
        }
        Ok(())
    }

    fn run_at(&self, offset: u64) -> std::io::Result<Run> {
        let (kind, end) = match self.data.iter().find(|start| **start + 512 > offset) {
            Some(start) if *start <= offset => (RunKind::Data, start + 512),
            Some(start) => (RunKind::Zero, *start),
            None => (RunKind::Zero, self.size),
        };
        Ok(Run {
            kind,
            len: end - offset,
        })
    }
}

#[test]
fn disks_beyond_2_tib_up_to_the_bound() -> Result<()> {
    let bench = Bench::new()?;
    for size in [3 << 40, 64 << 40] {
        let data = vec![4096, (512 << 20) - 512, 512 << 20, (2 << 40) + 65536, size - 512];
        let source: Arc<dyn ReadAt> = Arc::new(Huge {
            size,
            data: data.clone(),
        });
        let plan = plan(open(Arc::clone(&source))?.into(), &Target::QCOW2)?;
        ensure!(plan.size() < 4 << 20, "{}", plan.size());
        bench.write("huge.qcow2", &build(&plan, &*source)?)?;
        let said = bench.qemu_img(&["check", "huge.qcow2"])?;
        ensure!(said.contains("No errors were found"), "{said}");
        let image = bench.open("huge.qcow2")?;
        ensure!(image.virtual_size() == size);
        let guest = Guest::new(crate::support::source(&bench.path("huge.qcow2"))?, image);
        for start in data {
            let mut sector = [0; 512];
            guest.read_exact_at(&mut sector, start)?;
            ensure!(sector == SECTOR, "at {start}");
        }
        bench.qemu_io("huge.qcow2", &["read -P 0 1T 64k", "read -P 0x5a 2199023321088 512"])?;
    }
    Ok(())
}

#[test]
fn planning_2_gib_takes_no_time_to_speak_of() -> Result<()> {
    let data: Vec<u64> = (0..2048).map(|index| index << 20).collect();
    let source: Arc<dyn ReadAt> = Arc::new(Huge { size: 2 << 30, data });
    let start = std::time::Instant::now();
    let plan = plan(open(source)?.into(), &Target::QCOW2)?;
    let planned = start.elapsed();
    let copies = plan
        .segments()
        .filter(|segment| matches!(segment, Ok(Segment::Copy { .. })))
        .count();
    ensure!(copies == 2048);
    println!("planned in {planned:?}, all segments by {:?}", start.elapsed());
    ensure!(planned.as_secs() < 1, "{planned:?}");
    Ok(())
}

#[test]
fn a_sparse_disk_of_2000_gib_takes_little_of_any_format() -> Result<()> {
    let data = vec![4096, (512 << 20) - 512, 1 << 40, (2000 << 30) - 512];
    let source: Arc<dyn ReadAt> = Arc::new(Huge { size: 2000 << 30, data });
    for target in crate::support::planned() {
        let start = std::time::Instant::now();
        let plan = plan(open(Arc::clone(&source))?.into(), &target)?;
        let mut made = 0;
        for segment in plan.segments() {
            made += match segment? {
                Segment::Bytes(bytes) => bytes.len(),
                _ => 0,
            };
        }
        println!("{target}: {made} bytes of tables in {:?}", start.elapsed());
        // An entry for each block of 1 MiB, where zeros are not the sign of absence.
        ensure!(made < 10 << 20, "{target}: {made} bytes of tables");
        ensure!(start.elapsed().as_secs() < 10, "{target}: {:?}", start.elapsed());
    }
    Ok(())
}

#[test]
fn a_file_system_is_recognised_and_survives() -> Result<()> {
    let bench = Bench::new()?;
    let file = File::create(bench.path("ext4.img"))?;
    file.set_len(16 << 20)?;
    // As much of a superblock as is looked at.
    file.write_all_at(&[0x53, 0xef], 1080)?;
    let original = crate::support::source(&bench.path("ext4.img"))?;
    let probe = probe(&*original)?;
    ensure!(
        (probe.format, probe.evidence) == (Format::Raw, Evidence::Signature(Signature::Ext)),
        "{probe:?}"
    );
    bench.judge("ext4.img", "raw")?;
    let made = inspect(&*crate::support::source(&bench.path("ext4.img.out.qcow2"))?)?;
    ensure!(made.contents == [Signature::Ext], "{made:?}");
    ensure!(
        made.virtual_size == Some(16 << 20) && made.refusal.is_none(),
        "{made:?}"
    );
    Ok(())
}
