//! From VMDK images of several files in an OVA: such that QEMU made, and such that were put together by hand.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use lithos_convert::{
    Content, Error, ErrorKind, Format, Limits, Mapping, Part, ReadAt, Target, inspect, open, plan, unwrap,
};
use sha2::{Digest, Sha256};

use crate::support::{Bench, OVF, build, encoded, noise, ova, source};

const MIB: usize = 1 << 20;

/// Makes `disk.vmdk` and its extents of `disk.img`, and returns the names of all of them.
fn split(bench: &Bench, subformat: &str) -> Result<Vec<String>> {
    let options = format!("subformat={subformat}");
    bench.qemu_img(&[
        "convert",
        "-O",
        "vmdk",
        "-o",
        &options,
        "-f",
        "raw",
        "disk.img",
        "disk.vmdk",
    ])?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(bench.path(""))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if Path::new(&name)
            .extension()
            .is_some_and(|extension| extension == "vmdk")
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Packs files with `tar`, behind the description of the machine and, if there is any, the manifest.
fn pack(bench: &Bench, files: &[String], manifest: Option<&str>) -> Result<()> {
    bench.write("machine.ovf", OVF.as_bytes())?;
    let mut args = vec!["--format=ustar", "-cf", "disk.ova", "machine.ovf"];
    if let Some(manifest) = manifest {
        bench.write("machine.mf", manifest.as_bytes())?;
        args.push("machine.mf");
    }
    args.extend(files.iter().map(String::as_str));
    bench.run("tar", &args).map(drop)
}

/// The lines of a manifest.
fn digests(bench: &Bench, files: &[String]) -> Result<String> {
    let line = |name: &String| {
        let digest = hex::encode(Sha256::digest(std::fs::read(bench.path(name))?));
        Ok(format!("SHA256({name})= {digest}\n"))
    };
    files.iter().map(line).collect()
}

fn part_of(file: &Arc<dyn ReadAt>) -> Result<Part> {
    match unwrap(file, &Limits::DEFAULT)? {
        Some(Content::Part(part)) => Ok(part),
        other => bail!("an OVA is opened in place, not {other:?}"),
    }
}

/// Converts `disk.ova`, whose digests are checked, and has QEMU compare the results with `disk.img`.
fn judge(bench: &Bench, targets: &[Target]) -> Result<()> {
    let file = source(&bench.path("disk.ova"))?;
    let part = part_of(&file)?;
    ensure!(part.is_whole(file.size()) && part.name == "disk.vmdk", "{part:?}");
    part.manifest.check(&*file, |_| true)?;
    for target in targets.iter().copied() {
        let to = format!("out.{}", target.extension());
        bench.make("disk.ova", &to, target)?;
        bench.check(&to, target)?;
        bench
            .qemu_img(&["compare", "-f", "raw", "-F", target.format().name(), "disk.img", &to])
            .with_context(|| target.to_string())?;
    }
    Ok(())
}

fn inspected(bench: &Bench, virtual_size: u64, block_size: Option<u64>) -> Result<()> {
    let inspection = inspect(&*source(&bench.path("disk.ova"))?)?;
    ensure!(
        (inspection.format, inspection.variant) == (Format::Tar, Some("ova")),
        "{inspection:?}"
    );
    ensure!(inspection.virtual_size == Some(virtual_size), "{inspection:?}");
    ensure!(inspection.block_size == block_size, "{inspection:?}");
    ensure!(
        inspection.refusal.is_none() && inspection.warnings.is_empty(),
        "{inspection:?}"
    );
    ensure!(inspection.allocated_size > Some(0), "{inspection:?}");
    Ok(())
}

#[test]
fn sparse_extents_of_5_gib() -> Result<()> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "raw", "disk.img", "5G"])?;
    // Around the borders at 2 GiB and 4 GiB, and at both ends.
    let writes = [
        "write -P 1 0 512",
        "write -P 2 2097100k 100k",
        "write -P 3 4194303k 2k",
        "write -P 4 5242876k 4k",
    ];
    bench.qemu_io_as("raw", "disk.img", &writes)?;
    let files = split(&bench, "twoGbMaxExtentSparse")?;
    ensure!(
        files == ["disk-s001.vmdk", "disk-s002.vmdk", "disk-s003.vmdk", "disk.vmdk"],
        "{files:?}"
    );
    for manifest in [None, Some(digests(&bench, &files)?)] {
        pack(&bench, &files, manifest.as_deref())?;
        judge(&bench, &[Target::RAW, Target::QCOW2])?;
    }
    inspected(&bench, 5 << 30, Some(64 << 10))?;
    let image = bench.open("disk.ova")?;
    ensure!((image.format(), image.variant()) == (Format::Vmdk, Some("twoGbMaxExtentSparse")));
    Ok(())
}

