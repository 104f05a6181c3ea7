//! What holds for any disk, and for any file.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use lithos_convert::{Content, Format, Guest, Limits, ReadAt, Target, inspect, open, plan, unwrap};
use proptest::prelude::*;

use crate::support::{Sparse, build, encoded, encoded_targets, noise, ova, planned};

/// Disks of up to 1 MiB with a few stretches of data.
fn disks() -> impl Strategy<Value = Vec<u8>> {
    let stretches = proptest::collection::vec((0.0..1.0, 1_usize..200_000, any::<u64>()), 0..6);
    (0_usize..(1 << 20), stretches).prop_map(|(len, stretches)| {
        let mut disk = vec![0; len];
        for (place, stretch, seed) in stretches {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a place in 1 MiB"
            )]
            let start = (place * len as f64) as usize;
            let end = (start + stretch).min(len);
            disk[start..end].copy_from_slice(&noise(seed, end - start));
        }
        disk
    })
}

fn read_back(file: Vec<u8>) -> Vec<u8> {
    let source: Arc<dyn ReadAt> = Arc::new(file);
    let image = open(Arc::clone(&source)).expect("our own image");
    let mut disk = vec![0; usize::try_from(image.virtual_size()).expect("small")];
    Guest::new(source, image)
        .read_exact_at(&mut disk, 0)
        .expect("our own image");
    disk
}

/// An image to break, where its headers and tables are, and how its checksums are made right again.
struct Seed {
    bytes: Vec<u8>,
    tables: Vec<Range<usize>>,
    mend: fn(&mut [u8]),
}

/// Small but complete images: data of each sort, compressed too.
fn seeds() -> &'static [Seed] {
    static SEEDS: std::sync::OnceLock<Vec<Seed>> = std::sync::OnceLock::new();
    SEEDS.get_or_init(|| make_seeds().expect("qemu-img, of the Debian package qemu-utils"))
}

const SEED_COUNT: usize = 17;

fn make_seeds() -> anyhow::Result<Vec<Seed>> {
    let bench = crate::support::Bench::new()?;
    let mut disk = vec![0; 300_032];
    disk[1000..70_000].fill(7);
    disk[150_000..160_000].copy_from_slice(&noise(3, 10_000));
    bench.write("disk.img", &disk)?;
    let make = |format: &str, flag: &str, options: &str| {
        let args = [
            "convert", flag, "-f", "raw", "-O", format, "-o", options, "disk.img", "disk",
        ];
        bench.qemu_img(&args)?;
        anyhow::Ok(std::fs::read(bench.path("disk"))?)
    };
    let mut seeds = Vec::new();
    for options in [
        "cluster_size=512",
        "compression_type=zstd,cluster_size=4096",
        "extended_l2=on,cluster_size=16384",
        "compat=0.10,cluster_size=1024",
    ] {
        for flag in ["-c", "-q"] {
            seeds.push((
                make("qcow2", flag, options)?,
                vec![0..112, 112..8192],
                unmended as fn(&mut [u8]),
            ));
        }
    }
    let options = "subformat=dynamic,force_size=on";
    seeds.push((make("vpc", "-q", options)?, vec![0..70, 512..560, 1536..1540], mend_vhd));
    seeds.push((
        make("vdi", "-q", "static=off")?,
        vec![64..84, 340..460, 512..516],
        unmended,
    ));
    seeds.push((
        make("vdi", "-q", "static=on")?,
        vec![64..84, 340..460, 512..516],
        unmended,
    ));
    let sparse = vec![0..80, 512..900, 10_752..20_480];
    for options in ["subformat=monolithicSparse", "subformat=streamOptimized"] {
        seeds.push((make("vmdk", "-q", options)?, sparse.clone(), unmended));
    }
    let mib = 1 << 20;
    let vhdx = vec![
        0x10000..0x10050,
        0x20000..0x20050,
        0x30000..0x30050,
        2 * mib..2 * mib + 8,
        3 * mib..3 * mib + 192,
        3 * mib + 0x10000..3 * mib + 0x10030,
    ];
    seeds.push((make("vhdx", "-q", "block_size=1M")?, vhdx.clone(), mend_vhdx));
    seeds.push((make("vhdx", "-q", "block_size=1M")?, vhdx, unmended));
    for (subformat, extent) in [
        ("monolithicFlat", "seed-flat.vmdk"),
        ("twoGbMaxExtentSparse", "seed-s001.vmdk"),
    ] {
        let (bytes, tables) = split_seed(&bench, subformat, extent)?;
        seeds.push((bytes, tables, unmended));
    }
    let seed = |(bytes, tables, mend)| Seed { bytes, tables, mend };
    Ok(seeds.into_iter().map(seed).collect())
}

