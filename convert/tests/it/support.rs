//! Images to test with, the carrying out of plans, and QEMU as the judge.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use lithos_convert::{
    ErrorKind, Format, Image, Plan, ReadAt, Run, RunKind, Segment, Target, decode, encode, inspect, open, plan,
};
use tempfile::TempDir;

/// A folder for one test, and the QEMU tools in it.
pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            folder: TempDir::new()?,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `tool` in the folder and returns what it prints.
    pub(crate) fn run(&self, tool: &str, args: &[&str]) -> Result<String> {
        let output = Command::new(tool)
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .with_context(|| format!("{tool} cannot be run; install the Debian package qemu-utils"))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(output.status.success(), "{tool} {args:?}: {}: {said}", output.status);
        Ok(said)
    }

    pub(crate) fn qemu_img(&self, args: &[&str]) -> Result<String> {
        self.run("qemu-img", args)
    }

    /// Runs `qemu-io` commands such as `write -P 0x5a 1M 64k` on an image.
    pub(crate) fn qemu_io(&self, name: &str, commands: &[&str]) -> Result<()> {
        self.qemu_io_as("qcow2", name, commands)
    }

    /// [`qemu_io`](Self::qemu_io) on an image of any format.
    pub(crate) fn qemu_io_as(&self, format: &str, name: &str, commands: &[&str]) -> Result<()> {
        // Nothing here has to outlive a crash, and QEMU syncs after every command.
        let mut args = vec!["-t", "unsafe", "-f", format];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(name);
        if commands.is_empty() {
            return Ok(());
        }
        let said = self.run("qemu-io", &args)?;
        ensure!(
            !said.contains("failed") && !said.contains("rror"),
            "qemu-io {commands:?}: {said}"
        );
        Ok(())
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(std::fs::write(self.path(name), bytes)?)
    }

    pub(crate) fn open(&self, name: &str) -> Result<Arc<dyn Image>> {
        Ok(open(source(&self.path(name))?)?.into())
    }

    /// Converts `from` into `to` by our plan and returns the plan.
    pub(crate) fn convert(&self, from: &str, to: &str, target: Target) -> Result<Plan> {
        let source = source(&self.path(from))?;
        let plan = plan(open(Arc::clone(&source))?.into(), &target)?;
        let out = File::create(self.path(to))?;
        carry_out(&plan, &*source, |bytes, offset| out.write_all_at(bytes, offset))?;
        out.set_len(plan.size())?;
        Ok(plan)
    }

    /// Converts `from` into `to`, whether the target is planned or encoded.
    pub(crate) fn make(&self, from: &str, to: &str, target: Target) -> Result<()> {
        if !target.is_encoded() {
            return self.convert(from, to, target).map(drop);
        }
        let source = source(&self.path(from))?;
        self.write(to, &encoded(&source, target)?)
    }

    /// The disk image in the envelope of a target, if it has one, taken out by the tool that everybody has.
    pub(crate) fn unwrapped(&self, name: &str, target: Target) -> Result<String> {
        let (tool, arguments, entry) = match target.file_format() {
            Format::Gzip if target.extension().ends_with("tar.gz") => ("tar", "-xzOf", Some("disk.raw")),
            Format::Tar => ("tar", "-xOf", Some("image-disk1.vmdk")),
            Format::Gzip => ("gzip", "-dc", None),
            Format::Zstd => ("zstd", "-dc", None),
            _ => return Ok(name.to_owned()),
        };
        let inner = format!("{name}.unwrapped");
        let out = File::create(self.path(&inner))?;
        let status = Command::new(tool)
            .arg(arguments)
            .arg(self.path(name))
            .args(entry)
            .stdout(out)
            .status()
            .with_context(|| format!("{tool} cannot be run; install the Debian package {tool}"))?;
        ensure!(status.success(), "{tool} {arguments} {name}: {status}");
        Ok(inner)
    }

    /// Converts to every target and has QEMU judge each against the source; then back to raw by ourselves.
    pub(crate) fn judge(&self, from: &str, format: &str) -> Result<()> {
        self.judge_as(from, format, &Target::ALL)
    }

    /// [`judge`](Self::judge) for some targets, where a test has many sources that are much alike.
    pub(crate) fn judge_as(&self, from: &str, format: &str, targets: &[Target]) -> Result<()> {
        let raw = format!("{from}.out.raw");
        self.convert(from, &raw, Target::RAW)?;
        let disk = std::fs::read(self.path(&raw))?;
        for target in targets.iter().copied() {
            let to = format!("{from}.out.{}", target.extension());
            self.make(from, &to, target)?;
            let to = self.unwrapped(&to, target)?;
            self.check(&to, target)?;
            self.qemu_img(&["compare", "-f", format, "-F", qemu_format(target), from, &to])
                .with_context(|| format!("{from} as {target}"))?;
            let again = format!("{from}.again.raw");
            self.convert(&to, &again, Target::RAW)?;
            let again = std::fs::read(self.path(&again))?;
            ensure!(
                again.starts_with(&disk) && again.iter().skip(disk.len()).all(|byte| *byte == 0),
                "{from} by way of {target}"
            );
            ensure!(
                again.len() <= disk.len() + 512,
                "{from} as {target}: {} bytes",
                again.len()
            );
        }
        Ok(())
    }

    /// Has `qemu-img check` judge a file, where it knows how to.
    pub(crate) fn check(&self, name: &str, target: Target) -> Result<()> {
        if matches!(target.format(), Format::Raw | Format::Vhd) {
            return Ok(());
        }
        let said = self.qemu_img(&["check", "-f", qemu_format(target), name])?;
        ensure!(said.contains("No errors were found"), "{name} as {target}: {said}");
        Ok(())
    }
}

