//! `lithos convert`: one image file into another format, on this machine and without a server.
//!
//! The output is written beside its place under a temporary name, synced, and only then given its name: what has the name is
//! whole. A process that is killed leaves the temporary file, whose name starts with a dot and ends in `.partial`.

#![expect(clippy::print_stdout, reason = "the summary is what the command is asked for")]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use lithos_convert::{Codec, Plan, ReadAt, Run, RunKind, Segment, Target, decode, open, plan};
use rustix::fs::{CWD, RenameFlags, SeekFrom as SeekTo, copy_file_range, renameat_with, seek};
use rustix::io::Errno;

/// How much is copied between two steps of the progress bar.
const COPY_STEP: u64 = 64 << 20;
/// How much is copied at once where the kernel cannot do it between files by itself.
const COPY_BUFFER_LEN: usize = 1 << 20;

/// Convert a disk image into another format.
///
/// The format of INPUT is found out by its content. Parts that are all zeros take no space in OUTPUT. Internal snapshots are
/// left behind; an image that needs a backing file is refused.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image to read: a file or a block device.
    input: PathBuf,

    /// The file to write.
    output: PathBuf,

    /// The format to make: raw, qcow2, vmdk, vhd, vhd:fixed, vhdx, vhdx:fixed, vdi or vdi:fixed.
    #[arg(long, value_name = "FORMAT")]
    to: Target,

    /// Replace OUTPUT if it exists.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let Args {
        input,
        output,
        to,
        force,
    } = args;
    refuse_output(&output, force)?;
    let source = Arc::new(FileSource::open(&input)?);
    let image = open(source.clone()).with_context(|| format!("cannot convert {}", input.display()))?;
    let from = image.format();
    let plan = plan(image.into(), &to).with_context(|| format!("cannot convert {}", input.display()))?;

    let mut partial = Partial::create(&output)?;
    let progress = progress_bar(plan.size());
    carry_out(&plan, &source, &mut partial, &progress)
        .with_context(|| format!("cannot convert {}", input.display()))?;
    partial.publish(force)?;
    progress.finish_and_clear();

    let totals = plan.totals();
    println!(
        "{} ({from}) -> {} ({to}): disk {}, copied {}, decoded {}, file {}, {:.1?}",
        input.display(),
        output.display(),
        BinaryBytes(plan.virtual_size()),
        BinaryBytes(totals.copied),
        BinaryBytes(totals.decoded),
        BinaryBytes(plan.size()),
        start.elapsed(),
    );
    Ok(())
}

/// Refuses before any work what would be refused at the end.
fn refuse_output(output: &Path, force: bool) -> anyhow::Result<()> {
    match fs::metadata(output) {
        Ok(there) if !there.is_file() => bail!("{} is not a regular file", output.display()),
        Ok(_) if !force => bail!("{} exists; replace it with --force", output.display()),
        _ => Ok(()),
    }
}

fn progress_bar(len: u64) -> ProgressBar {
    // Draws on standard error, and not at all if that is not a terminal.
    let style = ProgressStyle::with_template(
        "{bar:40} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    );
    ProgressBar::new(len).with_style(style.expect("the template is a constant"))
}

/// Writes every segment to its place; zeros are left out, which makes holes of them.
fn carry_out(plan: &Plan, source: &FileSource, out: &mut Partial, progress: &ProgressBar) -> anyhow::Result<()> {
    let mut copier = Copier::new(&source.file, &out.file);
    let mut decoder = Decoder::default();
    let mut offset = 0;
    for segment in plan.segments() {
        let segment = segment?;
        let len = segment.len();
        match segment {
            Segment::Bytes(bytes) => out.file.write_all_at(&bytes, offset)?,
            Segment::Zeros { .. } => {}
            Segment::Copy { source_offset, len } => {
                let mut done = 0;
                while done < len {
                    let step = (len - done).min(COPY_STEP);
                    copier.copy(source_offset + done, offset + done, step)?;
                    done += step;
                    progress.set_position(offset + done);
                }
            }
            Segment::Decode {
                source_offset,
                compressed_len,
                codec,
                len,
                skip,
                take,
            } => {
                let cluster = decoder.decode(source, source_offset, compressed_len, codec, len)?;
                let part = cluster.get(usize::try_from(skip)?..usize::try_from(skip + take)?);
                out.file
                    .write_all_at(part.context("a part outside of its cluster")?, offset)?;
            }
        }
        offset += len;
        progress.set_position(offset);
    }
    out.file.set_len(offset)?;
    Ok(())
}

/// Copies ranges from file to file.
struct Copier<'a> {
    from: &'a File,
    to: &'a File,
    /// Used from when the kernel has refused for the first time.
    buffer: Vec<u8>,
}