/// An OVA whose disk has its descriptor and its extent in files of their own.
fn split_seed(
    bench: &crate::support::Bench,
    subformat: &str,
    extent: &str,
) -> anyhow::Result<(Vec<u8>, Vec<Range<usize>>)> {
    let options = format!("subformat={subformat}");
    let args = [
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        &options,
        "disk.img",
        "seed.vmdk",
    ];
    bench.qemu_img(&args)?;
    let (text, sectors) = (
        std::fs::read(bench.path("seed.vmdk"))?,
        std::fs::read(bench.path(extent))?,
    );
    let bytes = ova(&[("disk.vmdk", &text), (extent, &sectors)]);
    open(Arc::new(bytes.clone()))?;
    let place = |magic: &[u8]| bytes.windows(magic.len()).position(|window| window == magic);
    let descriptor = place(&text).map(|start| start..start + text.len());
    let header = place(b"KDMV").map_or_else(Vec::new, |start| {
        let parts = [0..80, 10_752..20_480_usize];
        parts.map(|part| start + part.start..start + part.end).to_vec()
    });
    let tables = descriptor.into_iter().chain(header).collect();
    Ok((bytes, tables))
}

fn unmended(_: &mut [u8]) {}

fn mend_vhd(bytes: &mut [u8]) {
    if bytes.len() < 2048 {
        return;
    }
    for (range, field) in [(0..512, 64), (512..1536, 36)] {
        let part = &mut bytes[range];
        part[field..field + 4].fill(0);
        let sum = !part.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        part[field..field + 4].copy_from_slice(&sum.to_be_bytes());
    }
    let end = bytes.len() - 512;
    bytes.copy_within(0..512, end);
}

