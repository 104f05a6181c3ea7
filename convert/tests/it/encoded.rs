//! Compressed targets: what is particular about each, and what holds for large and hostile disks.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lithos_convert::{
    Content, ErrorKind, JOB_LEN, Job, Limits, ReadAt, Run, RunKind, Target, encode, encode_pipe, open, plan,
    plan_with_seed, unwrap,
};

use crate::support::{Bench, Sparse, encoded, encoded_targets, noise, qemu_format, source};

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

/// Text-like bytes that compress to about a third.
fn text(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len * 4 + 8)
        .chunks_exact(8)
        .flat_map(|word| format!("{:x} ", u32::from(word[0]) * 7 + u32::from(word[1] & 3)).into_bytes())
        .take(len)
        .collect()
}

#[test]
fn sources_that_qemu_compressed_become_every_format() -> Result<()> {
    let bench = Bench::new()?;
    let mut disk = text(1, 5 * MIB / 2 + 512);
    disk[MIB..MIB + 300_000].copy_from_slice(&noise(3, 300_000));
    disk[3 * MIB / 2..2 * MIB - 100].fill(0);
    bench.write("disk.img", &disk)?;
    for (name, format, options) in [
        ("zlib.qcow2", "qcow2", "compression_type=zlib"),
        ("zstd.qcow2", "qcow2", "compression_type=zstd"),
        ("large.qcow2", "qcow2", "compression_type=zlib,cluster_size=2M"),
        ("small.qcow2", "qcow2", "compression_type=zstd,cluster_size=4k"),
        ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
    ] {
        bench.qemu_img(&[
            "convert", "-c", "-f", "raw", "-O", format, "-o", options, "disk.img", name,
        ])?;
        bench.judge(name, format)?;
    }
    Ok(())
}

/// QEMU asks zlib for a window of 4 KiB and yet reads matches from all over a cluster, because it inflates a cluster in one go.
#[test]
fn qemu_reads_matches_from_far_back() -> Result<()> {
    let bench = Bench::new()?;
    let mut disk = noise(5, 4 * MIB);
    for distance in [5000, 20_000, 30_000, 32_768] {
        let start = distance * 40;
        for index in start..start + 400_000 {
            disk[index] = disk[index - distance];
        }
        bench.write("disk.img", &disk)?;
        for target in [
            Target::QCOW2_ZLIB,
            Target::QCOW2_ZLIB_4K,
            Target::QCOW2_ZSTD,
            Target::VMDK_STREAM,
        ] {
            bench.make("disk.img", "out", target)?;
            bench.check("out", target)?;
            bench
                .qemu_img(&["compare", "-f", "raw", "-F", qemu_format(target), "disk.img", "out"])
                .with_context(|| format!("{target} with matches over {distance} bytes"))?;
        }
    }
    Ok(())
}

#[test]
fn incompressible_disks_grow_by_little() -> Result<()> {
    let bench = Bench::new()?;
    let disk = noise(7, 24 * MIB);
    bench.write("disk.img", &disk)?;
    for target in encoded_targets() {
        bench.make("disk.img", "out", target)?;
        let size = std::fs::metadata(bench.path("out"))?.len();
        ensure!(
            size < (disk.len() + disk.len() / 100 + 8 * 65536) as u64,
            "{target}: {size}"
        );
        let inner = bench.unwrapped("out", target)?;
        bench.check(&inner, target)?;
        bench.qemu_img(&["compare", "-f", "raw", "-F", qemu_format(target), "disk.img", &inner])?;
    }
    Ok(())
}

/// Clusters that shrink and clusters that do not, by turns and for longer than plain ones wait.
#[test]
fn plain_and_compressed_clusters_may_alternate() -> Result<()> {
    let bench = Bench::new()?;
    let mut disk = Vec::new();
    for (index, clusters) in [1, 1, 3, 2, 150, 1, 1, 129, 128, 4, 0, 1].into_iter().enumerate() {
        disk.extend(text(index as u64, 65536 * (index + 1)));
        disk.extend(noise(100 + index as u64, 65536 * clusters));
    }
    bench.write("disk.img", &disk)?;
    for target in encoded_targets() {
        bench.judge_as("disk.img", "raw", &[target])?;
    }
    Ok(())
}

