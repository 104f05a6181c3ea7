//! Lithos held against its promises: a server of its own for each test, and the clients people really use.
//!
//! | module | shows |
//! | --- | --- |
//! | `s3` | the cases of the library, one server a family |
//! | `clients` | aws, s3cmd and boto3 |
//! | `convert` | formats made by tags, judged by qemu-img |
//! | `import` | URLs that become objects, and those that must not |
//! | `jobs` | the command and the API |
//! | `zones` | two servers |
//! | `kill` | SIGKILL at random moments |
//! | `heavy` | what has the machine to itself: memory, 2 GiB images, time |

mod clients;
mod convert;
mod heavy;
mod images;
mod import;
mod jobs;
mod kill;
mod origin;
mod s3;
mod zones;
