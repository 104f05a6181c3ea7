//! `lithos inspect`: what a disk image is, on this machine and without a server.

#![expect(clippy::print_stdout, reason = "the inspection is what the command is asked for")]

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use indicatif::BinaryBytes;
use lithos_convert::{
    Declared, Disk, Error, ErrorKind, Evidence, FileSystem, Format, Inspection, Partition, PartitionTable,
    Qcow2Details, Refusal, inspect_declared, printable,
};
use serde::Serialize;

use super::convert::{Input, Unwrapped};
use crate::config::ImageLimits;

/// Say what a disk image is: format, sizes, features, and whether it can be converted.
///
/// Everything is found out by content, and no other file is opened; where the name of the file says something else, there is
/// a warning. An image that is broken or refused is inspected as far as it goes. What is on the disk is shown as well:
/// partitions, file systems, an installed system, and whether it boots by BIOS or UEFI. An image in an envelope (gz, xz, zst,
/// bz2, zip, tar, OVA) is taken out of it first, to a temporary file without a name ($TMPDIR) where that has to be.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image: a file, a block device, or - for what the standard input was redirected from.
    file: PathBuf,

    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    limits: ImageLimits,
}

/// An image, and what it was taken out of.
#[derive(Debug, Serialize)]
struct Report {
    /// The envelopes, the outermost first.
    envelopes: Vec<Format>,
    #[serde(flatten)]
    inspection: Inspection,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let report = look(args).with_context(|| format!("cannot inspect {}", args.file.display()))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table(&report));
    }
    Ok(())
}

fn look(args: &Args) -> anyhow::Result<Report> {
    let Input::File(source) = Input::open(&args.file)? else {
        bail!("it is read here and there: save what comes out of a pipe to a file first");
    };
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let limits = args.limits.check()?;
    let mut outside = inspect_declared(&source, &name)?;
    outside.hold_to(&limits);
    if !outside.format.is_envelope() {
        return Ok(Report {
            envelopes: Vec::new(),
            inspection: outside,
        });
    }
    match Unwrapped::of(source, None, &limits) {
        Ok(Unwrapped { image, envelopes }) => {
            // What is said of the inside is the name without what is said of the envelopes.
            let inside = envelopes
                .iter()
                .fold(&*name, |name, _| name.rsplit_once('.').map_or(name, |(stem, _)| stem));
            let mut inspection = inspect_declared(&image, inside)?;
            inspection.hold_to(&limits);
            inspection.warnings.extend(outside.disagreement(Declared::Name(&name)));
            Ok(Report { envelopes, inspection })
        }
        // An envelope that does not open is described as far as it goes.
        Err(error) => match error.downcast_ref::<Error>() {
            Some(refused) if refused.kind() != ErrorKind::Io => {
                let mut inspection = outside;
                inspection.refusal = Some(Refusal {
                    kind: refused.kind(),
                    reason: refused.to_string(),
                });
                Ok(Report {
                    envelopes: Vec::new(),
                    inspection,
                })
            }
            _ => Err(error),
        },
    }
}

/// A line for everything that is known, names in a column.
fn table(report: &Report) -> String {
    let Report { envelopes, inspection } = report;
    let mut rows = Vec::new();
    let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    for envelope in envelopes {
        row("envelope", Some(envelope.to_string()));
    }
    let format = format!("{} ({})", inspection.format, evidence(inspection.evidence));
    row("format", Some(format));
    row("variant", inspection.variant.map(ToOwned::to_owned));
    row("virtual size", inspection.virtual_size.map(size));
    row("allocated", inspection.allocated_size.map(size));
    row("file size", Some(size(inspection.file_size)));
    row("block size", inspection.block_size.map(size));
    let contents: Vec<_> = inspection.contents.iter().map(ToString::to_string).collect();
    row("contents", (!contents.is_empty()).then(|| contents.join(", ")));
    if let Some(qcow2) = &inspection.qcow2 {
        for (name, value) in qcow2_rows(qcow2) {
            row(name, value);
        }
    }
    for (name, value) in inspection.disk.iter().flat_map(disk_rows) {
        row(name, Some(value));
    }
    for warning in &inspection.warnings {
        row("warning", Some(warning.clone()));
    }
    let refusal = inspection
        .refusal
        .as_ref()
        .map(|refusal| format!("no: {}", refusal.reason));
    row("convertible", Some(refusal.unwrap_or_else(|| "yes".to_owned())));

    let mut text = String::new();
    for (name, value) in rows {
        writeln!(text, "{name:<17}{value}").expect("a string takes everything");
    }
    text
}