#[test]
fn odd_and_empty_sizes() -> Result<()> {
    let bench = Bench::new()?;
    for len in [
        0,
        1,
        511,
        512,
        513,
        65535,
        65536,
        65537,
        JOB_LEN - 1,
        JOB_LEN,
        JOB_LEN + 1,
        3 * JOB_LEN + 77,
    ] {
        bench.write("disk.img", &text(9, len))?;
        for target in encoded_targets() {
            bench.make("disk.img", "out", target)?;
            let inner = bench.unwrapped("out", target)?;
            bench.check(&inner, target).with_context(|| format!("{len} bytes"))?;
            let args = ["compare", "-f", "raw", "-F", qemu_format(target), "disk.img", &inner];
            bench
                .qemu_img(&args)
                .with_context(|| format!("{len} bytes as {target}"))?;
        }
    }
    Ok(())
}

/// A disk of holes with a few sectors of data, made as they are read.
struct Huge {
    size: u64,
    data: Vec<u64>,
}

impl ReadAt for Huge {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = u8::from(self.data.iter().any(|start| (*start..start + 512).contains(&at)));
        }
        Ok(())
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let inside = self
            .data
            .iter()
            .find(|start| (**start..**start + 512).contains(&offset));
        let (kind, end) = if let Some(start) = inside {
            (RunKind::Data, start + 512)
        } else {
            let next = self.data.iter().copied().filter(|start| *start > offset).min();
            (RunKind::Zero, next.unwrap_or(self.size))
        };
        Ok(Run {
            kind,
            len: end - offset,
        })
    }
}

#[test]
fn sparse_disks_become_small_files() -> Result<()> {
    let bench = Bench::new()?;
    let huge: Arc<dyn ReadAt> = Arc::new(Huge {
        size: 2000 * GIB + 512,
        data: vec![4096, (512 << 20) - 512, 1000 * GIB, 2000 * GIB],
    });
    for target in encoded_targets() {
        if target.file_format() != target.format() {
            // All that zeros are is written there.
            continue;
        }
        let file = encoded(&huge, target)?;
        ensure!(file.len() < MIB, "{target}: {} bytes", file.len());
        bench.write("out", &file)?;
        bench.check("out", target)?;
        let image = bench.open("out")?;
        ensure!(image.virtual_size() == huge.size(), "{target}");
    }
    // 16 GiB with an end that is data, judged by QEMU.
    let huge: Arc<dyn ReadAt> = Arc::new(Huge {
        size: 16 * GIB,
        data: vec![0, 5 * GIB, 16 * GIB - 512],
    });
    bench.qemu_img(&["create", "-f", "raw", "ours.img", "16G"])?;
    let ours = File::options().write(true).open(bench.path("ours.img"))?;
    for start in [0, 5 * GIB, 16 * GIB - 512] {
        ours.write_all_at(&[1; 512], start)?;
    }
    for target in [Target::QCOW2_ZLIB, Target::QCOW2_ZSTD, Target::VMDK_STREAM] {
        bench.write("out", &encoded(&huge, target)?)?;
        bench.check("out", target)?;
        bench.qemu_img(&["compare", "-f", "raw", "-F", qemu_format(target), "ours.img", "out"])?;
    }
    Ok(())
}

/// Noise, made as it is read.
struct Noise(u64);

