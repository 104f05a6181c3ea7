//! From every image that QEMU makes, and from a real ISO, to everything that `lithos convert` makes, judged by QEMU.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::convert::{lithos, succeed};

const MIB: u64 = 1 << 20;

/// All targets beside the profiles: what QEMU calls the format that is inside, and whether `qemu-img check` knows it.
const TARGETS: [(&str, &str, bool); 18] = [
    ("raw", "raw", false),
    ("raw:gz", "raw", false),
    ("raw:zst", "raw", false),
    ("raw:tar.gz", "raw", false),
    ("qcow2", "qcow2", true),
    ("qcow2:v2", "qcow2", true),
    ("qcow2:zlib", "qcow2", true),
    ("qcow2:zlib-4k", "qcow2", true),
    ("qcow2:zstd", "qcow2", true),
    ("vmdk", "vmdk", true),
    ("vmdk:stream", "vmdk", true),
    ("ova", "vmdk", true),
    ("vhd", "vpc", false),
    ("vhd:fixed", "vpc", false),
    ("vhdx", "vhdx", true),
    ("vhdx:fixed", "vhdx", true),
    ("vdi", "vdi", true),
    ("vdi:fixed", "vdi", true),
];

/// A disk with noise, text, holes, and an end in the midst of a block of any size. `spread` is how far all that is apart.
fn write_disk(path: &Path, spread: u64) {
    let noise = |seed: u64, len: usize| -> Vec<u8> {
        let mut state = seed | 1;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(len)
        .collect()
    };
    let file = File::create(path).expect("created");
    let end = 5 * spread + 3 * 512;
    file.set_len(end).expect("sized");
    for (offset, bytes) in [
        (0, noise(1, 70_000)),
        (spread + 65_536 + 512, vec![0x5a; 134_000]),
        (2 * spread - 1, vec![0xff; 2]),
        (4 * spread, b"text and ".repeat(30_000)),
        (end - 600, noise(2, 600)),
    ] {
        file.write_all_at(&bytes, offset).expect("written");
    }
}

fn qemu_img(folder: &Path, args: &[&str]) -> String {
    let said = succeed(Command::new("qemu-img").current_dir(folder).args(args));
    String::from_utf8_lossy(&said).into_owned()
}

/// Takes the disk out of the envelope of a target, by the tool that everybody has.
fn unwrapped(folder: &Path, target: &str) -> &'static str {
    let (tool, args): (&str, &[&str]) = match target {
        "raw:gz" => ("gzip", &["-dc", "out"]),
        "raw:zst" => ("zstd", &["-dcq", "out"]),
        "raw:tar.gz" => ("tar", &["-xzOf", "out", "disk.raw"]),
        "ova" => ("tar", &["-xOf", "out", "image-disk1.vmdk"]),
        _ => return "out",
    };
    let inner = File::create(folder.join("inner")).expect("created");
    let mut command = Command::new(tool);
    let status = command.current_dir(folder).args(args).stdout(inner).status();
    assert!(status.expect("it can be run").success(), "{command:?}");
    "inner"
}

/// Converts `source` to `targets`, and has QEMU judge each.
fn judge<'a>(folder: &Path, source: &str, format: &str, targets: impl Iterator<Item = &'a (&'a str, &'a str, bool)>) {
    for (target, made, is_checked) in targets {
        succeed(&mut lithos(
            folder,
            &[source, "out", "--to", target, "--force", "--no-sync"],
        ));
        let out = unwrapped(folder, target);
        if *is_checked {
            let said = qemu_img(folder, &["check", "-f", made, out]);
            assert!(said.contains("No errors were found"), "{source} to {target}: {said}");
        }
        let said = qemu_img(folder, &["compare", "-f", format, "-F", made, source, out]);
        assert!(said.contains("Images are identical"), "{source} to {target}: {said}");
    }
}

