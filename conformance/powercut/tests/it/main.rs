//! Small programs whose power is cut: what they synced is there, what they did not sync may be gone.
//!
//! Each program is a function here, run by this very binary as a child with the library preloaded; [`run`] gives what the
//! folder holds afterwards. Dice decide what is lost, so each program runs with many seeds, and the tests say what must
//! never be, and what must be among the ends.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]
#![allow(
    unsafe_code,
    reason = "calls that the standard library does not make are made through libc"
)]

mod programs;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Runs of each program: what has one chance in eight is missed once in ten thousand times.
const SEEDS: u64 = 70;
const CUT: i32 = 137;

/// What a program left.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    status: i32,
    /// Files and their contents, by paths relative to the folder; folders end in a slash.
    files: BTreeMap<String, Vec<u8>>,
    said: String,
}

impl End {
    fn text(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(|bytes| std::str::from_utf8(bytes).unwrap())
    }
}

fn library() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let folders = this.ancestors().skip(1).take(2);
    let mut found = folders
        .map(|folder| folder.join("liblithos_powercut.so"))
        .filter(|path| path.is_file());
    found.next().expect("cargo builds the library with its tests")
}

/// Runs a program of [`programs`] in a folder of its own.
fn run(program: &str, settings: &[(&str, &str)]) -> End {
    let scratch = TempDir::new().unwrap();
    let folder = scratch.path().join("disk");
    fs::create_dir(&folder).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "program", "--nocapture"]);
    command
        .env("LD_PRELOAD", library())
        .env("POWERCUT_DIR", &folder)
        .env("PROGRAM", program);
    command.envs(settings.iter().copied());
    let output = command.output().unwrap();
    let mut files = BTreeMap::new();
    read(&folder, "", &mut files);
    let said = [output.stdout, output.stderr].concat();
    End {
        status: output.status.code().unwrap_or(-1),
        files,
        said: String::from_utf8_lossy(&said).into_owned(),
    }
}