/// Makes `disk.img` of 20 MiB.
fn small_bench() -> Result<Bench> {
    let bench = Bench::new()?;
    let mut disk = vec![0; 20 * MIB];
    disk[..MIB].copy_from_slice(&noise(1, MIB));
    disk[7 * MIB + 100..7 * MIB + 9000].fill(7);
    disk[20 * MIB - 700..].copy_from_slice(&noise(2, 700));
    bench.write("disk.img", &disk)?;
    Ok(bench)
}

#[test]
fn flat_and_small_disks() -> Result<()> {
    for (subformat, block_size) in [
        ("monolithicFlat", None),
        ("twoGbMaxExtentFlat", None),
        ("twoGbMaxExtentSparse", Some(64 << 10)),
    ] {
        let bench = small_bench()?;
        let files = split(&bench, subformat)?;
        ensure!(files.len() == 2, "{files:?}");
        pack(&bench, &files, Some(&digests(&bench, &files)?))?;
        judge(&bench, &[Target::RAW, Target::QCOW2, Target::VMDK, Target::QCOW2_ZLIB]).context(subformat)?;
        inspected(&bench, 20 << 20, block_size).context(subformat)?;
        ensure!(bench.open("disk.ova")?.variant() == Some(subformat));
    }
    Ok(())
}

#[test]
fn what_is_not_as_the_manifest_says_is_refused() -> Result<()> {
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse"] {
        let bench = small_bench()?;
        let files = split(&bench, subformat)?;
        let manifest = digests(&bench, &files)?;
        for name in &files {
            let mut spoiled = std::fs::read(bench.path(name))?;
            let last = spoiled.len() - 1;
            let good = std::mem::replace(&mut spoiled[last], b'#');
            ensure!(good != b'#', "{name}");
            let whole = std::fs::read(bench.path(name))?;
            bench.write(name, &spoiled)?;
            pack(&bench, &files, Some(&manifest))?;
            let file = source(&bench.path("disk.ova"))?;
            let checked = part_of(&file)?.manifest.check(&*file, |_| true);
            let error = checked.expect_err("another digest");
            ensure!(error.kind() == ErrorKind::Corrupt, "{error}");
            ensure!(
                error.to_string().contains(&format!("\"{name}\" has the SHA256 digest")),
                "{error}"
            );
            bench.write(name, &whole)?;
        }
    }
    Ok(())
}

fn text(create_type: &str, extents: &[&str]) -> String {
    let lines = extents.join("\n");
    format!("# Disk DescriptorFile\nversion=1\nCID=0\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n{lines}\n")
}

fn disk_of(file: Vec<u8>) -> Result<Vec<u8>> {
    let source: Arc<dyn ReadAt> = Arc::new(file);
    let plan = plan(open(Arc::clone(&source))?.into(), &Target::RAW)?;
    build(&plan, &*source)
}

