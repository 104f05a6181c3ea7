//! The programs whose power is cut.

#![allow(clippy::print_stdout, reason = "what a program says is part of how it ends")]

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, OpenOptionsExt},
        },
    },
    path::Path,
};

pub(crate) fn run(name: &str, folder: &Path) {
    match name {
        "append" => append(folder),
        "overwrite" => overwrite(folder),
        "truncate" => truncate(folder),
        "names" => names(folder),
        "order" => order(folder),
        "replace" => replace(folder),
        "move" => moves(folder, false),
        "move and sync" => moves(folder, true),
        "folder" => folders(folder),
        "ways" => ways(folder),
        "count" => count(folder),
        "threads" => threads(folder),
        "calls" => calls(folder),
        "sync again" => sync_again(folder),
        "control" => control(folder),
        "space" => space(folder),
        _ => panic!("there is no program {name}"),
    }
}

fn cut() -> ! {
    // SAFETY: signals this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGUSR2) };
    loop {
        std::thread::park();
    }
}

fn sync(folder: &Path) {
    File::open(folder).unwrap().sync_all().unwrap();
}

/// A file with all that belongs to it synced, but not its name.
fn make(path: &Path, text: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.sync_data().unwrap();
}

fn append(folder: &Path) {
    make(&folder.join("file"), "synced.");
    sync(folder);
    let mut file = OpenOptions::new().append(true).open(folder.join("file")).unwrap();
    for text in ["one.", "two.", "three"] {
        file.write_all(text.as_bytes()).unwrap();
    }
    // Closed is not synced.
    drop(file);
    cut()
}

fn overwrite(folder: &Path) {
    make(&folder.join("file"), "0123456789");
    sync(folder);
    let file = OpenOptions::new().write(true).open(folder.join("file")).unwrap();
    file.write_all_at(b"ab", 2).unwrap();
    file.write_all_at(b"cd", 6).unwrap();
    file.set_len(6).unwrap();
    cut()
}

fn truncate(folder: &Path) {
    make(&folder.join("file"), "first");
    sync(folder);
    fs::write(folder.join("file"), "second").unwrap();
    cut()
}

fn names(folder: &Path) {
    for name in ["kept", "removed", "removed for good"] {
        make(&folder.join(name), "whole");
    }
    sync(folder);
    fs::remove_file(folder.join("removed for good")).unwrap();
    sync(folder);
    make(&folder.join("new"), "whole");
    fs::remove_file(folder.join("removed")).unwrap();
    fs::hard_link(folder.join("kept"), folder.join("linked")).unwrap();
    cut()
}

fn order(folder: &Path) {
    for number in 0..10 {
        make(&folder.join(number.to_string()), "whole");
    }
    cut()
}

fn replace(folder: &Path) {
    make(&folder.join("name"), "old");
    make(&folder.join("temporary"), "new");
    sync(folder);
    fs::rename(folder.join("temporary"), folder.join("name")).unwrap();
    cut()
}

