//! From qcow2 images that QEMU made.

use std::sync::Arc;

use anyhow::{Result, ensure};
use lithos_convert::{Codec, Format, Segment, Target, inspect, open, plan};

use crate::support::{Bench, Sparse, noise, source};

const MIB: usize = 1 << 20;

/// A disk with text, noise, patterns and holes.
fn disk(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut put = |offset: usize, part: &[u8]| {
        let end = (offset + part.len()).min(len);
        if offset < end {
            bytes[offset..end].copy_from_slice(&part[..end - offset]);
        }
    };
    put(0, &noise(1, 3000));
    put(100_000, &b"the quick brown fox ".repeat(9000));
    put(MIB, &noise(2, 150_000));
    put(2 * MIB + 512, &[0xaa; 512]);
    put(3 * MIB, &vec![0x11; 200_000]);
    put(4 * MIB - 1, &noise(3, 2));
    put(len.saturating_sub(700), &noise(4, 700));
    bytes
}

/// Makes `disk.img` and a qcow2 of it with the given options.
fn bench_with(len: usize, args: &[&str]) -> Result<Bench> {
    let bench = Bench::new()?;
    bench.write("disk.img", &disk(len))?;
    let all = [
        &["convert", "-f", "raw", "-O", "qcow2"],
        args,
        &["disk.img", "disk.qcow2"],
    ]
    .concat();
    bench.qemu_img(&all)?;
    Ok(bench)
}

#[test]
fn every_cluster_size_plain_and_compressed() -> Result<()> {
    for cluster_size in ["512", "1024", "4096", "32768", "65536", "131072", "1M", "2M"] {
        for compression in [
            &[][..],
            &["-c", "-o", "compression_type=zlib"],
            &["-c", "-o", "compression_type=zstd"],
        ] {
            let size = format!("cluster_size={cluster_size}");
            let bench = bench_with(6 * MIB + 512, &[&["-o", &size], compression].concat())?;
            bench.judge_as("disk.qcow2", "qcow2", &[Target::QCOW2, Target::RAW, Target::VHDX])?;
            bench.qemu_img(&["compare", "disk.img", "disk.qcow2.out.qcow2"])?;
        }
    }
    Ok(())
}

#[test]
fn version_2() -> Result<()> {
    for args in [
        &["-o", "compat=0.10"][..],
        &["-c", "-o", "compat=0.10,cluster_size=4096"],
    ] {
        let bench = bench_with(5 * MIB, args)?;
        bench.judge("disk.qcow2", "qcow2")?;
        let inspection = inspect(&*source(&bench.path("disk.qcow2"))?)?;
        let qcow2 = inspection.qcow2.expect("it is qcow2");
        ensure!((qcow2.version, qcow2.compat) == (2, "0.10"), "{qcow2:?}");
    }
    Ok(())
}

#[test]
fn extended_l2_entries() -> Result<()> {
    for cluster_size in ["16384", "65536", "2M"] {
        let bench = Bench::new()?;
        let options = format!("extended_l2=on,cluster_size={cluster_size}");
        bench.qemu_img(&["create", "-f", "qcow2", "-o", &options, "disk.qcow2", "9M"])?;
        bench.qemu_io(
            "disk.qcow2",
            &[
                "write -P 1 0 512",
                "write -P 2 6k 2k",
                "write -P 3 1M 300k",
                "write -z 1100k 64k",
                "write -P 4 4M 2M",
                "discard 5M 128k",
                "write -z 4100k 2k",
                "write -P 5 9436672 512",
            ],
        )?;
        bench.judge("disk.qcow2", "qcow2")?;
        let bench = bench_with(5 * MIB, &["-c", "-o", &options])?;
        bench.judge("disk.qcow2", "qcow2")?;
    }
    Ok(())
}

