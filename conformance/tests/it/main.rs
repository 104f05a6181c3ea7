//! Lithos held against its promises: a server of its own for each test, and the clients people really use.
//!
//! | module | shows |
//! | --- | --- |
//! | `s3` | the cases of the library, one server a family |
//! | `bounds` | what happens when clients are too many, too slow or too greedy |
//! | `backup` | backup under load, restore, check, reading only |
//! | `clients` | the clients of the library, one server a client |
//! | `damage` | disks that are full or refuse, files that are damaged |
//! | `compact` | that a small slice does not keep a whole image |
//! | `convert` | formats made by tags, judged by qemu-img |
//! | `policy` | images that are not what they are called, bounds on images, the admin API of images |
//! | `import` | URLs that become objects, and those that must not |
//! | `jobs` | the command and the API |
//! | `zones` | two servers |
//! | `lifecycle` | lifecycle rules and object lock, in days that are short |
//! | `users` | users with keys of their own, by the command and with profiles |
//! | `exposition` | `/metrics`, read strictly |
//! | `kill` | SIGKILL at random moments |
//! | `torture` | power cuts and failing disks, and that these tests would see damage |
//! | `races` | many clients at one key |
//! | `heavy` | what has the machine to itself: memory, 2 GiB images, time |

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise: that is its job"
)]
#![allow(clippy::print_stdout, reason = "what was measured is part of the result")]
#![allow(clippy::large_futures, reason = "those of the SDK are, and a test has few of them")]

mod backup;
mod bounds;
mod clients;
mod compact;
mod convert;
mod damage;
mod exposition;
mod heavy;
mod images;
mod import;
mod jobs;
mod kill;
mod lifecycle;
mod origin;
mod policy;
mod races;
mod s3;
mod torture;
mod users;
mod zones;
