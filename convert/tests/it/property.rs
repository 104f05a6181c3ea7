//! What holds for any disk, and for any file.

use std::sync::Arc;

use lithos_convert::{Format, Guest, ReadAt, Target, inspect, open, plan};
use proptest::prelude::*;

use crate::support::{Sparse, build, noise};

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

/// A small but complete image to break: one data cluster of each sort, compressed ones too.
fn seeds() -> Vec<Vec<u8>> {
    static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SEEDS
        .get_or_init(|| {
            let bench = crate::support::Bench::new().expect("a folder");
            let mut disk = vec![0; 300_000];
            disk[1000..70_000].fill(7);
            disk[150_000..160_000].copy_from_slice(&noise(3, 10_000));
            bench.write("disk.img", &disk).expect("a file");
            let options = [
                "cluster_size=512",
                "compression_type=zstd,cluster_size=4096",
                "extended_l2=on,cluster_size=16384",
                "compat=0.10,cluster_size=1024",
            ];
            options
                .iter()
                .flat_map(|options| [(*options, "-c"), (*options, "-q")])
                .map(|(options, flag)| {
                    let args = [
                        "convert",
                        flag,
                        "-f",
                        "raw",
                        "-O",
                        "qcow2",
                        "-o",
                        options,
                        "disk.img",
                        "disk.qcow2",
                    ];
                    bench
                        .qemu_img(&args)
                        .expect("qemu-img, of the Debian package qemu-utils");
                    std::fs::read(bench.path("disk.qcow2")).expect("a file")
                })
                .collect()
        })
        .clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_raw_disk_survives_being_another_format(
        bytes in disks(),
        grain in prop::sample::select(vec![512_usize, 4096, 65536, 100_000]),
        target in prop::sample::select(&Target::ALL[..]),
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
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_broken_image_makes_anything_panic(
        seed in 0_usize..8,
        breaks in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..8),
        len in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = seeds()[seed].clone();
        let header_and_tables = bytes.len().min(8192);
        for (index, value, anywhere) in breaks {
            let range = if anywhere { bytes.len() } else { header_and_tables };
            bytes[index.index(range)] = value;
        }
        if let Some(len) = len {
            bytes.truncate(len.index(bytes.len()));
        }
        let source: Arc<dyn ReadAt> = Arc::new(bytes);
        prop_assert!(inspect(&*source).is_ok());
        for target in Target::ALL {
            let Ok(plan) = open(Arc::clone(&source)).and_then(|image| plan(image.into(), &target)) else { continue };
            let covered: u64 = plan.segments().map(|segment| segment.expect("planned, so without error").len()).sum();
            prop_assert_eq!(covered, plan.size());
            if plan.size() < 4 << 20 {
                let _broken_cluster = build(&plan, &*source);
            }
        }
    }
}
