//! `lithos convert`: one image file into another format, on this machine and without a server.
//!
//! The output is written beside its place, synced, and only then given its name: what has the name is
//! whole. Until then it has no name at all where the file system can do that, and goes away with the process however that ends;
//! elsewhere a process that is killed leaves a file whose name starts with a dot and ends in `.partial`.

#![expect(clippy::print_stdout, reason = "the summary is what the command is asked for")]

mod encode;
mod output;
mod pipe;
mod plan;
mod source;
mod unwrapped;
mod zeros;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use lithos_convert::{
    ErrorKind, Format, Image, Limits, ReadAt, Target, Totals, encode_pipe, inspect_declared, open, plan_with_seed,
};
use serde::Serialize;

use self::output::{Partial, Publish};
use self::pipe::PipedDisk;
pub(crate) use self::source::{FileSource, Input};
pub(crate) use self::unwrapped::Unwrapped;
use crate::{auth::fill_random, config::ImageLimits};

/// What goes before the reason where the output is at fault.
const CANNOT_WRITE: &str = "cannot write the output";

/// The exit code of a command that was given wrongly, as clap has it.
const USAGE: u8 = 2;
/// The exit code where INPUT was read and refused.
const REFUSED: u8 = 3;

const EXAMPLES: &str = "\
Examples:
  lithos convert debian.img debian.qcow2 --to qcow2            plain, by copying what is not zeros
  lithos convert debian.img debian.qcow2 --to qcow2:zstd       compressed, on all cores
  lithos convert debian.qcow2 debian.vmdk --to vmdk:stream     for an OVA, or an upload to vSphere
  lithos convert debian.qcow2 - --to raw:gz | ssh host 'gunzip > /dev/vdb'
  curl -sf $URL | lithos convert - debian.qcow2 --to qcow2:zlib
  lithos convert appliance.ova debian.vhd --to profile=azure   out of an archive, rounded up to what the cloud takes
  lithos convert debian.vhdx debian.img --to raw --json | jq .virtual_size

Exit codes:
  0  OUTPUT is whole, and on the disk
  1  a file could not be read or written, or exists
  2  the command is wrong
  3  INPUT is refused: broken, not supported, or it needs another file";

/// Convert a disk image into another format
///
/// The format of INPUT is found out by its content. An image in an envelope (gz, xz, zst, bz2, zip, tar, OVA) is taken out of it,
/// to a file without a name beside OUTPUT where that has to be. Parts that are all zeros take no space in OUTPUT. Internal snapshots are
/// left behind; an image that needs a backing file is refused. OUTPUT has its name only when it is whole.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "Examples and exit codes: --help")]
pub(crate) struct Args {
    /// The image to read: a file, a block device, a pipe, or - for standard input. What comes through a pipe has to be a raw
    /// disk, which can become raw, raw:gz, raw:zst and compressed qcow2; a redirected file can be anything.
    input: PathBuf,

    /// The file to write, or - for standard output: for raw, raw:gz, raw:zst, raw:tar.gz and vmdk:stream
    output: PathBuf,

    /// The format to make: raw, raw:gz, raw:zst, raw:tar.gz, qcow2, qcow2:v2, qcow2:zlib, qcow2:zlib-4k, qcow2:zstd, vmdk,
    /// vmdk:stream, ova, vhd, vhd:fixed, vhdx, vhdx:fixed, vdi or vdi:fixed; or what a cloud takes: profile=aws, azure, gcp,
    /// vsphere, openstack-ceph, hyperv, virtualbox, proxmox or kubevirt
    #[arg(short = 'O', long, value_name = "FORMAT")]
    to: Target,

    /// Replace OUTPUT if it exists
    #[arg(long)]
    force: bool,

    /// Do not wait until OUTPUT is on the disk, as qemu-img does not: a crash of the machine may leave it broken
    #[arg(long)]
    no_sync: bool,

    /// Print what was done as JSON, for programs
    #[arg(long)]
    json: bool,

