//! What is on a disk: partitions, file systems, an installed system, and how it would boot.
//!
//! ```text
//! guest's disk ──▶ look: pages within bounds ─┬─▶ mbr, gpt        partitions
//!                                             ├─▶ filesystem      in each of them, or on the whole disk
//!                                             ├─▶ ext ──▶ os      /etc/os-release
//!                                             ├─▶ fat             boot loaders of an EFI system partition
//!                                             └─▶ iso             El Torito
//! ```
//!
//! All of it is for people to see, and nothing is decided by it; but it is read from hostile disks, and so everything is
//! bounded by [`LookLimits`], shared by all who look at one disk. What is broken ends one look with a warning, not the others.

mod ext;
mod fat;
mod filesystem;
mod gpt;
mod iso;
mod look;
mod mbr;
mod ntfs;
mod os;

use serde::Serialize;

pub use filesystem::{FileSystem, FileSystemKind};
pub use os::Os;

use crate::limits::LookLimits;
use crate::{Error, ErrorKind, Image, ReadAt};
use look::{Look, View};

/// How many partitions are listed. GPTs have room for 128 as everybody makes them.
const PARTITION_COUNT_MAX: usize = 128;
/// The names of boot loaders that firmware looks for without being told, as they stand in a folder and as they are shown.
const EFI_LOADERS: [(&[u8; 11], &str); 4] = [
    (b"BOOTX64 EFI", "BOOTX64.EFI"),
    (b"BOOTAA64EFI", "BOOTAA64.EFI"),
    (b"BOOTIA32EFI", "BOOTIA32.EFI"),
    (b"BOOTARM EFI", "BOOTARM.EFI"),
];

/// What is on a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Disk {
    /// How it is divided.
    pub partition_table: Option<PartitionTable>,
    /// The identifier of the GPT.
    pub uuid: Option<String>,
    /// The partitions in the order of their table; with an MBR, logical ones come last and are numbered from 5.
    pub partitions: Vec<Partition>,
    /// What the whole disk is made into: a file system without a partition table, or an ISO image.
    pub file_systems: Vec<FileSystem>,
    /// What would boot, and why that is thought.
    pub boot: Vec<BootReason>,
    /// Boot loaders in the removable media path (`EFI/BOOT`) of an EFI system partition.
    pub efi_loaders: Vec<&'static str>,
    /// The operating system that is installed on the first ext file system that has one.
    pub os: Option<Os>,
}

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartitionTable {
    /// Master boot record.
    Mbr,
    /// GUID partition table.
    Gpt,
    /// A GUID partition table, and a master boot record that lists partitions too.
    HybridGpt,
}

impl PartitionTable {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
            Self::HybridGpt => "hybrid-gpt",
        }
    }
}

/// A partition, as its table has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Partition {
    /// Its number, from 1.
    pub index: u32,
    /// Where it starts, in bytes.
    pub start: u64,
    /// In bytes.
    pub size: u64,
    /// The type GUID in lower case, or for an MBR the type byte such as `0x83`.
    pub kind: String,
    /// Its identifier: a GUID, or for an MBR the disk's signature and the number.
    pub uuid: Option<String>,
    /// The name that a GPT has for it, as it is there: see [`printable`](crate::printable).
    pub name: Option<String>,
    /// Whether it is marked to boot on a BIOS.
    pub active: bool,
    /// What it is made into.
    pub file_system: Option<FileSystem>,
}

/// How a machine boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootMode {
    /// By the code in the first sector.
    Bios,
    /// By a file of an EFI system partition.
    Uefi,
}

impl BootMode {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// That a disk boots, and what says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BootReason {
    /// How.
    pub mode: BootMode,
    /// `active-partition`, `bios-boot-partition`, `efi-system-partition` or `el-torito`.
    pub reason: String,
}

/// Looks at the disk of an image. What is broken, or was not looked at for its size, goes to `warnings`.
///
/// # Errors
///
/// [`Io`](ErrorKind::Io) if the source cannot be read; nothing else.
pub(crate) fn look_at(
    source: &dyn ReadAt,
    image: &dyn Image,
    limits: LookLimits,
    warnings: &mut Vec<String>,
) -> Result<Disk, Error> {
    let look = Look::new(source, image, limits);
    let mut disk = Disk::default();
    let mut notes = Notes {
        warnings,
        has_boot_code: false,
    };
    let view = look.disk();
    let steps: [Step; 5] = [
        look_at_tables,
        look_at_whole,
        look_at_partitions,
        look_at_boot,
        look_at_os,
    ];
    for step in steps {
        let done = step(view, &mut disk, &mut notes);
        notes.take(done)?;
    }
    Ok(disk)
}

/// One look, which adds to what was found before.
type Step = fn(View<'_>, &mut Disk, &mut Notes<'_>) -> Result<(), Error>;

/// What is noted on the way.
struct Notes<'a> {
    warnings: &'a mut Vec<String>,
    has_boot_code: bool,
}