fn moves(folder: &Path, and_sync: bool) {
    for name in ["from", "to"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    sync(folder);
    make(&folder.join("from/file"), "whole");
    sync(&folder.join("from"));
    fs::rename(folder.join("from/file"), folder.join("to/file")).unwrap();
    if and_sync {
        sync(&folder.join("to"));
    }
    cut()
}

fn folders(folder: &Path) {
    for name in ["kept", "removed"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    sync(folder);
    for name in ["kept", "new"] {
        fs::create_dir_all(folder.join(name)).unwrap();
        make(&folder.join(name).join("file"), "whole");
        sync(&folder.join(name));
    }
    fs::remove_dir(folder.join("removed")).unwrap();
    cut()
}

fn ways(folder: &Path) {
    let bytes = b"bytes";
    let names = [
        "write", "writev", "pwrite", "pwritev", "dup", "fcntl", "openat", "creat", "append",
    ];
    for name in names {
        make(&folder.join(name), "");
    }
    sync(folder);
    let open = |name: &str| OpenOptions::new().write(true).open(folder.join(name)).unwrap();
    open("write").write_all(bytes).unwrap();
    let pieces = [IoSlice::new(b"by"), IoSlice::new(b"tes")];
    assert_eq!(open("writev").write_vectored(&pieces).unwrap(), 5);
    open("pwrite").write_all_at(bytes, 0).unwrap();
    let vector = open("pwritev");
    // SAFETY: an `IoSlice` is an `iovec`; files made of new descriptors own them.
    unsafe {
        assert_eq!(libc::pwritev(vector.as_raw_fd(), pieces.as_ptr().cast(), 2, 0), 5);
        File::from_raw_fd(libc::dup(open("dup").as_raw_fd()))
            .write_all(bytes)
            .unwrap();
    }
    open("fcntl").try_clone().unwrap().write_all(bytes).unwrap();
    let at = File::open(folder).unwrap();
    let c_path = |name: &str| CString::new(folder.join(name).as_os_str().as_bytes()).unwrap();
    // SAFETY: the names end in zero bytes; files made of new descriptors own them.
    unsafe {
        let opened = libc::openat(at.as_raw_fd(), c"openat".as_ptr(), libc::O_WRONLY);
        File::from_raw_fd(opened).write_all(bytes).unwrap();
        File::from_raw_fd(libc::creat(c_path("creat").as_ptr(), 0o600))
            .write_all(bytes)
            .unwrap();
    }
    OpenOptions::new()
        .append(true)
        .open(folder.join("append"))
        .unwrap()
        .write_all(bytes)
        .unwrap();
    cut()
}

/// Six calls that are counted.
fn count(folder: &Path) {
    let mut file = File::create(folder.join("file")).unwrap();
    file.write_all(b"one").unwrap();
    file.write_all(b"two").unwrap();
    file.sync_all().unwrap();
    sync(folder);
    file.sync_all().unwrap();
}

fn threads(folder: &Path) {
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                let mut file = File::create(folder.join(thread.to_string())).unwrap();
                sync(folder);
                for number in 0.. {
                    file.write_all(format!("{number}\n").as_bytes()).unwrap();
                    file.sync_data().unwrap();
                    println!("done {thread} {number}");
                    if thread == 1 && number == 50 {
                        cut();
                    }
                }
            });
        }
    });
}

/// What came of a call, in a word.
fn word<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error
            .raw_os_error()
            .map_or_else(|| error.to_string(), |errno| errno.to_string()),
    }
}

fn calls(folder: &Path) {
    let path = folder.join("file");
    let created = File::create(&path);
    let mut file = created.unwrap();
    let text = [b'x'; 1000];
    let mut words = Vec::new();
    for _ in 0..2 {
        let wrote = file.write(&text);
        if wrote.as_ref().is_ok_and(|count| *count < text.len()) {
            words.push("short".to_owned());
        } else {
            words.push(word(wrote));
        }
    }
    words.push(word(file.sync_data()));
    words.push(word(fs::rename(&path, folder.join("other"))));
    words.push(word(file.sync_data()));
    println!("said {}", words.join(","));
}

fn sync_again(folder: &Path) {
    let path = folder.join("file");
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .unwrap();
    file.write_all(b"first.").unwrap();
    file.sync_data().unwrap_err();
    file.write_all(b"second").unwrap();
    file.sync_data().unwrap();
    sync(folder);
    cut()
}

/// What it is told to be free, and then what really is: the same twice.
fn space(folder: &Path) {
    let free = || {
        let path = CString::new(folder.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path ends in a zero byte; all zeros is a valid value, which is then filled.
        unsafe {
            let mut found: libc::statvfs = std::mem::zeroed();
            assert_eq!(libc::statvfs(path.as_ptr(), &raw mut found), 0);
            (found.f_bavail * found.f_frsize) >> 20
        }
    };
    let switch = OpenOptions::new()
        .write(true)
        .open(std::env::var("POWERCUT_CONTROL").unwrap())
        .unwrap();
    let told = free();
    switch.write_all_at(&[0; 4], 4).unwrap();
    println!("said {told},{}", if free() > 7 { "more" } else { "less" });
}

fn control(folder: &Path) {
    let switch = OpenOptions::new()
        .write(true)
        .open(std::env::var("POWERCUT_CONTROL").unwrap())
        .unwrap();
    let path = folder.join("file");
    let mut file = File::create(&path).unwrap();
    let mut words = Vec::new();
    for mode in [0_u8, 1, 2, 3, 0] {
        switch.write_all_at(&[mode], 0).unwrap();
        let mut text = String::new();
        words.push(word(match mode {
            1 => file.write_all(b"x"),
            2 => fs::remove_file(&path),
            _ => File::open(&path)
                .and_then(|mut file| file.read_to_string(&mut text))
                .map(drop),
        }));
    }
    // A folder that is there is found to be there, whatever the disk takes.
    switch.write_all_at(&[2], 0).unwrap();
    words.push(word(fs::create_dir(folder)));
    switch.write_all_at(&[0], 0).unwrap();
    println!("said {}", words.join(","));
}