    /// Make the identifiers in OUTPUT (UUIDs of vdi, vhd and vhdx, the content id of vmdk) from TEXT and the layout of INPUT, so that
    /// they are the same each time; else they are random
    #[arg(long, value_name = "TEXT")]
    seed: Option<String>,

    #[command(flatten)]
    limits: ImageLimits,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let is_pipe = args.output == Path::new("-");
    if let Err(wrong) = check_usage(args, is_pipe) {
        return Ok(say(&wrong, USAGE));
    }
    let done = match convert(args, is_pipe) {
        Ok(done) => done,
        Err(error) if is_refusal(&error) => return Ok(say(&error, REFUSED)),
        Err(error) if error.is::<NeedsFile>() => return Ok(say(&error, USAGE)),
        Err(error) => return Err(error),
    };
    let summary = Summary {
        input: args.input.display().to_string(),
        output: args.output.display().to_string(),
        to: args.to.to_string(),
        seconds: start.elapsed().as_secs_f64(),
        done,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else if is_pipe {
        eprintln!("{}", summary.line());
    } else {
        println!("{}", summary.line());
    }
    Ok(ExitCode::SUCCESS)
}

fn say(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("lithos: {error:#}");
    ExitCode::from(code)
}

/// Whether it was the image that was at fault, and not what it is kept on.
fn is_refusal(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<lithos_convert::Error>());
    causes.any(|cause| cause.kind() != ErrorKind::Io)
}

/// Refuses before any work what cannot be meant.
fn check_usage(args: &Args, is_pipe: bool) -> anyhow::Result<()> {
    args.limits.check()?;
    if !is_pipe {
        return Ok(());
    }
    if !args.to.is_streamed() {
        bail!(
            "{} begins with what is known at its end: it needs a file, not standard output",
            args.to
        );
    }
    if args.json {
        bail!("--json and the image cannot both go to standard output");
    }
    if io::stdout().is_terminal() {
        bail!("an image is nothing for a terminal: redirect the output");
    }
    Ok(())
}

/// What came of a conversion.
#[derive(Debug, Serialize)]
struct Done {
    from: Format,
    /// Bytes, like what follows.
    virtual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    copied: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoded: Option<u64>,
    file_size: u64,
    /// What was left behind, or should be looked at.
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Summary {
    input: String,
    output: String,
    to: String,
    #[serde(flatten)]
    done: Done,
    seconds: f64,
}

impl Summary {
    fn line(&self) -> String {
        let Done {
            from,
            virtual_size,
            copied,
            decoded,
            file_size,
            ..
        } = &self.done;
        let part =
            |what, bytes: &Option<u64>| bytes.map_or(String::new(), |bytes| format!(", {what} {}", BinaryBytes(bytes)));
        format!(
            "{} ({from}) -> {} ({}): disk {}{}{}, file {}, {:.1} s",
            self.input,
            self.output,
            self.to,
            BinaryBytes(*virtual_size),
            part("copied", copied),
            part("decoded", decoded),
            BinaryBytes(*file_size),
            self.seconds,
        )
    }
}

/// Where the image goes.
enum Output {
    File(Partial),
    Pipe(io::Stdout),
}

impl Output {
    fn create(path: &Path, is_pipe: bool) -> anyhow::Result<Self> {
        Ok(if is_pipe {
            Self::Pipe(io::stdout())
        } else {
            Self::File(Partial::create(path)?)
        })
    }