#[test]
fn odd_sizes_and_nothing_at_all() -> Result<()> {
    for size in ["0", "512", "1536", "65536", "1000k", "5000000"] {
        let bench = Bench::new()?;
        bench.qemu_img(&["create", "-f", "qcow2", "disk.qcow2", size])?;
        bench.judge("disk.qcow2", "qcow2")?;
        if size != "0" {
            bench.qemu_io("disk.qcow2", &["write -P 7 0 512"])?;
            bench.judge("disk.qcow2", "qcow2")?;
        }
    }
    Ok(())
}

#[test]
fn zero_clusters_and_preallocation() -> Result<()> {
    for preallocation in ["off", "metadata", "falloc", "full"] {
        let bench = Bench::new()?;
        let option = format!("preallocation={preallocation}");
        bench.qemu_img(&["create", "-f", "qcow2", "-o", &option, "disk.qcow2", "4M"])?;
        bench.qemu_io(
            "disk.qcow2",
            &[
                "write -P 9 0 1M",
                "write -z 256k 256k",
                "write -z -u 700k 128k",
                "write -z 3M 64k",
            ],
        )?;
        bench.judge("disk.qcow2", "qcow2")?;
    }
    Ok(())
}

#[test]
fn allocated_clusters_in_holes_of_the_file_are_zeros() -> Result<()> {
    let bench = Bench::new()?;
    bench.qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-o",
        "preallocation=metadata",
        "disk.qcow2",
        "4M",
    ])?;
    bench.qemu_io("disk.qcow2", &["write -P 9 1M 64k"])?;
    let bytes = std::fs::read(bench.path("disk.qcow2"))?;
    let sparse = plan(
        open(Arc::new(Sparse {
            bytes: bytes.clone(),
            grain: 65536,
        }))?
        .into(),
        &Target::RAW,
    )?;
    ensure!(sparse.totals().copied == 65536, "{:?}", sparse.totals());
    let dense = plan(open(Arc::new(bytes))?.into(), &Target::RAW)?;
    ensure!(dense.totals().copied == 4 << 20, "{:?}", dense.totals());
    Ok(())
}

#[test]
fn the_last_cluster_may_be_short() -> Result<()> {
    for options in ["cluster_size=64k", "extended_l2=on,cluster_size=64k"] {
        let bench = Bench::new()?;
        bench.qemu_img(&["create", "-f", "qcow2", "-o", options, "disk.qcow2", "4M"])?;
        bench.qemu_io("disk.qcow2", &["write -P 9 1M 128k"])?;
        let path = bench.path("disk.qcow2");
        let file = std::fs::OpenOptions::new().write(true).open(&path)?;
        for cut in [1, 1000, 30_000] {
            file.set_len(file.metadata()?.len() - cut)?;
            bench.judge("disk.qcow2", "qcow2")?;
        }
    }
    Ok(())
}

#[test]
fn snapshots_and_bitmaps_are_left_behind_with_a_warning() -> Result<()> {
    let bench = bench_with(4 * MIB, &[])?;
    bench.qemu_img(&["snapshot", "-c", "before", "disk.qcow2"])?;
    bench.qemu_io("disk.qcow2", &["write -P 3 0 100k", "write -P 4 2M 1k"])?;
    bench.qemu_img(&["snapshot", "-c", "between", "disk.qcow2"])?;
    bench.qemu_img(&["bitmap", "--add", "disk.qcow2", "b0"])?;
    bench.qemu_io("disk.qcow2", &["write -P 5 1M 70k"])?;
    bench.judge("disk.qcow2", "qcow2")?;
    let inspection = inspect(&*source(&bench.path("disk.qcow2"))?)?;
    ensure!(inspection.refusal.is_none(), "{inspection:?}");
    ensure!(
        inspection.warnings
            == [
                "2 internal snapshots, which a conversion leaves behind",
                "persistent dirty bitmaps, which a conversion leaves behind"
            ],
        "{:?}",
        inspection.warnings
    );
    let made = inspect(&*source(&bench.path("disk.qcow2.out.qcow2"))?)?;
    ensure!(made.warnings.is_empty() && made.qcow2.is_some_and(|qcow2| qcow2.snapshot_count == 0));
    Ok(())
}

