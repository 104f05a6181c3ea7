//! A library to preload (`LD_PRELOAD`) that forgets what a program has not synced, as a power cut does.
//!
//! It stands between a program and the C library of Linux, for files below one folder. Everything is really done, at once;
//! beside it, a journal keeps what it takes to undo it, until the program syncs. When the power is cut, a part of the
//! journal that dice choose is undone, and the process ends with status `cut::STATUS`. What is then on disk is
//! what a machine could have found after the power came back.
//!
//! # What survives
//!
//! | what | survives for certain once |
//! | --- | --- |
//! | bytes and length of a file | `fsync` or `fdatasync` of the file |
//! | a name: made, linked, removed, renamed | `fsync` of the folder that holds it |
//!
//! This is what POSIX promises and no more. File systems do more, such as keeping the name of a new file that was synced, so
//! a program that passes here passes on all of them. Before that, of each file the first so many writes survive, the last
//! of them perhaps in part, and of each folder the first so many changes; dice choose how many, and now and then all or none
//! at all. A rename within a folder is one change; from folder to folder it is two, one in each.
//!
//! # Settings, all from the environment
//!
//! | variable | meaning |
//! | --- | --- |
//! | `POWERCUT_DIR` | the folder, as the program spells it, absolute and without symbolic links; nothing is done without it |
//! | `POWERCUT_SEED` | a number that decides what the dice say |
//! | `POWERCUT_AT` | cut the power at the call of this number; counted are calls that change or sync something below the folder |
//! | `POWERCUT_FAIL` | calls that fail, such as `eio@10:12,sync@3`; see `fault` |
//! | `POWERCUT_IGNORE` | syncs that are reported as done and do nothing, such as `data:/blobs/,dir:`: the kind, and a part of the path |
//! | `POWERCUT_CONTROL` | a file of at least 16 bytes; see `fault::Control` |
//! | `POWERCUT_SYNC` | `real` syncs the disk too; otherwise a sync only ends the journal's entries, which is quicker and, as nobody cuts the real power, the same |
//!
//! The signal `SIGUSR2` cuts the power as well. A mistake in these ends the program at its start: a test whose faults are
//! silently left out proves nothing.
//!
//! # What it cannot see
//!
//! System calls that do not go through the C library, writes to mapped memory, `statfs`, standard I/O streams (`fopen`), and children.
//! `strace` shows whether a program makes any of these below the folder; Lithos and RocksDB, as they are set up here, do not.
//! `copy_file_range` and `sendfile` into the folder are refused, so that callers fall back to `write`.
//!
//! | module | holds |
//! | --- | --- |
//! | `interpose` | the functions of the C library that are stood in for |
//! | `journal` | what was done and is not synced |
//! | `cut` | which part of it survives |
//! | `fault` | calls that fail |
//! | `settings` | the environment |
//! | `sys` | system calls, past the C library |

#![cfg(target_os = "linux")]
#![allow(
    unsafe_code,
    reason = "a library that stands in for functions of the C library is made of its pointers; each is passed on to the \
              kernel as it came, or read for as many bytes as the call's contract says"
)]

mod cut;
mod fault;
mod interpose;
mod journal;
mod settings;
mod sys;