fn mend_vhdx(bytes: &mut [u8]) {
    for (start, len) in [(0x10000, 4096), (0x20000, 4096), (0x30000, 0x10000), (0x40000, 0x10000)] {
        let Some(part) = bytes.get_mut(start..start + len) else {
            return;
        };
        part[4..8].fill(0);
        let sum = u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, part)).expect("32 bits");
        part[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The image in a tar archive.
fn part_of(file: Vec<u8>) -> Vec<u8> {
    let file: Arc<dyn ReadAt> = Arc::new(file);
    let Some(Content::Part(part)) = unwrap(&file, &Limits::DEFAULT).expect("an archive") else {
        panic!("a tar archive is opened in place");
    };
    part.manifest
        .check(&*file, |_| true)
        .expect("the digests of the manifest");
    let mut bytes = vec![0; usize::try_from(part.len).expect("a small image")];
    file.read_exact_at(&mut bytes, part.offset).expect("a part of the file");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_raw_disk_survives_being_another_format(
        bytes in disks(),
        grain in prop::sample::select(vec![512_usize, 4096, 65536, 100_000]),
        target in prop::sample::select(planned()),
    ) {
        let source: Arc<dyn ReadAt> = Arc::new(Sparse { bytes: bytes.clone(), grain });
        let plan = plan(open(Arc::clone(&source)).unwrap().into(), &target).unwrap();
        let mut disk = read_back(build(&plan, &*source).unwrap());
        let expected = match target.format() {
            Format::Raw => bytes.len(),
            Format::Qcow2 => bytes.len().next_multiple_of(512),
            _ => bytes.len().max(1).next_multiple_of(512),
        };
        prop_assert_eq!(disk.len(), expected);
        disk.truncate(bytes.len());
        prop_assert!(disk == bytes);
    }

    #[test]
    fn any_raw_disk_survives_being_compressed(
        bytes in disks(),
        grain in prop::sample::select(vec![512_usize, 65536, 100_000]),
        target in prop::sample::select(encoded_targets()),
    ) {
        // An empty file of an archive is not taken for an image.
        prop_assume!(!bytes.is_empty() || target != Target::RAW_TAR_GZ);
        let source: Arc<dyn ReadAt> = Arc::new(Sparse { bytes: bytes.clone(), grain });
        let file = encoded(&source, target).unwrap();
        let mut disk = match target.file_format() {
            Format::Gzip => {
                let mut disk = Vec::new();
                flate2::read::MultiGzDecoder::new(&file[..]).read_to_end(&mut disk).unwrap();
                if target == Target::RAW_TAR_GZ {
                    disk = part_of(disk);
                }
                disk
            }
            Format::Zstd => zstd::decode_all(&file[..]).unwrap(),
            Format::Tar => read_back(part_of(file)),
            _ => read_back(file),
        };
        let expected = match target.format() {
            Format::Raw => bytes.len(),
            Format::Qcow2 => bytes.len().next_multiple_of(512),
            _ => bytes.len().max(1).next_multiple_of(512),
        };
        prop_assert_eq!(disk.len(), expected);
        disk.truncate(bytes.len());
        prop_assert!(disk == bytes);
    }

    #[test]
    fn any_image_survives_being_repacked(bytes in disks()) {
        let sector = bytes.len() / 512 * 512;
        let source: Arc<dyn ReadAt> = Arc::new(Sparse { bytes: bytes[..sector].to_vec(), grain: 4096 });
        let once = build(&plan(open(Arc::clone(&source)).unwrap().into(), &Target::QCOW2).unwrap(), &*source).unwrap();
        let source: Arc<dyn ReadAt> = Arc::new(once.clone());
        let twice = build(&plan(open(Arc::clone(&source)).unwrap().into(), &Target::QCOW2).unwrap(), &*source).unwrap();
        prop_assert!(once == twice);
        let raw = build(&plan(open(Arc::clone(&source)).unwrap().into(), &Target::RAW).unwrap(), &*source).unwrap();
        prop_assert!(raw == bytes[..sector]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_broken_image_makes_anything_panic(
        seed in 0..SEED_COUNT,
        breaks in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), any::<bool>()),
            1..8,
        ),
        len in any::<Option<prop::sample::Index>>(),
        target in prop::sample::select(planned()),
    ) {
        let Seed { bytes, tables, mend } = &seeds()[seed];
        let mut bytes = bytes.clone();
        for (part, index, value, anywhere) in breaks {
            let table = tables[part.index(tables.len())].clone();
            let range = if anywhere { 0..bytes.len() } else { table };
            bytes[range.start + index.index(range.len())] = value;
        }
        if let Some(len) = len {
            bytes.truncate(len.index(bytes.len()));
        }
        mend(&mut bytes);
        let source: Arc<dyn ReadAt> = Arc::new(bytes);
        prop_assert!(inspect(&*source).is_ok());
        if let Ok(plan) = open(Arc::clone(&source)).and_then(|image| plan(image.into(), &target)) {
            let covered: u64 = plan.segments().map(|segment| segment.expect("planned, so without error").len()).sum();
            prop_assert_eq!(covered, plan.size());
            if plan.size() < 4 << 20 {
                let _broken_cluster = build(&plan, &*source);
            }
        }
    }
}
