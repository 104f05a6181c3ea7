//! From every format that we make to every format that we make.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lithos_convert::{Format, ReadAt, Target, open, plan};

use crate::support::{Bench, Sparse, build, encoded, encoded_targets, noise, planned, qemu_format};

const MIB: usize = 1 << 20;

/// A disk with noise, text, holes, and an end in the midst of a block of any size.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 5 * MIB + 3 * 512];
    disk[..70_000].copy_from_slice(&noise(1, 70_000));
    disk[MIB + 65_536 + 512..MIB + 200_000].fill(0x5a);
    disk[2 * MIB - 1..=2 * MIB].fill(0xff);
    disk[4 * MIB..4 * MIB + 512].fill(1);
    let end = disk.len();
    disk[end - 600..].copy_from_slice(&noise(2, 600));
    disk
}

#[test]
fn every_format_becomes_every_format() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("disk.img", &disk())?;
    for from in Target::ALL {
        let source = format!("from.{}", from.extension());
        bench.make("disk.img", &source, from)?;
        let source = bench.unwrapped(&source, from)?;
        for to in Target::ALL {
            let target = format!("to.{}", to.extension());
            bench.make(&source, &target, to)?;
            let target = bench.unwrapped(&target, to)?;
            bench.check(&target, to)?;
            ensure!(
                bench.open(&target)?.virtual_size() == disk().len() as u64,
                "{from} to {to}"
            );
            bench
                .qemu_img(&["compare", "-f", "raw", "-F", qemu_format(to), "disk.img", &target])
                .with_context(|| format!("{from} to {to}"))?;
        }
    }
    Ok(())
}

#[test]
fn plans_are_the_same_each_time_and_data_is_not_copied_twice() -> Result<()> {
    let source: Arc<dyn ReadAt> = Arc::new(Sparse {
        bytes: disk(),
        grain: 512,
    });
    for target in planned() {
        let make = || anyhow::Ok(plan(open(Arc::clone(&source))?.into(), &target)?);
        let (one, other) = (make()?, make()?);
        ensure!(build(&one, &*source)? == build(&other, &*source)?, "{target}");
        // Nothing but what is not zeros is taken from the source, whatever the size of a block.
        ensure!(one.totals().copied < 220_000, "{target}: {:?}", one.totals());
    }
    Ok(())
}

#[test]
fn encoded_files_are_the_same_each_time() -> Result<()> {
    let source: Arc<dyn ReadAt> = Arc::new(Sparse {
        bytes: disk(),
        grain: 512,
    });
    for target in encoded_targets() {
        ensure!(encoded(&source, target)? == encoded(&source, target)?, "{target}");
    }
    Ok(())
}

#[test]
fn zeros_are_absent_by_what_the_store_knows() -> Result<()> {
    let mut bytes = vec![0; 64 * MIB];
    bytes[40 * MIB] = 1;
    let source: Arc<dyn ReadAt> = Arc::new(Sparse { bytes, grain: 4096 });
    for target in planned() {
        let size = plan(open(Arc::clone(&source))?.into(), &target)?.size();
        let (block, tables) = match target.format() {
            _ if target.is_fixed() => (64 << 20, 4 << 20),
            Format::Raw => (64 << 20, 0),
            Format::Vmdk | Format::Qcow2 => (64 << 10, 6 << 16),
            Format::Vhd => (2 << 20, 4096),
            Format::Vhdx => (2 << 20, 4 << 20),
            Format::Vdi => (1 << 20, 1 << 20),
            other => anyhow::bail!("{other} is not made"),
        };
        ensure!((block..=block + tables).contains(&size), "{target}: {size}");
    }
    Ok(())
}