impl<'a> Copier<'a> {
    fn new(from: &'a File, to: &'a File) -> Self {
        Self {
            from,
            to,
            buffer: Vec::new(),
        }
    }

    fn copy(&mut self, mut from: u64, mut to: u64, len: u64) -> io::Result<()> {
        let end = to + len;
        while to < end && self.buffer.is_empty() {
            let left = usize::try_from(end - to).unwrap_or(usize::MAX);
            match copy_file_range(self.from, Some(&mut from), self.to, Some(&mut to), left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::TXTBSY) => {
                    self.buffer.resize(COPY_BUFFER_LEN, 0);
                }
                Err(error) => return Err(error.into()),
            }
        }
        while to < end {
            let len = usize::try_from(end - to).unwrap_or(usize::MAX).min(self.buffer.len());
            let buffer = self.buffer.get_mut(..len).unwrap_or_default();
            self.from.read_exact_at(buffer, from)?;
            self.to.write_all_at(buffer, to)?;
            (from, to) = (from + len as u64, to + len as u64);
        }
        Ok(())
    }
}

/// Decodes clusters into a buffer that is used again.
#[derive(Default)]
struct Decoder {
    compressed: Vec<u8>,
    cluster: Vec<u8>,
}

impl Decoder {
    fn decode(
        &mut self,
        source: &FileSource,
        offset: u64,
        compressed_len: u64,
        codec: Codec,
        len: u64,
    ) -> anyhow::Result<&[u8]> {
        self.compressed.resize(usize::try_from(compressed_len)?, 0);
        self.cluster.resize(usize::try_from(len)?, 0);
        source.read_exact_at(&mut self.compressed, offset)?;
        decode(codec, &self.compressed, &mut self.cluster).with_context(|| format!("the cluster at byte {offset}"))?;
        Ok(&self.cluster)
    }
}

/// A file in the making, which goes away unless it is published.
struct Partial {
    file: File,
    path: Option<PathBuf>,
    output: PathBuf,
}

impl Partial {
    fn create(output: &Path) -> anyhow::Result<Self> {
        let name = output
            .file_name()
            .with_context(|| format!("{} does not name a file", output.display()))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        let path = output.with_file_name(partial);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            file,
            path: Some(path),
            output: output.to_owned(),
        })
    }

    /// Syncs the bytes, gives the file its name, and syncs the folder.
    fn publish(mut self, force: bool) -> anyhow::Result<()> {
        let Self { file, path, output } = &mut self;
        let named = path.as_deref().expect("published once");
        file.sync_all()
            .with_context(|| format!("cannot sync {}", named.display()))?;
        rename(named, output, force).with_context(|| format!("cannot create {}", output.display()))?;
        *path = None;
        let folder = output
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)?
            .sync_all()
            .with_context(|| format!("cannot sync {}", folder.display()))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // There is an error on its way already, and nothing to be done about a second one.
            let _ignored = fs::remove_file(path);
        }
    }
}

fn rename(from: &Path, to: &Path, force: bool) -> io::Result<()> {
    if force {
        return fs::rename(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can do without replacing; that nothing was there has been checked, if a while ago.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(from, to),
        renamed => Ok(renamed?),
    }
}

/// A file or block device that knows its holes.
#[derive(Debug)]
pub(crate) struct FileSource {
    file: File,
    size: u64,
    /// The run that was found last: most questions are about neighbours.
    last: Mutex<(Range<u64>, RunKind)>,
}

impl FileSource {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(cannot)?;
        if file.metadata().with_context(cannot)?.is_dir() {
            bail!("{} is a folder", path.display());
        }
        // Unlike the metadata, this knows the size of a block device.
        let size = file.seek(SeekFrom::End(0)).with_context(cannot)?;
        Ok(Self {
            file,
            size,
            last: Mutex::new((0..0, RunKind::Data)),
        })
    }

    fn find_run(&self, offset: u64) -> io::Result<(Range<u64>, RunKind)> {
        match seek(&self.file, SeekTo::Data(offset)) {
            Ok(data) if data > offset => Ok((offset..data.min(self.size), RunKind::Zero)),
            Ok(_) => {
                let hole = seek(&self.file, SeekTo::Hole(offset))?;
                Ok((offset..hole.min(self.size), RunKind::Data))
            }
            Err(Errno::NXIO) => Ok((offset..self.size, RunKind::Zero)),
            // Where holes are not known, all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => Ok((offset..self.size, RunKind::Data)),
            Err(error) => Err(error.into()),
        }
    }
}