/// The targets that are planned.
pub(crate) fn planned() -> Vec<Target> {
    Target::ALL.into_iter().filter(|target| !target.is_encoded()).collect()
}

/// The targets that are encoded.
pub(crate) fn encoded_targets() -> Vec<Target> {
    Target::ALL.into_iter().filter(Target::is_encoded).collect()
}

/// The file that encoding `source` as `target` makes.
pub(crate) fn encoded(source: &Arc<dyn ReadAt>, target: Target) -> Result<Vec<u8>> {
    let encoding = encode(open(Arc::clone(source))?.into(), &target, b"seed")?;
    let (mut encoder, mut assembler) = (encoding.encoder(), encoding.assembler());
    let mut body = Vec::new();
    for job in encoding.jobs() {
        assembler.push(&encoder.encode(&job?, &**source)?, &mut body)?;
    }
    let head = assembler.finish(&mut body)?;
    ensure!(
        head.len() as u64 == encoding.head_len(),
        "{target}: a head of {} bytes",
        head.len()
    );
    Ok([head, body].concat())
}

/// What `deploy/bootstrap` prints for a word.
pub(crate) fn bootstrap(word: &str) -> Result<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/bootstrap");
    let output = Command::new(script).arg(word).output().context(script)?;
    ensure!(output.status.success(), "{script} {word}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Where a program is that `deploy/bootstrap test` installs.
pub(crate) fn tools(name: &str) -> Result<PathBuf> {
    let folders = bootstrap("--print-path")?;
    let mut found = folders.split(':').map(|folder| Path::new(folder).join(name));
    let found = found.find(|path| path.exists());
    found.with_context(|| format!("there is no {name} in {folders}; run deploy/bootstrap test"))
}

/// What QEMU calls the format of a target.
pub(crate) fn qemu_format(target: Target) -> &'static str {
    match target.format() {
        Format::Vhd => "vpc",
        format => format.name(),
    }
}

/// A rule that an image has to obey: its name, how to break it, and the kind and reason of the refusal.
pub(crate) type HostileCase = (&'static str, fn(&mut Vec<u8>), ErrorKind, &'static str);

/// Breaks each rule in a copy of a good image, and expects the same refusal from a conversion and from an inspection.
pub(crate) fn hold_rules(format: Format, good: &[u8], cases: &[HostileCase]) -> Result<()> {
    plan_all(good.to_vec()).context("the image that was to be broken")?;
    for (rule, spoil, kind, reason) in cases {
        let mut bytes = good.to_vec();
        spoil(&mut bytes);
        let Err(error) = plan_all(bytes.clone()) else {
            bail!("{rule}: planned")
        };
        let said = error.to_string();
        ensure!(error.kind() == *kind && said.contains(reason), "{rule}: {said}");
        ensure!(said.starts_with(&format!("{format}: ")), "{rule}: {said}");
        let inspection = inspect(&bytes).with_context(|| format!("{rule}: inspection"))?;
        let refusal = inspection.refusal.with_context(|| format!("{rule}: no refusal"))?;
        ensure!(refusal.kind == *kind && refusal.reason == said, "{rule}: {refusal:?}");
    }
    Ok(())
}

fn plan_all(bytes: Vec<u8>) -> Result<Plan, lithos_convert::Error> {
    plan(open(Arc::new(bytes))?.into(), &Target::QCOW2)
}

/// A file, all of it data.
struct FileSource {
    file: File,
    size: u64,
}

impl ReadAt for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

pub(crate) fn source(path: &Path) -> Result<Arc<dyn ReadAt>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok(Arc::new(FileSource { file, size }))
}

/// Bytes that know their runs of zeros, in steps of `grain`, as a store that does not keep zeros does.
pub(crate) struct Sparse {
    pub(crate) bytes: Vec<u8>,
    pub(crate) grain: usize,
}

impl Sparse {
    fn is_zero(&self, grain: usize) -> bool {
        let start = grain * self.grain;
        let end = (start + self.grain).min(self.bytes.len());
        self.bytes
            .get(start..end)
            .is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0))
    }
}