impl ReadAt for Noise {
    fn size(&self) -> u64 {
        self.0
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        for (bytes, number) in buf.chunks_mut(8).zip(offset / 8..) {
            let mut mixed = number
                .wrapping_add(0x9e37_79b9_7f4a_7c15)
                .wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
}

/// Over 2 GiB of clusters that do not shrink make a second refcount block, which is written in the midst.
#[test]
fn files_of_several_refcount_blocks_are_whole() -> Result<()> {
    let bench = Bench::new()?;
    let disk: Arc<dyn ReadAt> = Arc::new(Noise(2 * GIB + (600 << 20)));
    let encoding = encode(open(Arc::clone(&disk))?.into(), &Target::QCOW2_ZSTD, b"")?;
    let (mut encoder, mut assembler) = (encoding.encoder(), encoding.assembler());
    let out = File::create(bench.path("out"))?;
    let (mut body, mut end, mut longest) = (Vec::new(), encoding.head_len(), 0);
    for job in encoding.jobs() {
        assembler.push(&encoder.encode(&job?, &*disk)?, &mut body)?;
        longest = longest.max(body.len());
        out.write_all_at(&body, end)?;
        end += body.len() as u64;
        body.clear();
    }
    let head = assembler.finish(&mut body)?;
    out.write_all_at(&body, end)?;
    out.write_all_at(&head, 0)?;
    // What waits is bounded.
    ensure!(longest < 12 * MIB, "{longest}");
    bench.check("out", Target::QCOW2_ZSTD)?;
    // Ours finds every cluster where it should be.
    let made = source(&bench.path("out"))?;
    let image = open(Arc::clone(&made))?;
    let guest = lithos_convert::Guest::new(&*made, image);
    for offset in [0, GIB, 2 * GIB - 5, 2 * GIB + (599 << 20)] {
        let (mut found, mut expected) = (vec![0; 65536], vec![0; 65536]);
        guest.read_exact_at(&mut found, offset / 8 * 8)?;
        disk.read_exact_at(&mut expected, offset / 8 * 8)?;
        ensure!(found == expected, "{offset}");
    }
    Ok(())
}

#[test]
fn a_pipe_gives_the_same_file_as_its_disk() -> Result<()> {
    let mut disk = text(11, 5 * MIB + 700);
    disk[JOB_LEN..2 * JOB_LEN].fill(0);
    let whole: Arc<dyn ReadAt> = Arc::new(disk.clone());
    for target in encoded_targets() {
        if [Target::VMDK_STREAM, Target::OVA, Target::RAW_TAR_GZ].contains(&target) {
            let error = encode_pipe(&target).expect_err("a size is needed");
            ensure!(error.kind() == ErrorKind::Unsupported, "{error}");
            continue;
        }
        let encoding = encode_pipe(&target)?;
        let (mut encoder, mut assembler) = (encoding.encoder(), encoding.assembler());
        let mut body = Vec::new();
        for (bytes, index) in disk.chunks(JOB_LEN).zip(0_u64..) {
            let job = Job::of_bytes(index * JOB_LEN as u64, bytes.to_vec());
            assembler.push(&encoder.encode(&job, &Vec::new())?, &mut body)?;
        }
        let head = assembler.finish(&mut body)?;
        ensure!([head, body].concat() == encoded(&whole, target)?, "{target}");
    }
    Ok(())
}

#[test]
fn parts_that_are_shared_by_jobs_come_out_whole() -> Result<()> {
    // Clusters of 2 MiB that begin within a job of the target: in a source whose pieces do not keep to jobs.
    let bytes = text(13, 4 * MIB + 5000);
    let source: Arc<dyn ReadAt> = Arc::new(Sparse { bytes, grain: 100_000 });
    let bench = Bench::new()?;
    bench.write("out.gz", &encoded(&source, Target::RAW_GZ)?)?;
    let inner = bench.unwrapped("out.gz", Target::RAW_GZ)?;
    let mut expected = vec![0; usize::try_from(source.size())?];
    source.read_exact_at(&mut expected, 0)?;
    ensure!(std::fs::read(bench.path(&inner))? == expected);
    Ok(())
}

/// Breaks off behind its start.
struct Failing(u64);

impl ReadAt for Failing {
    fn size(&self) -> u64 {
        self.0
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset > 65536 {
            return Err(io::Error::other("the disk is on fire"));
        }
        buf.fill(1);
        Ok(())
    }
}

#[test]
fn broken_clusters_and_failing_sources_are_errors() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("disk.img", &text(15, MIB))?;
    bench.make("disk.img", "disk.qcow2", Target::QCOW2_ZLIB)?;
    let mut bytes = std::fs::read(bench.path("disk.qcow2"))?;
    bytes[65536..66000].fill(0xff);
    let broken: Arc<dyn ReadAt> = Arc::new(bytes);
    let failing: Arc<dyn ReadAt> = Arc::new(Failing(8 << 20));
    for target in encoded_targets() {
        let error = encoded(&broken, target).expect_err("a broken cluster");
        let error = error.downcast::<lithos_convert::Error>()?;
        ensure!(
            error.kind() == ErrorKind::Corrupt && error.offset() == Some(65536),
            "{target}: {error}"
        );
        let error = encoded(&failing, target).expect_err("a source that fails");
        ensure!(
            error.downcast::<lithos_convert::Error>()?.kind() == ErrorKind::Io,
            "{target}"
        );
    }
    Ok(())
}

#[test]
fn planned_and_encoded_are_told_apart() -> Result<()> {
    for target in Target::ALL {
        let image = || anyhow::Ok(open(Arc::new(vec![1; 1000]))?.into());
        let (planned, encoded) = (plan(image()?, &target), encode(image()?, &target, b""));
        ensure!(
            planned.is_err() == target.is_encoded() && encoded.is_ok() == target.is_encoded(),
            "{target}"
        );
    }
    Ok(())
}

/// UUIDs of two disks that are allocated alike differ by their seeds, and by nothing else.
#[test]
fn seeds_keep_disks_apart() -> Result<()> {
    let source: Arc<dyn ReadAt> = Arc::new(vec![1; 100_000]);
    for target in [
        Target::VDI,
        Target::VDI_FIXED,
        Target::VHD,
        Target::VHD_FIXED,
        Target::VHDX,
        Target::VMDK,
    ] {
        let make = |seed: &[u8]| {
            let plan = plan_with_seed(open(Arc::clone(&source))?.into(), &target, seed)?;
            crate::support::build(&plan, &*source)
        };
        ensure!(make(b"one")? == make(b"one")?, "{target}");
        ensure!(make(b"one")? != make(b"other")?, "{target}");
    }
    Ok(())
}

/// A raw disk that is a hole but for its last bytes.
#[derive(Debug)]
struct Hollow {
    len: u64,
}

impl ReadAt for Hollow {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        for (byte, place) in buf.iter_mut().zip(offset..) {
            *byte = u8::from(place >= self.len - 5);
        }
        Ok(())
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let data = self.len - 5;
        Ok(if offset < data {
            Run {
                kind: RunKind::Zero,
                len: data - offset,
            }
        } else {
            Run {
                kind: RunKind::Data,
                len: self.len - offset,
            }
        })
    }
}

