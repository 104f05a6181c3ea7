//! What is found on disks that real tools have made.

use anyhow::{Context, Result, ensure};
use lithos_convert::{
    Declared, Disk, ErrorKind, FileSystemKind, Limits, PartitionTable, Target, inspect, inspect_declared, printable,
};

use crate::support::{Bench, source};

const OS_RELEASE: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n";

/// A file system of 8 MiB with a small system in it, made with these options.
fn system(bench: &Bench, name: &str, options: &[&str]) -> Result<()> {
    let tree = bench.path("tree");
    if !tree.exists() {
        std::fs::create_dir_all(tree.join("usr/lib/many"))?;
        std::fs::create_dir_all(tree.join("etc"))?;
        std::fs::write(tree.join("usr/lib/os-release"), OS_RELEASE)?;
        std::os::unix::fs::symlink("../usr/lib/os-release", tree.join("etc/os-release"))?;
        // So many that folders take several blocks, and get an index where there may be one.
        for index in 0..700 {
            std::fs::write(tree.join(format!("etc/a-file-with-a-long-name-{index}")), "")?;
        }
    }
    let folder = tree.to_str().context("a folder with a strange name")?;
    let all = [&["-q", "-F", "-d", folder, "-L", "root"], options, &[name, "8M"]].concat();
    bench.run("mke2fs", &all).map(drop)
}

fn disk(bench: &Bench, name: &str) -> Result<Disk> {
    let inspection = inspect(&*source(&bench.path(name))?)?;
    ensure!(
        inspection.refusal.is_none() && inspection.warnings.is_empty(),
        "{inspection:?}"
    );
    inspection.disk.context("no disk")
}

fn is_debian(disk: &Disk) -> bool {
    disk.os.as_ref().is_some_and(|os| {
        os.id.as_deref() == Some("debian")
            && os.version_id.as_deref() == Some("12")
            && os.pretty_name.as_deref() == Some("Debian GNU/Linux 12 (bookworm)")
    })
}

#[test]
fn systems_are_found_on_every_ext() -> Result<()> {
    let bench = Bench::new()?;
    for (options, kind) in [
        (&["-t", "ext2", "-b", "1024"][..], FileSystemKind::Ext2),
        (&["-t", "ext2", "-b", "4096", "-I", "128"], FileSystemKind::Ext2),
        (&["-t", "ext3", "-b", "1024"], FileSystemKind::Ext3),
        (&["-t", "ext4", "-b", "1024"], FileSystemKind::Ext4),
        (
            &["-t", "ext4", "-b", "4096", "-O", "64bit,metadata_csum"],
            FileSystemKind::Ext4,
        ),
        (
            &["-t", "ext4", "-b", "2048", "-O", "^extents,^64bit"],
            FileSystemKind::Ext4,
        ),
        (
            &["-t", "ext4", "-U", "5d8f10f4-0c4f-4c3b-8ba5-a2b2b8c1c7a1"],
            FileSystemKind::Ext4,
        ),
    ] {
        system(&bench, "disk", options)?;
        let disk = disk(&bench, "disk").with_context(|| format!("{options:?}"))?;
        let [found] = disk.file_systems.as_slice() else {
            anyhow::bail!("{options:?}: {disk:?}")
        };
        ensure!(
            found.kind == kind && found.label.as_deref() == Some("root"),
            "{options:?}: {found:?}"
        );
        ensure!(is_debian(&disk), "{options:?}: {disk:?}");
        if let Some(place) = options.iter().position(|option| *option == "-U") {
            ensure!(found.uuid.as_deref() == options.get(place + 1).copied(), "{found:?}");
        }
        std::fs::remove_file(bench.path("disk"))?;
    }
    Ok(())
}

#[test]
fn what_is_not_looked_into_is_told_of() -> Result<()> {
    let bench = Bench::new()?;
    for (options, warning) in [
        (
            "inline_data",
            "not supported: ext4 with data in inodes is not looked into",
        ),
        (
            "meta_bg,^resize_inode",
            "not supported: ext4 with meta block groups is not looked into",
        ),
    ] {
        system(&bench, "disk", &["-t", "ext4", "-O", options])?;
        let inspection = inspect(&*source(&bench.path("disk"))?)?;
        ensure!(inspection.refusal.is_none(), "{inspection:?}");
        ensure!(inspection.warnings == [warning], "{options}: {:?}", inspection.warnings);
        ensure!(inspection.disk.is_some_and(|disk| disk.os.is_none()), "{options}");
        std::fs::remove_file(bench.path("disk"))?;
    }
    Ok(())
}

/// A disk with an MBR, some boot code, and the system in an active partition at 1 MiB.
fn partitioned(bench: &Bench) -> Result<()> {
    system(bench, "part", &["-t", "ext4"])?;
    let mut content = vec![0; 1 << 20];
    content[..2].copy_from_slice(&[0xfa, 0xfc]);
    content[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0x40, 0, 0]);
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    content.extend(std::fs::read(bench.path("part"))?);
    bench.write("disk.raw", &content)
}