/// Makes each variant of a format by QEMU, and all targets of it.
fn judge_variants(format: &str, variants: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    write_disk(&folder.join("disk.img"), MIB);
    for variant in variants {
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        args.extend(variant.split_whitespace());
        args.extend(["disk.img", "source"]);
        qemu_img(folder, &args);
        judge(folder, "source", format, TARGETS.iter());
    }
}

#[test]
fn raw() {
    judge_variants("raw", &[""]);
}

#[test]
fn qcow2_by_cluster_size() {
    judge_variants(
        "qcow2",
        &[
            "-o cluster_size=512",
            "-o cluster_size=4k",
            "-o cluster_size=64k",
            "-o cluster_size=2M",
        ],
    );
}

#[test]
fn qcow2_compressed() {
    judge_variants(
        "qcow2",
        &[
            "-c -o cluster_size=512",
            "-c",
            "-c -o cluster_size=2M",
            "-c -o compression_type=zstd",
            "-c -o compat=0.10,cluster_size=4k",
        ],
    );
}

#[test]
fn qcow2_by_feature() {
    judge_variants(
        "qcow2",
        &[
            "-o compat=0.10",
            "-o extended_l2=on",
            "-o refcount_bits=1",
            "-o lazy_refcounts=on,preallocation=metadata",
        ],
    );
}

#[test]
fn vmdk() {
    judge_variants(
        "vmdk",
        &[
            "-o subformat=monolithicSparse",
            "-o subformat=monolithicSparse,zeroed_grain=on",
            "-o subformat=streamOptimized",
        ],
    );
}

#[test]
fn vhd() {
    judge_variants(
        "vpc",
        &[
            "-o subformat=dynamic",
            "-o subformat=fixed",
            "-o subformat=dynamic,force_size=on",
            "-o subformat=fixed,force_size=on",
        ],
    );
}

#[test]
fn vhdx() {
    judge_variants(
        "vhdx",
        &[
            "-o subformat=dynamic,block_size=1M",
            "-o subformat=dynamic,block_size=32M",
            "-o subformat=dynamic,block_state_zero=off",
            "-o subformat=fixed",
        ],
    );
}

#[test]
fn vdi() {
    judge_variants("vdi", &["-o static=off", "-o static=on"]);
}

/// Of more than 8 GiB, which is mostly holes. What is in envelopes would be unpacked by other tools for minutes; in fixed files QEMU
/// reads all holes, so that once has to do for these.
#[test]
fn large_disks() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    write_disk(&folder.join("disk.img"), 1800 * MIB);
    let targets = || TARGETS.iter().filter(|(target, ..)| !target.starts_with("raw:"));
    judge(folder, "disk.img", "raw", targets());
    for (format, options) in [
        ("qcow2", ""),
        ("qcow2", "-c"),
        ("vmdk", ""),
        ("vmdk", "-o subformat=streamOptimized"),
        ("vpc", "-o force_size=on"),
        ("vhdx", ""),
        ("vdi", ""),
    ] {
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        args.extend(options.split_whitespace());
        args.extend(["disk.img", "source"]);
        qemu_img(folder, &args);
        judge(
            folder,
            "source",
            format,
            targets().filter(|(target, ..)| !target.ends_with(":fixed")),
        );
    }
}

/// An ISO that boots by BIOS and UEFI, from a CD and from a disk.
#[test]
fn a_real_iso() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/bootstrap");
    let iso = succeed(Command::new(script).arg("--print-iso"));
    let iso = String::from_utf8(iso).expect("a path");
    fs::copy(iso.trim_end(), folder.join("boot.iso")).expect("deploy/bootstrap test makes it");
    judge(folder, "boot.iso", "raw", TARGETS.iter());
    let said = succeed(
        Command::new(env!("CARGO_BIN_EXE_lithos"))
            .current_dir(folder)
            .args(["inspect", "boot.iso", "--json"]),
    );
    let said: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
    assert_eq!(said["format"], "raw");
    assert!(said["contents"].to_string().contains("iso9660"), "{said}");
    assert_eq!(said["refusal"], serde_json::Value::Null);
}