impl ReadAt for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.0.contains(&offset) {
            *last = self.find_run(offset)?;
        }
        let (range, kind) = &*last;
        Ok(Run {
            kind: *kind,
            len: range.end - offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn args(folder: &Path, input: &str, output: &str, to: Target, force: bool) -> Args {
        Args {
            input: folder.join(input),
            output: folder.join(output),
            to,
            force,
        }
    }

    /// A disk of 64 MiB with 300 KiB of data.
    fn make_disk(folder: &Path) {
        let file = File::create(folder.join("disk.img")).unwrap();
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
        make_disk(folder);
        run(args(folder, "disk.img", "disk.qcow2", Target::QCOW2, false)).unwrap();
        run(args(folder, "disk.qcow2", "back.img", Target::RAW, false)).unwrap();
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
        make_disk(folder);
        fs::write(folder.join("out"), "precious").unwrap();
        let error = run(args(folder, "disk.img", "out", Target::QCOW2, false)).unwrap_err();
        assert!(
            error.to_string().ends_with("out exists; replace it with --force"),
            "{error}"
        );
        assert_eq!(fs::read(folder.join("out")).unwrap(), b"precious");
        run(args(folder, "disk.img", "out", Target::QCOW2, true)).unwrap();
        assert!(fs::read(folder.join("out")).unwrap().starts_with(b"QFI\xfb"));
        // Even in place: the input is open until the end.
        run(args(folder, "out", "out", Target::RAW, true)).unwrap();
        assert!(fs::read(folder.join("out")).unwrap() == fs::read(folder.join("disk.img")).unwrap());
    }

    #[test]
    fn an_output_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        let partial = Partial::create(&output).unwrap();
        fs::write(&output, "precious").unwrap();
        partial.publish(false).unwrap_err();
        assert_eq!(fs::read(&output).unwrap(), b"precious");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn failure_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make_disk(folder);
        run(args(folder, "disk.img", "disk.qcow2", Target::QCOW2, false)).unwrap();
        // The first data cluster becomes a compressed one that is not: found only when it is decoded.
        let image = OpenOptions::new().write(true).open(folder.join("disk.qcow2")).unwrap();
        image.write_all_at(&[0x40, 0, 0, 0, 0, 0x05, 0, 0], 0x40000).unwrap();
        let error = run(args(folder, "disk.qcow2", "out", Target::RAW, false)).unwrap_err();
        assert!(format!("{error:#}").contains("zlib cluster"), "{error:#}");
        assert_eq!(names(folder), ["disk.img", "disk.qcow2"]);

        fs::write(folder.join("cut"), b"QFI\xfb\0\0\0\x03").unwrap();
        let error = run(args(folder, "cut", "out", Target::RAW, false)).unwrap_err();
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
            run(args(folder, input, output, Target::RAW, false)).unwrap_err();
        }
        assert_eq!(names(folder), ["cut", "disk.img", "disk.qcow2"]);
    }

    #[test]
    fn holes_are_known() {
        let folder = tempfile::tempdir().unwrap();
        make_disk(folder.path());
        let source = FileSource::open(&folder.path().join("disk.img")).unwrap();
        let (mut offset, mut runs) = (0, Vec::new());
        while offset < source.size() {
            let run = source.run_at(offset).unwrap();
            offset += run.len;
            runs.push(run.kind);
        }
        assert_eq!(runs, [RunKind::Data, RunKind::Zero, RunKind::Data, RunKind::Zero]);
        assert_eq!(
            source.run_at(10).unwrap(),
            Run {
                kind: RunKind::Data,
                len: (100 << 10) - 10
            }
        );
    }
}
