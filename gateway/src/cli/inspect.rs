//! `lithos inspect`: what a disk image is, on this machine and without a server.

#![expect(clippy::print_stdout, reason = "the inspection is what the command is asked for")]

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use indicatif::BinaryBytes;
use lithos_convert::{Evidence, Inspection, Qcow2Details, inspect};

use super::convert::FileSource;

/// Say what a disk image is: format, sizes, features, and whether it can be converted.
///
/// Everything is found out by content; the name of the file does not matter, and no other file is opened. An image that is
/// broken or refused is inspected as far as it goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image: a file or a block device.
    file: PathBuf,

    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Args { file, json } = args;
    let source = FileSource::open(&file)?;
    let inspection = inspect(&source).with_context(|| format!("cannot inspect {}", file.display()))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&inspection)?);
    } else {
        print!("{}", table(&inspection));
    }
    Ok(())
}

/// A line for everything that is known, names in a column.
fn table(inspection: &Inspection) -> String {
    let mut rows = vec![(
        "format",
        format!("{} ({})", inspection.format, evidence(inspection.evidence)),
    )];
    let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    row("virtual size", inspection.virtual_size.map(size));
    row("allocated", inspection.allocated_size.map(size));
    row("file size", Some(size(inspection.file_size)));
    let contents: Vec<_> = inspection.contents.iter().map(ToString::to_string).collect();
    row("contents", (!contents.is_empty()).then(|| contents.join(", ")));
    if let Some(qcow2) = &inspection.qcow2 {
        for (name, value) in qcow2_rows(qcow2) {
            row(name, value);
        }
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

fn qcow2_rows(qcow2: &Qcow2Details) -> [(&'static str, Option<String>); 10] {
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
        ("cluster size", Some(size(qcow2.cluster_size))),
        ("refcount bits", Some(qcow2.refcount_bits.to_string())),
        ("compression", qcow2.compression_type.map(|codec| codec.to_string())),
        ("compressed", qcow2.compressed_size.filter(|size| *size > 0).map(size)),
        ("features", (!features.is_empty()).then(|| features.join(", "))),
        (
            "snapshots",
            (qcow2.snapshot_count > 0).then(|| qcow2.snapshot_count.to_string()),
        ),
        ("encryption", qcow2.encryption.clone()),
        ("backing file", qcow2.backing_file.clone()),
        ("data file", qcow2.data_file.clone()),
    ]
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

    #[test]
    fn table_says_what_it_knows_and_no_more() {
        let mut disk = vec![0; 1 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let table = table(&inspect(&disk).unwrap());
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
        let table = table(&inspect(&b"QFI\xfb\0\0\0\x03".to_vec()).unwrap());
        assert_eq!(
            table,
            "format           qcow2 (by its magic number)\n\
             file size        8 bytes\n\
             convertible      no: qcow2: corrupt at byte 8: the file ends inside of the header, after 8 bytes\n"
        );
    }
}
