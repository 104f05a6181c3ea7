//! What clouds take: sizes, names and archives, judged by the tools that everybody has.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use lithos_convert::{Content, Format, Limits, Profile, ReadAt, Slice, Target, open, unwrap};

use crate::support::{Bench, qemu_format, source};

const MIB: usize = 1 << 20;

/// Three mebibytes and a half, of which the last sector is not zero.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 3 * MIB + MIB / 2 + 512];
    disk[100..5000].fill(0x11);
    disk[2 * MIB..2 * MIB + 70_000].fill(0x22);
    let end = disk.len();
    disk[end - 512..].fill(0x33);
    disk
}

#[test]
fn every_profile_has_the_disk_and_the_size_that_its_cloud_takes() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("disk.img", &disk())?;
    // A qcow2 with compressed clusters, the last of which goes on behind the end of the disk.
    bench.make("disk.img", "disk.qcow2", Target::QCOW2_ZLIB)?;
    for profile in Profile::ALL {
        let target = Target::of_profile(profile);
        for from in ["disk.img", "disk.qcow2"] {
            let file = format!("{from}.{}", target.extension());
            bench.make(from, &file, target)?;
            let image = bench.unwrapped(&file, target)?;
            bench.check(&image, target)?;
            let size = bench.open(&image)?.virtual_size();
            let alignment = match profile {
                Profile::Azure => 1 << 20,
                Profile::Gcp => 1 << 30,
                _ => 512,
            };
            ensure!(
                size == (disk().len() as u64).next_multiple_of(alignment),
                "{target}: {size}"
            );
            // Zeros behind the end are no difference to it.
            bench
                .qemu_img(&["compare", "-f", "raw", "-F", qemu_format(target), "disk.img", &image])
                .with_context(|| target.to_string())?;
        }
    }
    Ok(())
}

#[test]
fn an_ova_holds_what_its_manifest_and_descriptor_say() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("disk.img", &disk())?;
    bench.make("disk.img", "disk.ova", Target::OVA)?;
    let listed = Command::new("tar").arg("-tvf").arg(bench.path("disk.ova")).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let names: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    ensure!(names == ["image.ovf", "image.mf", "image-disk1.vmdk"], "{listed}");
    let unpacked = Command::new("tar")
        .arg("-xf")
        .arg("disk.ova")
        .current_dir(bench.path(""))
        .status()?;
    ensure!(unpacked.success());
    let len = std::fs::metadata(bench.path("image-disk1.vmdk"))?.len();
    let descriptor = std::fs::read_to_string(bench.path("image.ovf"))?;
    ensure!(descriptor.contains(&format!("ovf:size=\"{len}\"")), "{descriptor}");
    ensure!(
        descriptor.contains(&format!("ovf:capacity=\"{}\"", disk().len())),
        "{descriptor}"
    );
    // `SHA256(name)= digest` is how OpenSSL writes it; sha256sum reads that as BSD does, with a space before the name.
    let manifest = std::fs::read_to_string(bench.path("image.mf"))?;
    bench.write("sums", manifest.replace('(', " (").replace(")=", ") =").as_bytes())?;
    let checked = Command::new("sha256sum")
        .args(["--check", "--strict", "sums"])
        .current_dir(bench.path(""))
        .output()?;
    ensure!(
        checked.status.success(),
        "{manifest}{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    Ok(())
}

/// What we wrap we unwrap, with its digests checked.
#[test]
fn our_own_archives_are_opened() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("disk.img", &disk())?;
    bench.make("disk.img", "disk.ova", Target::OVA)?;
    let file = source(&bench.path("disk.ova"))?;
    let Some(Content::Part(part)) = unwrap(&file, &Limits::DEFAULT)? else {
        bail!("an OVA is opened in place");
    };
    ensure!(part.name == "image-disk1.vmdk" && !part.manifest.is_empty(), "{part:?}");
    part.manifest.check(&*file, |_| true)?;
    let image = open(Arc::new(Slice::new(Arc::clone(&file), part.offset, part.len)))?;
    ensure!(image.format() == Format::Vmdk && image.virtual_size() == disk().len() as u64);

    let mut spoiled = std::fs::read(bench.path("disk.ova"))?;
    let middle = usize::try_from(part.offset + part.len / 2)?;
    spoiled[middle] ^= 1;
    let spoiled: Arc<dyn ReadAt> = Arc::new(spoiled);
    let Some(Content::Part(part)) = unwrap(&spoiled, &Limits::DEFAULT)? else {
        bail!("an OVA is opened in place");
    };
    let error = part.manifest.check(&*spoiled, |_| true).expect_err("another digest");
    ensure!(error.to_string().contains("has the SHA256 digest"), "{error}");
    Ok(())
}