    fn finish(self, args: &Args) -> anyhow::Result<()> {
        match self {
            Self::File(partial) => partial.publish(Publish {
                replace: args.force,
                sync: !args.no_sync,
            }),
            Self::Pipe(mut pipe) => pipe.flush().context(CANNOT_WRITE),
        }
    }
}

fn convert(args: &Args, is_pipe: bool) -> anyhow::Result<Done> {
    let mut args = args.clone();
    if !is_pipe {
        args.output = output::resolve(&args.output, args.force)?;
    }
    let args = &args;
    let limits = args.limits.check()?;
    let source = match Input::open(&args.input)? {
        // What is encoded is read anyway, and zeros are found then.
        Input::File(source) if args.to.is_encoded() => source,
        Input::File(source) => source.finding_zeros(),
        Input::Pipe(mut pipe) => return from_pipe(args, is_pipe, &mut pipe, &limits),
    };
    let cannot = || format!("cannot convert {} to {}", args.input.display(), args.output.display());
    let folder = args.output.parent().filter(|_| !is_pipe);
    let unwrapped = Unwrapped::of(source, folder, &limits).with_context(cannot)?;
    let warnings = warnings(&args.input, &unwrapped).with_context(cannot)?;
    for warning in &warnings {
        eprintln!("lithos: warning: {}: {warning}", args.input.display());
    }
    let done = from_file(args, is_pipe, &Arc::new(unwrapped.image), &limits).with_context(cannot)?;
    Ok(Done { warnings, ..done })
}

/// What an inspection of the image warns of.
fn warnings(input: &Path, unwrapped: &Unwrapped) -> anyhow::Result<Vec<String>> {
    let name = input.file_name().unwrap_or_default().to_string_lossy();
    Ok(inspect_declared(&unwrapped.image, unwrapped.name_inside(&name))?.warnings)
}

fn seed(args: &Args) -> anyhow::Result<Vec<u8>> {
    if let Some(text) = &args.seed {
        return Ok(text.clone().into_bytes());
    }
    let mut bytes = vec![0; 16];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

fn from_file(args: &Args, is_pipe: bool, source: &Arc<FileSource>, limits: &Limits) -> anyhow::Result<Done> {
    let image: Arc<dyn Image> = open(Arc::clone(source) as Arc<dyn ReadAt>)?.into();
    limits.check(&*image)?;
    args.to.check(image.virtual_size(), limits)?;
    let from = image.format();
    let seed = seed(args)?;
    let (virtual_size, totals, file_size) = if args.to.is_encoded() {
        let encoding = lithos_convert::encode(image, &args.to, &seed)?;
        let mut out = Output::create(&args.output, is_pipe)?;
        let progress = progress_bar(encoding.virtual_size());
        let file_size = encode::from_file(&encoding, &**source, &mut out, &progress)?;
        out.finish(args)?;
        progress.finish_and_clear();
        (encoding.virtual_size(), encoding.totals(), file_size)
    } else {
        let plan = plan_with_seed(image, &args.to, &seed)?;
        let mut out = Output::create(&args.output, is_pipe)?;
        let progress = progress_bar(plan.size());
        match &mut out {
            Output::File(partial) => {
                let is_whole = source.start() == 0 && source.file().metadata()?.len() == source.size();
                let is_same = from == Format::Raw && args.to == Target::RAW && is_whole;
                let shared = is_same && share(source.file(), &partial.file);
                if !shared {
                    plan::to_file(&plan, source, &partial.file, &progress)?;
                }
            }
            Output::Pipe(pipe) => plan::to_pipe(&plan, source, pipe, &progress)?,
        }
        out.finish(args)?;
        progress.finish_and_clear();
        (plan.virtual_size(), plan.totals(), plan.size())
    };
    let Totals { copied, decoded, .. } = totals;
    Ok(Done {
        from,
        virtual_size,
        copied: Some(copied),
        decoded: Some(decoded),
        file_size,
        warnings: Vec::new(),
    })
}

/// Makes a file share all blocks of another, which copies nothing; not every file system can.
fn share(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Something that cannot be made out of a pipe, or into one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NeedsFile(String);

/// A raw disk in one pass.
fn from_pipe(args: &Args, is_pipe: bool, pipe: &mut File, limits: &Limits) -> anyhow::Result<Done> {
    let mut disk = PipedDisk::open(pipe, &args.to, limits)?;
    let is_raw = args.to == Target::RAW;
    if !is_raw && (!args.to.is_encoded() || encode_pipe(&args.to).is_err()) {
        let reason = format!(
            "{} begins with what a pipe does not tell: INPUT needs to be a file",
            args.to
        );
        return Err(NeedsFile(reason).into());
    }
    let progress = ProgressBar::no_length().with_style(
        ProgressStyle::with_template("{spinner} {binary_bytes}, {binary_bytes_per_sec}")
            .expect("the template is a constant"),
    );
    let mut out = Output::create(&args.output, is_pipe)?;
    let encoded_size = match (&mut out, is_raw) {
        (Output::File(partial), true) => {
            disk.write_to_file(&partial.file, &progress)?;
            None
        }
        (Output::Pipe(pipe), true) => {
            disk.write_to_pipe(pipe, &progress)?;
            None
        }
        (out, false) => Some(encode::from_pipe(&encode_pipe(&args.to)?, &mut disk, out, &progress)?),
    };
    out.finish(args)?;
    progress.finish_and_clear();
    Ok(Done {
        from: Format::Raw,
        virtual_size: disk.len(),
        copied: None,
        decoded: None,
        file_size: encoded_size.unwrap_or(disk.len()),
        warnings: Vec::new(),
    })
}

fn progress_bar(len: u64) -> ProgressBar {
    // Draws on standard error, and not at all if that is not a terminal.
    let style = ProgressStyle::with_template(
        "{bar:40} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    );
    ProgressBar::new(len).with_style(style.expect("the template is a constant"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn args(folder: &Path, input: &str, output: &str, to: Target, force: bool) -> Args {
        Args {
            input: folder.join(input),
            output: folder.join(output),
            to,
            force,
            no_sync: false,
            json: false,
            seed: None,
            limits: ImageLimits::default(),
        }
    }

    /// What [`run`] says where it does not print it.
    fn run(args: &Args) -> anyhow::Result<Done> {
        convert(args, false)
    }

    /// A disk of 64 MiB with 300 KiB of data.
    pub(super) fn make_disk(path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&vec![0x5a; 100 << 10], 0).unwrap();
        file.write_all_at(&vec![0xa5; 200 << 10], 40 << 20).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn there_and_back_is_the_same_and_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make_disk(&folder.join("disk.img"));
        run(&args(folder, "disk.img", "disk.qcow2", Target::QCOW2, false)).unwrap();
        run(&args(folder, "disk.qcow2", "back.img", Target::RAW, false)).unwrap();
        assert!(fs::read(folder.join("disk.img")).unwrap() == fs::read(folder.join("back.img")).unwrap());
        for name in ["disk.qcow2", "back.img"] {
            let allocated = fs::metadata(folder.join(name)).unwrap().blocks() * 512;
            assert!(allocated < 1 << 20, "{name} takes {allocated}");
        }
        assert_eq!(names(folder), ["back.img", "disk.img", "disk.qcow2"]);
    }

    #[test]
    fn existing_output_is_replaced_only_by_force() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make_disk(&folder.join("disk.img"));
        fs::write(folder.join("out"), "precious").unwrap();
        let error = run(&args(folder, "disk.img", "out", Target::QCOW2, false)).unwrap_err();
        assert!(
            error.to_string().ends_with("out exists; replace it with --force"),
            "{error}"
        );
        assert_eq!(fs::read(folder.join("out")).unwrap(), b"precious");
        run(&args(folder, "disk.img", "out", Target::QCOW2, true)).unwrap();
        assert!(fs::read(folder.join("out")).unwrap().starts_with(b"QFI\xfb"));
        // Even in place: the input is open until the end.
        run(&args(folder, "out", "out", Target::RAW, true)).unwrap();
        assert!(fs::read(folder.join("out")).unwrap() == fs::read(folder.join("disk.img")).unwrap());
    }

    #[test]
    fn failure_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make_disk(&folder.join("disk.img"));
        run(&args(folder, "disk.img", "disk.qcow2", Target::QCOW2, false)).unwrap();
        // The first data cluster becomes a compressed one that is not: found only when it is decoded.
        let image = OpenOptions::new().write(true).open(folder.join("disk.qcow2")).unwrap();
        image.write_all_at(&[0x40, 0, 0, 0, 0, 0x05, 0, 0], 0x40000).unwrap();
        let error = run(&args(folder, "disk.qcow2", "out", Target::RAW, false)).unwrap_err();
        assert!(format!("{error:#}").contains("zlib cluster"), "{error:#}");
        assert!(is_refusal(&error));
        // So it is when encoding has begun already.
        let error = run(&args(folder, "disk.qcow2", "out", Target::QCOW2_ZSTD, false)).unwrap_err();
        assert!(format!("{error:#}").contains("zlib cluster"), "{error:#}");
        assert_eq!(names(folder), ["disk.img", "disk.qcow2"]);

        fs::write(folder.join("cut"), b"QFI\xfb\0\0\0\x03").unwrap();
        let error = run(&args(folder, "cut", "out", Target::RAW, false)).unwrap_err();
        assert!(
            format!("{error:#}").contains("the file ends inside of the header"),
            "{error:#}"
        );
        for (input, output) in [
            ("absent", "out"),
            ("", "out"),
            ("disk.img", "no/folder/out"),
            ("disk.img", ""),
        ] {
            run(&args(folder, input, output, Target::RAW, false)).unwrap_err();
        }
        assert_eq!(names(folder), ["cut", "disk.img", "disk.qcow2"]);
    }

    #[test]
    fn every_target_there_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make_disk(&folder.join("disk.img"));
        let disk = fs::read(folder.join("disk.img")).unwrap();
        for target in Target::ALL {
            let done = run(&args(folder, "disk.img", "out", target, true)).unwrap();
            assert_eq!(
                done.file_size,
                fs::metadata(folder.join("out")).unwrap().len(),
                "{target}"
            );
            if target.file_format() == target.format() {
                run(&args(folder, "out", "back.img", Target::RAW, true)).unwrap();
                assert!(fs::read(folder.join("back.img")).unwrap() == disk, "{target}");
                let allocated = fs::metadata(folder.join("back.img")).unwrap().blocks() * 512;
                assert!(allocated < 1 << 20, "{target}: {allocated}");
            }
        }
    }

    #[test]
    fn what_a_conversion_leaves_behind_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("page.qcow2"), "<html>404</html>").unwrap();
        let done = run(&args(folder, "page.qcow2", "out", Target::QCOW2, false)).unwrap();
        assert_eq!(done.warnings, ["the name says \"qcow2\", the content is raw"]);
        make_disk(&folder.join("disk.img"));
        let done = run(&args(folder, "disk.img", "out", Target::RAW_GZ, true)).unwrap();
        assert!(done.warnings.is_empty(), "{:?}", done.warnings);
        fs::rename(folder.join("out"), folder.join("disk.raw.gz")).unwrap();
        let done = run(&args(folder, "disk.raw.gz", "out", Target::RAW, false)).unwrap();
        assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    }