#[test]
fn disks_are_looked_at_in_every_format() -> Result<()> {
    let bench = Bench::new()?;
    partitioned(&bench)?;
    bench.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", "disk.raw", "disk.qcow2"])?;
    bench.qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=streamOptimized",
        "disk.raw",
        "disk.vmdk",
    ])?;
    let mut names = vec!["disk.raw".to_owned(), "disk.qcow2".to_owned(), "disk.vmdk".to_owned()];
    for target in Target::ALL {
        let name = format!("made.{}", target.extension());
        bench.make("disk.raw", &name, target)?;
        names.push(bench.unwrapped(&name, target)?);
    }
    let expected = disk(&bench, "disk.raw")?;
    ensure!(
        is_debian(&expected) && expected.partition_table == Some(PartitionTable::Mbr),
        "{expected:?}"
    );
    ensure!(
        expected.boot.len() == 1 && expected.boot[0].reason == "active-partition",
        "{expected:?}"
    );
    for name in names {
        let found = disk(&bench, &name).with_context(|| name.clone())?;
        ensure!(found == expected, "{name}: {found:?}");
    }
    Ok(())
}

#[test]
fn names_that_say_something_else_are_told_of() -> Result<()> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "qcow2", "disk.qcow2", "1M"])?;
    let image = source(&bench.path("disk.qcow2"))?;
    for (name, warning) in [
        ("disk.qcow2", None),
        ("disk.QCOW2", None),
        ("disk.img", None),
        ("disk", None),
        ("disk.vmdk", Some("the name says \"vmdk\", the content is qcow2")),
        ("a/b.iso", Some("the name says \"iso\", the content is qcow2")),
        ("xz", Some("the name says \"xz\", the content is qcow2")),
    ] {
        let warnings = inspect_declared(&*image, name)?.warnings;
        ensure!(warnings.first().map(String::as_str) == warning, "{name}: {warnings:?}");
    }
    let zeros = vec![0; 1 << 20];
    for (name, warning) in [
        ("disk.raw", None),
        (
            "disk.iso",
            Some("the name says \"iso\", but there is no ISO 9660 file system"),
        ),
        (
            "disk.ami",
            Some("a machine image (ami) is a file system that boots with a kernel from elsewhere"),
        ),
    ] {
        let warnings = inspect_declared(&zeros, name)?.warnings;
        ensure!(warnings.first().map(String::as_str) == warning, "{name}: {warnings:?}");
    }
    Ok(())
}

#[test]
fn media_types_of_other_things_disagree_with_every_image() -> Result<()> {
    let inspection = inspect(&vec![0; 1 << 20])?;
    for (media_type, says_something, disagreement) in [
        ("application/octet-stream", false, None),
        ("application/x-raw-disk-image", true, None),
        (
            "Image/PNG; q=1",
            false,
            Some("the media type says \"image/png\", the content is raw"),
        ),
        (
            "text/html",
            false,
            Some("the media type says \"text/html\", the content is raw"),
        ),
        (
            "multipart/mixed",
            false,
            Some("the media type says \"multipart/mixed\", the content is raw"),
        ),
        ("text", false, None),
        (
            "application/x-lz4",
            true,
            Some("the media type says \"application/x-lz4\", the content is raw"),
        ),
    ] {
        let declared = Declared::MediaType(media_type);
        ensure!(declared.says_something() == says_something, "{media_type}");
        ensure!(
            inspection.disagreement(declared).as_deref() == disagreement,
            "{media_type}"
        );
    }
    ensure!(inspection.disagreement(Declared::Name("text/html")).is_none());
    Ok(())
}

#[test]
fn inspections_are_held_to_limits() -> Result<()> {
    let held = |bytes: &[u8], limits: &Limits| -> Result<_> {
        let mut inspection = inspect(&bytes.to_vec())?;
        let before = inspection.refusal.clone();
        inspection.hold_to(limits);
        Ok((before, inspection.refusal))
    };
    let small = Limits {
        virtual_size_max: 1000,
        nesting_max: 0,
        ..Limits::DEFAULT
    };
    let gzip = [0x1f, 0x8b, 0x08, 0, 0, 0, 0, 0, 0, 0];
    ensure!(held(&[0; 1000], &small)? == (None, None) && held(&gzip, &Limits::DEFAULT)? == (None, None));
    for (bytes, name) in [
        (&[0; 1001][..], "image-virtual-size-max"),
        (&gzip[..], "image-nesting-max"),
    ] {
        let (before, after) = held(bytes, &small)?;
        let after = after.expect(name);
        ensure!(before.is_none() && after.kind == ErrorKind::TooLarge, "{name}");
        ensure!(after.reason.contains(name), "{}", after.reason);
    }
    let (before, after) = held(b"QFI\xfb", &small)?;
    ensure!(before.is_some() && after == before, "the first refusal stays");
    Ok(())
}

#[test]
fn foreign_text_is_kept_as_it_is() -> Result<()> {
    let bench = Bench::new()?;
    bench.qemu_img(&["create", "-f", "raw", "a\"b.raw", "1M"])?;
    bench.qemu_img(&["create", "-f", "qcow2", "-b", "a\"b.raw", "-F", "raw", "disk.qcow2"])?;
    let inspection = inspect(&*source(&bench.path("disk.qcow2"))?)?;
    let qcow2 = inspection.qcow2.expect("it is qcow2");
    ensure!(qcow2.backing_file.as_deref() == Some("a\"b.raw") && qcow2.backing_format.as_deref() == Some("raw"));
    ensure!(printable("a\"b.raw\u{1b}") == "a\\\"b.raw\\u{1b}");
    let reason = inspection.refusal.expect("it needs another file").reason;
    ensure!(reason.ends_with("a backing file \"a\\\"b.raw\""), "{reason}");
    Ok(())
}
