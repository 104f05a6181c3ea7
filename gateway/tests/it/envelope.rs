//! `lithos convert` and `lithos inspect` of images in envelopes, their bounds, and what a killed process leaves.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::convert::{disk, fail, lithos, names, succeed};

/// Packs `disk.qcow2` into each envelope, by the libraries of Python and the tool `zstd`.
const PACK: &str = r#"
import bz2, gzip, lzma, subprocess, tarfile, zipfile
image = open("disk.qcow2", "rb").read()
gzip.open("disk.qcow2.gz", "wb").write(image)
lzma.open("disk.qcow2.xz", "wb").write(image)
bz2.open("disk.qcow2.bz2", "wb").write(image)
subprocess.run(["zstd", "-q", "disk.qcow2"], check=True)
for name, method in [("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)]:
    zipfile.ZipFile(name, "w", method).write("disk.qcow2")
tarfile.open("disk.tar", "w").add("disk.qcow2")
tarfile.open("disk.tar.gz", "w:gz").add("disk.qcow2")
gzip.open("thrice.gz", "wb").write(gzip.compress(open("disk.qcow2.gz", "rb").read()))
"#;

fn pack(folder: &Path) {
    fs::write(folder.join("disk.img"), disk()).expect("written");
    succeed(&mut lithos(folder, &["disk.img", "disk.qcow2", "--to", "qcow2"]));
    succeed(&mut lithos(folder, &["disk.img", "disk.ova", "--to", "ova"]));
    succeed(Command::new("python3").current_dir(folder).args(["-c", PACK]));
}

fn inspect(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lithos"));
    command.current_dir(folder).arg("inspect").args(args);
    command
}

#[test]
fn images_are_taken_out_of_every_envelope() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    pack(folder);
    let before = names(folder);
    for (name, envelopes, format) in [
        ("disk.qcow2.gz", &["gzip"][..], "qcow2"),
        ("disk.qcow2.xz", &["xz"], "qcow2"),
        ("disk.qcow2.bz2", &["bzip2"], "qcow2"),
        ("disk.qcow2.zst", &["zstd"], "qcow2"),
        ("stored.zip", &["zip"], "qcow2"),
        ("deflated.zip", &["zip"], "qcow2"),
        ("disk.tar", &["tar"], "qcow2"),
        ("disk.tar.gz", &["gzip", "tar"], "qcow2"),
        ("disk.ova", &["tar"], "vmdk"),
    ] {
        succeed(&mut lithos(folder, &[name, "out", "--to", "raw"]));
        let mut out = fs::read(folder.join("out")).expect("made");
        // A VMDK is as long as its sectors are.
        out.truncate(disk().len());
        assert!(out == disk(), "{name}");
        fs::remove_file(folder.join("out")).expect("there");
        assert_eq!(names(folder), before, "{name}");

        let said = succeed(&mut inspect(folder, &[name, "--json"]));
        let said: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
        assert_eq!(said["envelopes"], serde_json::json!(envelopes), "{name}");
        assert_eq!(said["format"], format, "{name}");
        assert_eq!(said["virtual_size"], disk().len(), "{name}");
        assert_eq!(said["refusal"], serde_json::Value::Null, "{name}");
    }
    let table = succeed(&mut inspect(folder, &["disk.tar.gz"]));
    let table = String::from_utf8(table).expect("text");
    assert!(!table.contains("warning"), "{table}");
    assert!(
        table.starts_with("envelope         gzip\nenvelope         tar\nformat           qcow2"),
        "{table}"
    );
}

#[test]
fn envelopes_that_do_not_open_are_refused_and_described() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    pack(folder);
    fail(
        &mut lithos(folder, &["thrice.gz", "out", "--to", "raw"]),
        3,
        "more envelopes around the image",
    );
    let whole = fs::read(folder.join("disk.qcow2.gz")).expect("there");
    fs::write(folder.join("cut.gz"), &whole[..whole.len() / 2]).expect("written");
    fail(&mut lithos(folder, &["cut.gz", "out", "--to", "raw"]), 3, "gzip");
    let said = succeed(&mut inspect(folder, &["cut.gz", "--json"]));
    let said: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
    assert_eq!(said["format"], "gzip");
    assert_eq!(said["refusal"]["kind"], "corrupt", "{said}");
    assert!(!folder.join("out").exists());
}

#[test]
fn bounds_can_be_chosen() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    pack(folder);
    let convert = |name, flag, value| lithos(folder, &[name, "out", "--to", "raw", flag, value]);
    fail(
        &mut convert("disk.qcow2", "--image-virtual-size-max", "1MiB"),
        3,
        "1048576 are the most",
    );
    fail(
        &mut convert("disk.qcow2.gz", "--image-expanded-max", "1MiB"),
        3,
        "1048576",
    );
    fail(
        &mut convert("disk.tar.gz", "--image-nesting-max", "1"),
        3,
        "more envelopes around the image",
    );
    fail(
        &mut convert("disk.ova", "--image-entries-max", "1"),
        3,
        "more than 1 entries",
    );
    for (name, flag, value, refusal) in [
        (
            "disk.qcow2",
            "--image-virtual-size-max",
            "1MiB",
            "image-virtual-size-max",
        ),
        (
            "disk.qcow2.gz",
            "--image-virtual-size-max",
            "1M",
            "image-virtual-size-max",
        ),
        ("disk.tar", "--image-nesting-max", "0", "image-nesting-max"),
    ] {
        let said = succeed(&mut inspect(folder, &[name, flag, value]));
        let said = String::from_utf8(said).expect("text");
        let row = said.lines().find(|row| row.starts_with("convertible"));
        let row = row.expect("a row");
        assert!(row.contains("no: ") && row.contains(refusal), "{name}: {row}");
    }
    fail(
        &mut convert("disk.qcow2", "--image-nesting-max", "9"),
        2,
        "between 0 and 8",
    );
    succeed(&mut convert("thrice.gz", "--image-nesting-max", "3"));
    assert!(fs::read(folder.join("out")).expect("made") == disk());
}

/// What is written has no name until it is whole, so that SIGKILL leaves nothing.
#[test]
fn a_killed_process_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for to in ["raw", "qcow2:zstd"] {
        let mut process = lithos(folder, &["-", "out", "--to", to])
            .stdin(Stdio::piped())
            .spawn()
            .expect("it can be run");
        let mut pipe = process.stdin.take().expect("a pipe");
        // It has opened its output by the time that it takes more than a pipe and what is read at once can hold.
        let part = disk();
        pipe.write_all(&part).expect("taken");
        pipe.write_all(&part).expect("taken");
        let descriptors = format!("/proc/{}/fd", process.id());
        let begun = Instant::now();
        let writes_here = || {
            let open = fs::read_dir(&descriptors).into_iter().flatten();
            let mut targets = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
            targets.any(|target| target.starts_with(fs::canonicalize(folder).expect("there")))
        };
        while !writes_here() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{to}: it writes nothing");
            sleep(Duration::from_millis(10));
        }
        process.kill().expect("it runs");
        process.wait().expect("it has ended");
        assert!(names(folder).is_empty(), "{to}: {:?}", names(folder));
    }
}