impl Notes<'_> {
    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Makes a warning of anything but a source that cannot be read.
    fn take(&mut self, done: Result<(), Error>) -> Result<(), Error> {
        match done {
            Err(error) if error.kind() == ErrorKind::Io => Err(error),
            Err(error) => {
                self.warn(error.to_string());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn look_at_tables(view: View<'_>, disk: &mut Disk, notes: &mut Notes<'_>) -> Result<(), Error> {
    let mbr = mbr::read(view, notes.warnings)?;
    let gpt = gpt::read(view, notes.warnings)?;
    notes.has_boot_code = mbr.as_ref().is_some_and(|mbr| mbr.boot_code);
    match (gpt, mbr) {
        (Some(gpt), mbr) => {
            let hybrid = mbr.is_some_and(|mbr| !mbr.partitions.is_empty());
            disk.partition_table = Some(if hybrid {
                PartitionTable::HybridGpt
            } else {
                PartitionTable::Gpt
            });
            disk.uuid = Some(gpt.uuid);
            disk.partitions = gpt.partitions;
        }
        (None, Some(mbr)) => {
            if mbr.protective {
                notes.warn("the MBR stands for a GPT that is not there".to_owned());
            }
            disk.partition_table = Some(mbr.table);
            disk.partitions = mbr.partitions;
        }
        (None, None) => {}
    }
    check_partitions(view, disk, notes);
    Ok(())
}

/// Warns of partitions that are not on the disk, or share it.
fn check_partitions(view: View<'_>, disk: &mut Disk, notes: &mut Notes<'_>) {
    if disk.partitions.len() > PARTITION_COUNT_MAX {
        let count = disk.partitions.len();
        notes.warn(format!("{count} partitions, of which {PARTITION_COUNT_MAX} are listed"));
        disk.partitions.truncate(PARTITION_COUNT_MAX);
    }
    let mut places = Vec::new();
    for partition in &disk.partitions {
        if view.part(partition.start, partition.size).is_none() {
            notes.warn(format!(
                "partition {} reaches beyond the end of the disk",
                partition.index
            ));
        }
        // An extended partition is there to hold others.
        if !mbr::is_extended(&partition.kind) {
            let end = partition.start.saturating_add(partition.size);
            places.push((partition.start, end, partition.index));
        }
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        if let [(_, end, one), (start, _, other)] = pair
            && start < end
        {
            notes.warn(format!("partitions {one} and {other} overlap"));
        }
    }
}

fn look_at_whole(view: View<'_>, disk: &mut Disk, _: &mut Notes<'_>) -> Result<(), Error> {
    let found = filesystem::find_all(view)?;
    // Behind a partition table there may be what is left of an earlier use of the disk; an ISO image is made to be both.
    let counts = |found: &FileSystem| disk.partition_table.is_none() || found.kind == FileSystemKind::Iso9660;
    disk.file_systems = found.into_iter().filter(counts).collect();
    Ok(())
}

fn look_at_partitions(view: View<'_>, disk: &mut Disk, notes: &mut Notes<'_>) -> Result<(), Error> {
    for partition in &mut disk.partitions {
        let Some(part) = view.part(partition.start, partition.size) else {
            continue;
        };
        if mbr::is_extended(&partition.kind) {
            continue;
        }
        let mut found = filesystem::find_all(part)?.into_iter();
        partition.file_system = found.next();
        if let Some(other) = found.next() {
            let kind = other.kind;
            notes.warn(format!("partition {} looks like {kind} as well", partition.index));
        }
    }
    Ok(())
}

fn look_at_boot(view: View<'_>, disk: &mut Disk, notes: &mut Notes<'_>) -> Result<(), Error> {
    let mut add = |mode, reason: &str| {
        disk.boot.push(BootReason {
            mode,
            reason: reason.to_owned(),
        });
    };
    if notes.has_boot_code {
        if disk.partitions.iter().any(|partition| partition.active) {
            add(BootMode::Bios, "active-partition");
        }
        if disk.partitions.iter().any(|partition| partition.kind == gpt::BIOS_BOOT) {
            add(BootMode::Bios, "bios-boot-partition");
        }
    }
    if disk.partitions.iter().any(is_efi_system) {
        add(BootMode::Uefi, "efi-system-partition");
    }
    if disk
        .file_systems
        .iter()
        .any(|found| found.kind == FileSystemKind::Iso9660)
    {
        disk.boot.extend(iso::boot_reasons(view, notes.warnings)?);
    }
    for partition in disk.partitions.iter().filter(|partition| is_efi_system(partition)) {
        let Some(part) = view.part(partition.start, partition.size) else {
            continue;
        };
        let Some(volume) = fat::Volume::open(part)? else {
            continue;
        };
        let names = EFI_LOADERS.map(|(name, _)| name);
        for index in volume.names_in(&[b"EFI        ", b"BOOT       "], &names)? {
            disk.efi_loaders.extend(EFI_LOADERS.get(index).map(|(_, shown)| *shown));
        }
    }
    disk.efi_loaders.sort_unstable();
    disk.efi_loaders.dedup();
    Ok(())
}

fn is_efi_system(partition: &Partition) -> bool {
    partition.kind == gpt::EFI_SYSTEM || partition.kind == format!("{:#04x}", mbr::EFI_SYSTEM)
}

fn look_at_os(view: View<'_>, disk: &mut Disk, notes: &mut Notes<'_>) -> Result<(), Error> {
    let whole = disk.file_systems.first().map(|found| (Some(view), found.kind));
    let parts = disk.partitions.iter().filter_map(|partition| {
        let kind = partition.file_system.as_ref()?.kind;
        Some((view.part(partition.start, partition.size), kind))
    });
    for (part, kind) in whole.into_iter().chain(parts) {
        let Some(part) = part.filter(|_| kind.is_ext()) else {
            continue;
        };
        match os::read(part) {
            Ok(None) => {}
            Ok(found) => {
                disk.os = found;
                return Ok(());
            }
            Err(error) => notes.take(Err(error))?,
        }
    }
    Ok(())
}