#[test]
fn flat_extents_start_anywhere_in_their_files_and_zeros_have_none() -> Result<()> {
    let (first, second) = (noise(3, MIB), noise(4, 3000 * 512));
    let junk = noise(5, 8 * 512);
    let with_junk = [&junk[..], &second, &junk].concat();
    let lines = [
        "RW 2048 FLAT \"first.vmdk\" 0",
        "RW 1000 ZERO",
        "RDONLY 3000 FLAT \"the second.vmdk\" 8",
        "RW 1 ZERO",
    ];
    let descriptor = text("twoGbMaxExtentFlat", &lines);
    // What comes first in the archive need not come first on the disk.
    let file = ova(&[
        ("the second.vmdk", &with_junk),
        ("disk.vmdk", descriptor.as_bytes()),
        ("notes.txt", b"a companion"),
        ("first.vmdk", &first),
    ]);
    let expected = [&first[..], &vec![0; 1000 * 512], &second, &[0; 512]].concat();
    ensure!(disk_of(file.clone())? == expected);
    let source: Arc<dyn ReadAt> = Arc::new(file.clone());
    let stream = encoded(&source, Target::VMDK_STREAM)?;
    ensure!(disk_of(stream)? == expected, "encoded");

    // QEMU, which knows no zeros, agrees on the rest.
    let bench = Bench::new()?;
    let lines = lines.map(|line| line.replace("RDONLY", "RW"));
    let flat: Vec<&str> = lines
        .iter()
        .map(String::as_str)
        .filter(|line| line.contains("FLAT"))
        .collect();
    bench.write("disk.vmdk", text("twoGbMaxExtentFlat", &flat).as_bytes())?;
    bench.write("first.vmdk", &first)?;
    bench.write("the second.vmdk", &with_junk)?;
    bench.write("disk.img", &[&first[..], &second].concat())?;
    bench.qemu_img(&["compare", "-f", "vmdk", "-F", "raw", "disk.vmdk", "disk.img"])?;
    let names = ["disk.vmdk", "first.vmdk", "the second.vmdk"].map(str::to_owned);
    pack(&bench, &names, None)?;
    judge(&bench, &[Target::RAW])
}

/// What follows a file in an archive is not on the disk, even where QEMU leaves the last grain of the file short.
#[test]
fn a_grain_that_is_cut_off_ends_in_zeros() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("disk.img", &vec![9; 200 << 10])?;
    let files = split(&bench, "twoGbMaxExtentSparse")?;
    ensure!(files == ["disk-s001.vmdk", "disk.vmdk"], "{files:?}");
    let mut extent = std::fs::read(bench.path("disk-s001.vmdk"))?;
    // The grains of 64 KiB follow each other; two sectors of the last one stay.
    let grains = extent.windows(512).position(|sector| sector == [9; 512]);
    let end = grains.context("the first grain")? + (192 << 10) + 1024;
    ensure!(extent.len() > end, "{} bytes", extent.len());
    extent.truncate(end);
    let descriptor = std::fs::read(bench.path("disk.vmdk"))?;
    let file = ova(&[
        ("disk.vmdk", &descriptor),
        ("disk-s001.vmdk", &extent),
        ("other", &noise(5, 70_000)),
    ]);
    let mut expected = vec![9; 200 << 10];
    expected[(192 << 10) + 1024..].fill(0);
    ensure!(disk_of(file.clone())? == expected);
    let image = open(Arc::new(file))?;
    ensure!(matches!(image.map(192 << 10)?, Mapping::Data { len: 1024, .. }));
    ensure!(matches!(image.map((192 << 10) + 1024)?, Mapping::Zero { len: 7168 }));
    let error = image.map(200 << 10).expect_err("the end of the disk");
    ensure!(error.kind() == ErrorKind::Io, "{error}");
    Ok(())
}

#[test]
fn an_ova_in_a_stream_is_unpacked_once_and_opened() -> Result<()> {
    let disk = noise(6, 4096);
    let descriptor = text("monolithicFlat", &["RW 8 FLAT \"disk-flat.vmdk\" 0"]);
    let file = ova(&[("disk.vmdk", descriptor.as_bytes()), ("disk-flat.vmdk", &disk)]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&file)?;
    let mut bytes = encoder.finish()?;
    for _ in 0..Limits::DEFAULT.nesting_max {
        let source: Arc<dyn ReadAt> = Arc::new(bytes.clone());
        match unwrap(&source, &Limits::DEFAULT)?.context("an envelope")? {
            Content::Stream(mut stream) => {
                bytes.clear();
                io::copy(&mut stream, &mut bytes)?;
            }
            Content::Part(part) => {
                ensure!(part.is_whole(bytes.len() as u64) && !part.is_whole(1 + bytes.len() as u64));
                ensure!(disk_of(bytes)? == disk);
                return Ok(());
            }
        }
    }
    bail!("an OVA in a stream is two envelopes")
}