impl ReadAt for Sparse {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.read_exact_at(buf, offset)
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let first = offset / self.grain;
        let zero = self.is_zero(first);
        let count = self.bytes.len().div_ceil(self.grain);
        let next = (first..count)
            .find(|grain| self.is_zero(*grain) != zero)
            .unwrap_or(count);
        let end = (next * self.grain).min(self.bytes.len());
        let kind = if zero { RunKind::Zero } else { RunKind::Data };
        Ok(Run {
            kind,
            len: (end - offset) as u64,
        })
    }
}

/// An image file as large as it claims, of which only the start was written.
pub(crate) struct Hollow {
    pub(crate) start: Vec<u8>,
    pub(crate) size: u64,
    /// Behind the start, every other stretch of so many bytes is known to be a hole; else none is.
    pub(crate) stripe: Option<u64>,
}

impl ReadAt for Hollow {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(buf.len() <= 2 << 20, "a read of {} bytes", buf.len());
        buf.fill(0);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        if let Some(written) = self.start.get(start..) {
            let len = written.len().min(buf.len());
            buf[..len].copy_from_slice(&written[..len]);
        }
        Ok(())
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let written = self.start.len() as u64;
        let (kind, end) = match self.stripe {
            None => (RunKind::Data, self.size),
            Some(_) if offset < written => (RunKind::Data, written),
            Some(stripe) if (offset / stripe).is_multiple_of(2) => (RunKind::Data, (offset / stripe + 1) * stripe),
            Some(stripe) => (RunKind::Zero, (offset / stripe + 1) * stripe),
        };
        let len = end - offset;
        Ok(Run { kind, len })
    }
}

/// The start of a target: all that stands before the data of the disk.
pub(crate) fn start_of(plan: &Plan) -> Result<Vec<u8>> {
    let mut start = Vec::new();
    for segment in plan.segments() {
        match segment? {
            Segment::Bytes(bytes) => start.extend(bytes),
            Segment::Zeros { len } => start.resize(start.len() + usize::try_from(len)?, 0),
            Segment::Copy { .. } | Segment::Decode { .. } => break,
        }
    }
    Ok(start)
}

/// Writes every segment but zeros, and checks that they cover the target exactly.
pub(crate) fn carry_out(
    plan: &Plan,
    source: &dyn ReadAt,
    mut write: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> Result<()> {
    let mut offset = 0;
    for segment in plan.segments() {
        let segment = segment?;
        let len = segment.len();
        ensure!(len > 0, "an empty segment at {offset}");
        match segment {
            Segment::Bytes(bytes) => {
                ensure!(len <= 65536, "{len} bytes in one segment");
                write(&bytes, offset)?;
            }
            Segment::Zeros { .. } => {}
            Segment::Copy { source_offset, len } => {
                let mut buf = vec![0; usize::try_from(len)?];
                source.read_exact_at(&mut buf, source_offset)?;
                write(&buf, offset)?;
            }
            Segment::Decode {
                source_offset,
                compressed_len,
                codec,
                len,
                skip,
                take,
            } => {
                let mut compressed = vec![0; usize::try_from(compressed_len)?];
                source.read_exact_at(&mut compressed, source_offset)?;
                let mut cluster = vec![0; usize::try_from(len)?];
                decode(codec, &compressed, &mut cluster)?;
                let (skip, take) = (usize::try_from(skip)?, usize::try_from(take)?);
                let part = cluster
                    .get(skip..skip + take)
                    .context("a part outside of its cluster")?;
                write(part, offset)?;
            }
        }
        offset += len;
    }
    ensure!(
        offset == plan.size(),
        "segments end at {offset}, the plan at {}",
        plan.size()
    );
    Ok(())
}

/// The target as bytes.
pub(crate) fn build(plan: &Plan, source: &dyn ReadAt) -> Result<Vec<u8>> {
    let mut target = vec![0; usize::try_from(plan.size())?];
    carry_out(plan, source, |bytes, offset| target.write_all_at(bytes, offset))?;
    Ok(target)
}

trait WriteAt {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl WriteAt for Vec<u8> {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let place = self
            .get_mut(start..start + bytes.len())
            .ok_or(io::ErrorKind::WriteZero)?;
        place.copy_from_slice(bytes);
        Ok(())
    }
}

/// Describes a machine whose disk is the file `disk.vmdk`.
pub(crate) const OVF: &str = r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References><File ovf:id="file1" ovf:href="disk.vmdk"/></References>
  <DiskSection><Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="1"/></DiskSection>
</Envelope>
"#;

/// An OVA: [`OVF`], and these files behind it.
pub(crate) fn ova(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [("machine.ovf", OVF.as_bytes())].iter().chain(files) {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, name, *bytes)
            .expect("memory takes everything");
    }
    archive.into_inner().expect("memory takes everything")
}

/// Bytes that look random, the same each time for one seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}