#[test]
fn kept_zeros_come_by_few_jobs_and_all_come_out() -> Result<()> {
    let len = (3 << 30) + 77;
    let source: Arc<dyn ReadAt> = Arc::new(Hollow { len });
    for target in [Target::RAW_GZ, Target::RAW_ZST, Target::RAW_TAR_GZ] {
        let encoding = encode(open(Arc::clone(&source))?.into(), &target, b"")?;
        ensure!(encoding.jobs().count() == 3, "{target}");
    }
    let file: Arc<dyn ReadAt> = Arc::new(encoded(&source, Target::RAW_ZST)?);
    let Some(Content::Stream(mut disk)) = unwrap(&file, &Limits::DEFAULT)? else {
        panic!("a stream");
    };
    let mut zeros = disk.by_ref().take(len - 5);
    let (mut buf, mut seen) = (vec![0; 1 << 20], 0);
    loop {
        let read = zeros.read(&mut buf)?;
        if read == 0 {
            break;
        }
        ensure!(buf[..read].iter().all(|byte| *byte == 0), "behind {seen}");
        seen += read as u64;
    }
    let mut end = Vec::new();
    disk.read_to_end(&mut end)?;
    ensure!(seen == len - 5 && end == [1; 5], "{seen} {end:?}");
    Ok(())
}