fn qcow2_rows(qcow2: &Qcow2Details) -> [(&'static str, Option<String>); 9] {
    let flags = [
        (qcow2.extended_l2, "extended L2 entries"),
        (qcow2.lazy_refcounts, "lazy refcounts"),
        (qcow2.dirty, "dirty"),
        (qcow2.corrupt, "corrupt"),
        (qcow2.bitmaps, "bitmaps"),
    ];
    let features: Vec<_> = flags
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
    [
        ("version", Some(format!("{} (compat {})", qcow2.version, qcow2.compat))),
        ("refcount bits", Some(qcow2.refcount_bits.to_string())),
        ("compression", qcow2.compression_type.map(|codec| codec.to_string())),
        ("compressed", qcow2.compressed_size.filter(|size| *size > 0).map(size)),
        ("features", (!features.is_empty()).then(|| features.join(", "))),
        (
            "snapshots",
            (qcow2.snapshot_count > 0).then(|| qcow2.snapshot_count.to_string()),
        ),
        ("encryption", qcow2.encryption.clone()),
        ("backing file", qcow2.backing_file.as_deref().map(quoted)),
        ("data file", qcow2.data_file.as_deref().map(quoted)),
    ]
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", printable(name))
}

/// What is on the disk.
fn disk_rows(disk: &Disk) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let partition_table = disk.partition_table.map(PartitionTable::name);
    rows.extend(partition_table.map(|table| ("partition table", table.to_owned())));
    rows.extend(disk.partitions.iter().map(|found| ("partition", partition(found))));
    rows.extend(
        disk.file_systems
            .iter()
            .map(|found| ("file system", file_system(found))),
    );
    let os = disk.os.as_ref();
    let name = os.and_then(|os| os.pretty_name.clone().or_else(|| os.id.clone()));
    rows.extend(name.map(|name| ("system", printable(&name))));
    let boots = disk.boot.iter();
    rows.extend(boots.map(|boot| ("boots by", format!("{} ({})", boot.mode.name(), boot.reason))));
    if !disk.efi_loaders.is_empty() {
        let loaders: Vec<_> = disk.efi_loaders.iter().map(|loader| printable(loader)).collect();
        rows.push(("boot loaders", loaders.join(", ")));
    }
    rows
}

fn partition(partition: &Partition) -> String {
    let Partition {
        index,
        start,
        size: len,
        kind,
        ..
    } = partition;
    let mut text = format!("{index}: {} at {start}, type {kind}", size(*len));
    if let Some(name) = &partition.name {
        write!(text, ", named {}", printable(name)).expect("a string takes everything");
    }
    if let Some(found) = &partition.file_system {
        write!(text, ", {}", file_system(found)).expect("a string takes everything");
    }
    text
}

fn file_system(found: &FileSystem) -> String {
    let mut text = found.kind.to_string();
    for (word, value) in [("label", &found.label), ("uuid", &found.uuid)] {
        if let Some(value) = value {
            write!(text, " {word}={}", printable(value)).expect("a string takes everything");
        }
    }
    text
}

fn evidence(evidence: Evidence) -> String {
    match evidence {
        Evidence::Magic => "by its magic number".to_owned(),
        Evidence::Signature(signature) => format!("by its {signature} signature"),
        Evidence::Default => "nothing else was recognised".to_owned(),
    }
}

fn size(bytes: u64) -> String {
    if bytes < 1024 {
        format!("{bytes} bytes")
    } else {
        format!("{} ({bytes} bytes)", BinaryBytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lithos_convert::{ReadAt, inspect};

    fn report(image: &dyn ReadAt) -> Report {
        Report {
            envelopes: Vec::new(),
            inspection: inspect(image).unwrap(),
        }
    }

    #[test]
    fn partitions_and_boot_are_in_the_table() {
        let mut disk = vec![0; 1 << 20];
        // A partition of 64 KiB with XFS, and some code before the table.
        disk[0] = 0xfa;
        disk[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 64, 0, 0, 0, 128, 0, 0, 0]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[32768..32772].copy_from_slice(b"XFSB");
        disk[32876..32880].copy_from_slice(b"data");
        let table = table(&report(&disk));
        let rows: Vec<_> = table
            .lines()
            .filter(|row| row.contains("partition") || row.contains("boots"))
            .collect();
        assert_eq!(
            rows,
            [
                "partition table  mbr",
                "partition        1: 64.00 KiB (65536 bytes) at 32768, type 0x83, xfs label=data",
                "boots by         bios (active-partition)",
            ]
        );
    }

    #[test]
    fn table_says_what_it_knows_and_no_more() {
        let mut disk = vec![0; 1 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let table = table(&report(&disk));
        assert_eq!(
            table,
            "format           raw (by its boot-sector signature)\n\
             virtual size     1.00 MiB (1048576 bytes)\n\
             allocated        1.00 MiB (1048576 bytes)\n\
             file size        1.00 MiB (1048576 bytes)\n\
             contents         boot-sector\n\
             convertible      yes\n"
        );
    }

    #[test]
    fn refusal_is_in_the_table() {
        let table = table(&report(&b"QFI\xfb\0\0\0\x03".to_vec()));
        assert_eq!(
            table,
            "format           qcow2 (by its magic number)\n\
             file size        8 bytes\n\
             convertible      no: qcow2: corrupt at byte 8: the file ends inside of the header, after 8 bytes\n"
        );
    }
}