fn read(folder: &Path, below: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read(&entry.path(), &format!("{name}/"), files);
            files.insert(format!("{name}/"), Vec::new());
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// All ends of a program whose power is cut.
fn ends(program: &str, settings: &[(&str, &str)]) -> Vec<End> {
    let run = |seed: u64| {
        let seed = seed.to_string();
        let end = run(program, &[settings, &[("POWERCUT_SEED", &seed)]].concat());
        assert_eq!(end.status, CUT, "seed {seed}: {end:?}");
        end
    };
    (0..SEEDS).map(run).collect()
}

/// The ends of one file.
fn texts(ends: &[End], name: &str) -> BTreeSet<Option<String>> {
    ends.iter().map(|end| end.text(name).map(str::to_owned)).collect()
}

fn set(texts: &[Option<&str>]) -> BTreeSet<Option<String>> {
    texts.iter().map(|text| text.map(str::to_owned)).collect()
}

/// The child's side: does nothing in an ordinary run of the tests.
#[test]
fn program() {
    if let (Ok(name), Ok(folder)) = (std::env::var("PROGRAM"), std::env::var("POWERCUT_DIR")) {
        programs::run(&name, Path::new(&folder));
    }
}

#[test]
fn synced_bytes_stay_and_later_ones_may_be_lost_or_torn() {
    let texts = texts(&ends("append", &[]), "file");
    for text in &texts {
        let text = text.as_deref().unwrap();
        assert!(
            text.starts_with("synced.") && "synced.one.two.three".starts_with(text),
            "{text}"
        );
    }
    let wanted = set(&[Some("synced."), Some("synced.one.two."), Some("synced.one.two.three")]);
    assert!(texts.is_superset(&wanted), "{texts:?}");
    assert!(texts.len() > 5, "torn writes are missing in {texts:?}");
}

#[test]
fn overwritten_bytes_come_back() {
    let texts = texts(&ends("overwrite", &[]), "file");
    let wanted = ["0123456789", "01ab456789", "01ab45cd89", "01ab45"].map(Some);
    assert!(texts.is_superset(&set(&wanted)), "{texts:?}");
    let torn = ["01a3456789", "01ab45c789"].map(Some);
    assert!(texts.is_subset(&set(&[&wanted[..], &torn[..]].concat())), "{texts:?}");
}

#[test]
fn truncated_files_come_back() {
    let wanted = set(&[Some("first"), Some(""), Some("second")]);
    let texts = texts(&ends("truncate", &[]), "file");
    assert!(texts.is_superset(&wanted), "{texts:?}");
    for text in texts.difference(&wanted) {
        assert!("second".starts_with(text.as_deref().unwrap()), "{text:?}");
    }
}

#[test]
fn names_are_lost_until_their_folder_is_synced() {
    let ends = ends("names", &[]);
    assert_eq!(texts(&ends, "kept"), set(&[Some("whole")]));
    assert_eq!(texts(&ends, "new"), set(&[None, Some("whole")]));
    assert_eq!(texts(&ends, "removed"), set(&[None, Some("whole")]));
    assert_eq!(texts(&ends, "removed for good"), set(&[None]));
    assert_eq!(texts(&ends, "linked"), set(&[None, Some("whole")]));
}

#[test]
fn changes_of_a_folder_survive_in_their_order() {
    for end in ends("order", &[]) {
        let there: Vec<bool> = (0..10).map(|number| end.text(&number.to_string()).is_some()).collect();
        assert!(there.is_sorted_by(|earlier, later| earlier >= later), "{there:?}");
    }
}

#[test]
fn replacing_is_all_or_nothing() {
    let ends = ends("replace", &[]);
    assert_eq!(texts(&ends, "name"), set(&[Some("old"), Some("new")]));
    for end in ends {
        assert_eq!(
            end.text("temporary").is_some(),
            end.text("name") == Some("old"),
            "{end:?}"
        );
    }
}

#[test]
fn moving_between_folders_is_a_change_of_each() {
    let ends = ends("move", &[]);
    let there = |end: &End| (end.text("from/file").is_some(), end.text("to/file").is_some());
    let found: BTreeSet<_> = ends.iter().map(there).collect();
    assert_eq!(found.len(), 4, "{found:?}");
    let ends = self::ends("move and sync", &[]);
    assert_eq!(texts(&ends, "to/file"), set(&[Some("whole")]));
}

#[test]
fn a_folder_that_is_lost_takes_all_with_it() {
    let ends = ends("folder", &[]);
    assert_eq!(texts(&ends, "new/file"), set(&[None, Some("whole")]));
    assert_eq!(texts(&ends, "kept/file"), set(&[Some("whole")]));
    assert_eq!(texts(&ends, "removed/"), set(&[None, Some("")]));
}

#[test]
fn all_ways_to_write_are_seen() {
    let ends = ends("ways", &[]);
    for name in [
        "write", "writev", "pwrite", "pwritev", "dup", "fcntl", "openat", "creat", "append",
    ] {
        let texts = texts(&ends, name);
        assert!(
            texts.contains(&Some(String::new())) && texts.contains(&Some("bytes".into())),
            "{name}: {texts:?}"
        );
    }
}

#[test]
fn the_power_is_cut_at_a_call() {
    for (at, most) in [
        ("1", None),
        ("2", Some("")),
        ("3", Some("one")),
        ("4", Some("onetwo")),
        ("6", Some("onetwo")),
    ] {
        let end = run("count", &[("POWERCUT_AT", at), ("POWERCUT_SEED", "3")]);
        assert_eq!(end.status, CUT);
        assert!(end.text("file").unwrap_or("") <= most.unwrap_or(""), "{at}: {end:?}");
    }
    assert_eq!(run("count", &[("POWERCUT_AT", "6")]).text("file"), Some("onetwo"));
    assert_eq!(run("count", &[("POWERCUT_AT", "7")]).status, 0);
}

#[test]
fn nothing_happens_after_the_cut() {
    for end in ends("threads", &[]) {
        // Each thread syncs a line before it says so; what it said is there.
        for line in end.said.lines().filter(|line| line.starts_with("done ")) {
            let (thread, number) = line["done ".len()..].split_once(' ').unwrap();
            let text = end.text(thread).unwrap();
            assert!(text.contains(&format!("{number}\n")), "{line}: {text:?}");
        }
        assert!(end.said.contains("done "), "{end:?}");
    }
}

#[test]
fn calls_fail_as_told() {
    for (fault, said) in [
        ("eio@2", "ok,5,ok,ok,ok"),
        ("eio@1:2", "5,5,ok,ok,ok"),
        ("enospc@2:9", "28,28,ok,ok,ok"),
        ("sync@1", "ok,ok,5,ok,ok"),
        ("rename@1", "ok,ok,ok,5,ok"),
        ("", "ok,ok,ok,ok,ok"),
    ] {
        let end = run("calls", &[("POWERCUT_FAIL", fault)]);
        assert!(end.said.contains(&format!("said {said}\n")), "{fault}: {end:?}");
    }
    let short = run("calls", &[("POWERCUT_FAIL", "short@1:9"), ("POWERCUT_SEED", "5")]);
    assert!(short.said.contains("said short"), "{short:?}");
}

#[test]
fn a_failed_sync_may_lose_what_later_ones_do_not_bring_back() {
    let texts = texts(&ends("sync again", &[("POWERCUT_FAIL", "sync@1")]), "file");
    assert_eq!(texts, set(&[Some("first.second"), Some("\0\0\0\0\0\0second")]));
}

#[test]
fn syncs_that_are_ignored_keep_nothing() {
    let data = ends("names", &[("POWERCUT_IGNORE", "data:kept")]);
    assert!(texts(&data, "kept").contains(&Some(String::new())));
    let folder = ends("names", &[("POWERCUT_IGNORE", "dir:")]);
    assert!(texts(&folder, "kept").contains(&None));
}

#[test]
fn the_control_file_switches_failures() {
    let control = tempfile::NamedTempFile::new().unwrap();
    fs::write(control.path(), [0; 16]).unwrap();
    let end = run("control", &[("POWERCUT_CONTROL", control.path().to_str().unwrap())]);
    assert!(end.said.contains("said ok,28,30,24,ok,17\n"), "{end:?}");
    let bytes = fs::read(control.path()).unwrap();
    assert_eq!(u64::from_le_bytes(bytes[8..16].try_into().unwrap()), 3);
}

#[test]
fn the_control_file_says_what_is_free() {
    let control = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = [0; 16];
    bytes[4] = 7;
    fs::write(control.path(), bytes).unwrap();
    let end = run("space", &[("POWERCUT_CONTROL", control.path().to_str().unwrap())]);
    assert!(end.said.contains("said 7,more\n"), "{end:?}");
}

#[test]
fn settings_with_mistakes_end_the_program() {
    let end = run("count", &[("POWERCUT_FAIL", "nonsense")]);
    assert_eq!(end.status, 90, "{end:?}");
    assert!(end.said.contains("nonsense") && end.files.is_empty(), "{end:?}");
}
