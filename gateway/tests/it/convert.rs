//! `lithos convert`: pipes, exit codes, what it prints and what it leaves behind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const MIB: usize = 1 << 20;

/// A disk of 9 MiB and a bit: text, and zeros.
pub(crate) fn disk() -> Vec<u8> {
    let mut disk: Vec<u8> = (0_u64..)
        .flat_map(|number| format!("{} ", number.wrapping_mul(0x9e37_79b9) % 10_007).into_bytes())
        .take(9 * MIB + 512)
        .collect();
    disk[3 * MIB..7 * MIB - 100].fill(0);
    disk
}

pub(crate) fn lithos(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lithos"));
    command.current_dir(folder).arg("convert").args(args);
    command
}

pub(crate) fn succeed(command: &mut Command) -> Vec<u8> {
    let Output { status, stdout, stderr } = command.output().expect("it can be run");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    stdout
}

pub(crate) fn fail(command: &mut Command, code: i32, reason: &str) {
    let Output { status, stdout, stderr } = command.output().expect("it can be run");
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "{command:?}: {said}");
    assert!(said.contains(reason), "{said}");
    assert!(stdout.is_empty());
}

/// Runs a tool with `input` on a pipe.
fn piped(command: &mut Command, input: &Path) -> Vec<u8> {
    let mut cat = Command::new("cat")
        .arg(input)
        .stdout(Stdio::piped())
        .spawn()
        .expect("cat");
    let out = succeed(command.stdin(cat.stdout.take().expect("a pipe")));
    assert!(cat.wait().expect("cat").success());
    out
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    names
}

#[test]
fn what_goes_to_a_pipe_is_what_a_file_gets() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("disk.img"), disk()).expect("written");
    succeed(&mut lithos(folder, &["disk.img", "disk.qcow2", "--to", "qcow2:zstd"]));
    for to in ["raw", "raw:gz", "raw:zst", "vmdk:stream"] {
        succeed(&mut lithos(
            folder,
            &["disk.qcow2", "out", "--to", to, "--force", "--seed", "s"],
        ));
        let file = fs::read(folder.join("out")).expect("made");
        let pipe = succeed(&mut lithos(folder, &["disk.qcow2", "-", "--to", to, "--seed", "s"]));
        assert!(file == pipe, "{to}");
        // A file that standard input is redirected from is as good as one that is named.
        let redirected = File::open(folder.join("disk.qcow2")).expect("there");
        let pipe = succeed(lithos(folder, &["-", "-", "--to", to, "--seed", "s"]).stdin(redirected));
        assert!(file == pipe, "{to} from a redirected file");
    }
}

#[test]
fn raw_disks_come_through_a_pipe() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let img = folder.join("disk.img");
    fs::write(&img, disk()).expect("written");
    for to in ["qcow2:zlib", "qcow2:zlib-4k", "qcow2:zstd", "raw"] {
        piped(&mut lithos(folder, &["-", "out", "--to", to, "--force"]), &img);
        succeed(&mut lithos(folder, &["out", "back.img", "--to", "raw", "--force"]));
        assert!(fs::read(folder.join("back.img")).expect("made") == disk(), "{to}");
    }
    for (to, tool) in [("raw:gz", "gzip"), ("raw:zst", "zstd")] {
        fs::write(
            folder.join("out"),
            piped(&mut lithos(folder, &["-", "-", "--to", to]), &img),
        )
        .expect("written");
        let unpacked = piped(Command::new(tool).arg("-dc"), &folder.join("out"));
        assert!(unpacked == disk(), "{to}");
    }
    assert!(piped(&mut lithos(folder, &["-", "-", "--to", "raw"]), &img) == disk());
}

#[test]
fn exit_codes_tell_who_is_at_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("disk.img"), disk()).expect("written");
    fs::write(folder.join("broken"), b"QFI\xfb\0\0\0\x03").expect("written");
    succeed(&mut lithos(folder, &["disk.img", "disk.qcow2", "--to", "qcow2"]));
    let before = names(folder);

    fail(
        &mut lithos(folder, &["absent", "out", "--to", "raw"]),
        1,
        "cannot read absent",
    );
    fail(
        &mut lithos(folder, &["disk.img", "disk.qcow2", "--to", "qcow2"]),
        1,
        "--force",
    );
    fail(
        &mut lithos(folder, &["disk.img", "out", "--to", "qcow2:lz4"]),
        2,
        "qcow2:zlib",
    );
    fail(
        &mut lithos(folder, &["disk.img", "-", "--to", "qcow2:zlib"]),
        2,
        "it needs a file",
    );
    fail(
        &mut lithos(folder, &["broken", "out", "--to", "raw:gz"]),
        3,
        "the file ends inside of the header",
    );

    let through_pipe = |args: &[&str], input: &str, reason: &str| {
        let mut cat = Command::new("cat")
            .arg(folder.join(input))
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat");
        fail(
            lithos(folder, args).stdin(cat.stdout.take().expect("a pipe")),
            2,
            reason,
        );
        // It may have been left alone with the rest.
        let _status = cat.wait();
    };
    through_pipe(&["-", "out", "--to", "raw"], "disk.qcow2", "needs a file, not a pipe");
    through_pipe(&["-", "out", "--to", "vhd"], "disk.img", "INPUT needs to be a file");
    through_pipe(
        &["-", "out", "--to", "vmdk:stream"],
        "disk.img",
        "INPUT needs to be a file",
    );
    assert_eq!(names(folder), before);
}

#[test]
fn a_reader_that_goes_away_and_a_full_disk_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("disk.img"), disk()).expect("written");
    let full = File::options().write(true).open("/dev/full").expect("there");
    for to in ["raw", "raw:gz", "vmdk:stream"] {
        let full = full.try_clone().expect("a copy");
        let status = lithos(folder, &["disk.img", "-", "--to", to])
            .stdout(full)
            .stderr(Stdio::null())
            .status();
        assert_eq!(status.expect("it can be run").code(), Some(1), "{to}");
    }
    assert_eq!(names(folder), ["disk.img"]);
}

#[test]
fn json_says_what_was_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let sparse = File::create(folder.join("disk.img")).expect("made");
    sparse.set_len(64 << 20).expect("long");
    sparse.write_all_at(&[7; 8192], 5 << 20).expect("written");
    let said = succeed(&mut lithos(
        folder,
        &["disk.img", "out", "--to", "qcow2:zlib", "--json"],
    ));
    let said: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
    assert_eq!(said["from"], "raw");
    assert_eq!(said["to"], "qcow2:zlib");
    assert_eq!(said["virtual_size"], 64 << 20);
    assert_eq!(said["file_size"], fs::metadata(folder.join("out")).expect("made").len());
    assert_eq!(said["decoded"], 0);
    assert!(said["seconds"].is_number(), "{said}");
}