#[test]
fn other_archives_are_envelopes_still() -> Result<()> {
    let descriptor = text("monolithicFlat", &["RW 8 FLAT \"disk-flat.vmdk\" 0"]);
    let split = ova(&[
        ("disk.vmdk", descriptor.as_bytes()),
        ("disk-flat.vmdk", &noise(7, 4096)),
    ]);
    let refusal = |file: Vec<u8>| -> Result<Error> {
        let inspection = inspect(&file)?;
        ensure!(
            inspection.virtual_size.is_none() && inspection.refusal.is_none(),
            "{inspection:?}"
        );
        Ok(open(Arc::new(file)).expect_err("an envelope"))
    };
    // A disk in one file, a disk that is not there, and an archive that is cut off.
    for file in [
        ova(&[("disk.vmdk", &noise(8, 4096))]),
        ova(&[("disk.vmdk", &descriptor.as_bytes()[..20])]),
        ova(&[("other.vmdk", descriptor.as_bytes())]),
        split[..split.len() - 4000].to_vec(),
    ] {
        let error = refusal(file)?;
        ensure!(
            error.to_string() == "tar: not supported: an envelope, whose content has to be taken out first",
            "{error}"
        );
    }
    ensure!(open(Arc::new(split)).is_ok());
    Ok(())
}

/// Kinds of refusals, and their places in the archive; `evil` has many more.
#[test]
fn refusals_name_places_of_the_archive() -> Result<()> {
    let disk = noise(9, 4096);
    let cases = [
        (
            "RW 8 FLAT \"../x\" 0",
            ErrorKind::ReferenceDenied,
            "the extent \"../x\" is a path",
        ),
        (
            "RW 8 FLAT \"x\" 0",
            ErrorKind::ReferenceDenied,
            "the extent \"x\" is not in the archive",
        ),
        (
            "RW 9 FLAT \"disk-flat.vmdk\" 0",
            ErrorKind::Corrupt,
            "extent \"disk-flat.vmdk\": flat extent",
        ),
        (
            "RW 8 SPARSE \"disk-flat.vmdk\"",
            ErrorKind::Corrupt,
            "of the type \"SPARSE\", which is none",
        ),
        (
            "RW 8 VMFS \"disk-flat.vmdk\" 0",
            ErrorKind::Unsupported,
            "is of the type \"VMFS\"",
        ),
    ];
    for (line, kind, reason) in cases {
        let descriptor = text("monolithicFlat", &[line]);
        let file = ova(&[("disk.vmdk", descriptor.as_bytes()), ("disk-flat.vmdk", &disk)]);
        let place = file.windows(line.len()).position(|bytes| bytes == line.as_bytes());
        let error = open(Arc::new(file)).expect_err(reason);
        ensure!(
            error.kind() == kind && error.reason().contains(reason),
            "{line}: {error}"
        );
        ensure!(error.offset() == place.map(|place| place as u64), "{line}: {error}");
        ensure!(error.format() == Some(Format::Vmdk), "{line}: {error}");
    }
    // In a sparse extent, the place is that of the field.
    let header = [&b"KDMV\x09"[..], &[0; 600]].concat();
    let descriptor = text("twoGbMaxExtentSparse", &["RW 8 SPARSE \"s001.vmdk\""]);
    let file = ova(&[("disk.vmdk", descriptor.as_bytes()), ("s001.vmdk", &header)]);
    let start = file
        .windows(5)
        .position(|bytes| bytes == &header[..5])
        .context("the extent")?;
    let error = open(Arc::new(file)).expect_err("version 9");
    ensure!(error.offset() == Some(start as u64 + 4), "{error}");
    ensure!(error.reason().starts_with("extent \"s001.vmdk\": version 9"), "{error}");
    Ok(())
}