#[test]
fn refcount_widths_and_lazy_refcounts() -> Result<()> {
    for options in [
        "refcount_bits=1",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "cluster_size=512,refcount_bits=8",
    ] {
        bench_with(3 * MIB, &["-o", options])?.judge("disk.qcow2", "qcow2")?;
    }
    Ok(())
}

#[test]
fn fragmented_images_map_in_guest_order() -> Result<()> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "qcow2", "-o", "cluster_size=4096", "disk.qcow2", "4M"])?;
    // Backwards, so that no two neighbours are neighbours in the file.
    let writes: Vec<String> = (0..200)
        .rev()
        .map(|i| format!("write -P {} {}k 4k", i % 255 + 1, i * 8))
        .collect();
    bench.qemu_io("disk.qcow2", &writes.iter().map(String::as_str).collect::<Vec<_>>())?;
    bench.judge("disk.qcow2", "qcow2")
}

#[test]
fn a_compressed_cluster_is_decoded_once() -> Result<()> {
    let bench = bench_with(6 * MIB, &["-c", "-o", "cluster_size=2M"])?;
    let plan = plan(bench.open("disk.qcow2")?, &Target::QCOW2)?;
    let decodes: Vec<_> = plan
        .segments()
        .filter(|segment| matches!(segment, Ok(Segment::Decode { .. })))
        .collect::<Result<_, _>>()?;
    ensure!(decodes.len() <= 3, "{decodes:?}");
    let whole = |segment: &Segment| {
        matches!(
            segment,
            Segment::Decode {
                codec: Codec::Deflate,
                len: 0x20_0000,
                skip: 0,
                take: 0x20_0000,
                ..
            }
        )
    };
    ensure!(decodes.iter().all(whole), "{decodes:?}");
    Ok(())
}

#[test]
fn contiguous_clusters_are_one_copy() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("disk.img", &noise(5, 40 * MIB))?;
    bench.qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-S",
        "0",
        "-m",
        "1",
        "disk.img",
        "disk.qcow2",
    ])?;
    let plan = plan(bench.open("disk.qcow2")?, &Target::RAW)?;
    let count = plan.segments().count();
    ensure!(count <= 3, "{count} segments");
    Ok(())
}

#[test]
fn inspection_says_what_the_header_says() -> Result<()> {
    let bench = bench_with(4 * MIB, &["-c", "-o", "compression_type=zstd,cluster_size=128k"])?;
    let inspection = inspect(&*source(&bench.path("disk.qcow2"))?)?;
    ensure!(inspection.format == Format::Qcow2 && inspection.virtual_size == Some(4 << 20));
    let qcow2 = inspection.qcow2.clone().expect("it is qcow2");
    ensure!(qcow2.cluster_size == 131_072 && qcow2.compression_type == Some(Codec::Zstd) && qcow2.refcount_bits == 16);
    ensure!(qcow2.compressed_size.is_some_and(|size| size > 0) && inspection.allocated_size >= qcow2.compressed_size);
    let json = serde_json::to_value(&inspection)?;
    ensure!(
        json["format"] == "qcow2" && json["evidence"] == "magic" && json["qcow2"]["compression_type"] == "zstd",
        "{json}"
    );
    ensure!(json["refusal"].is_null());
    Ok(())
}

#[test]
fn segments_can_be_had_again_and_elsewhere() -> Result<()> {
    let bench = bench_with(4 * MIB, &["-c"])?;
    let plan = plan(bench.open("disk.qcow2")?, &Target::QCOW2)?;
    let first: Vec<Segment> = plan.segments().collect::<Result<_, _>>()?;
    let elsewhere = plan.clone();
    let second = std::thread::spawn(move || elsewhere.segments().collect::<Result<Vec<_>, _>>());
    ensure!(second.join().expect("no panic")? == first);
    let image: Arc<dyn lithos_convert::Image> = bench.open("disk.qcow2")?;
    ensure!(image.map(image.virtual_size()).is_err());
    Ok(())
}