    #[test]
    fn nothing_is_made_of_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("empty"), "").unwrap();
        fs::write(folder.join("out"), "precious").unwrap();
        for input in ["empty", "/dev/null"] {
            for to in [Target::RAW, Target::QCOW2_ZLIB] {
                let error = run(&args(folder, input, "out", to, true)).unwrap_err();
                assert!(is_refusal(&error), "{error:#}");
            }
        }
        assert_eq!(fs::read(folder.join("out")).unwrap(), b"precious");
    }

    #[test]
    fn identifiers_are_random_or_of_the_seed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make_disk(&folder.join("disk.img"));
        let make = |seed: Option<&str>| {
            let seed = seed.map(str::to_owned);
            run(&Args {
                seed,
                ..args(folder, "disk.img", "out", Target::VDI, true)
            })
            .unwrap();
            fs::read(folder.join("out")).unwrap()
        };
        assert!(make(None) != make(None));
        assert!(make(Some("a")) == make(Some("a")));
        assert!(make(Some("a")) != make(Some("b")));
    }

    #[test]
    fn pipes_are_refused_where_a_file_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let to_pipe = |to, json| {
            let args = Args {
                json,
                ..args(folder.path(), "disk.img", "-", to, false)
            };
            check_usage(&args, true).unwrap_err().to_string()
        };
        assert!(to_pipe(Target::QCOW2_ZLIB, false).contains("needs a file"));
        assert!(to_pipe(Target::VHD_FIXED, false).contains("needs a file"));
        assert!(to_pipe(Target::RAW_GZ, true).contains("--json"));
    }
}
