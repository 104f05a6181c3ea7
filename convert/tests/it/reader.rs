//! Everything that we make, read by a reader that is neither ours nor QEMU's: dissect.hypervisor, which forensic people use.
//! It is written in Python and comes with `deploy/bootstrap test`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lithos_convert::{Format, Target};

use crate::support::{Bench, noise, tools};

/// Prints the digest of the disk in a file, and how large it takes the disk to be. The first argument is the format.
const READ: &str = r#"
import hashlib, sys
from dissect.hypervisor.disk import qcow2, vdi, vhd, vhdx, vmdk

def disk(name, file):
    if name == "qcow2":
        return qcow2.QCow2(file).open()
    if name == "vdi":
        return vdi.VDI(file).open()
    return {"vhd": vhd.VHD, "vhdx": vhdx.VHDX, "vmdk": vmdk.VMDK}[name](file)

with open(sys.argv[2], "rb") as file:
    disk, digest, size = disk(sys.argv[1], file), hashlib.sha256(), 0
    while chunk := disk.read(1 << 20):
        digest.update(chunk)
        size += len(chunk)
    print(size, digest.hexdigest())
"#;
const DIGEST: &str =
    "import hashlib, sys; b = open(sys.argv[1], 'rb').read(); print(len(b), hashlib.sha256(b).hexdigest())";

fn python(args: &[&str]) -> Result<String> {
    let output = Command::new(tools("python3")?).args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "python3: {said}; deploy/bootstrap test installs what it needs"
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn dissect_reads_all_that_we_make() -> Result<()> {
    let bench = Bench::new()?;
    // Data in blocks of every size, a last block that is cut off, and long stretches of nothing.
    // dissect reads whole pages, and breaks off where a VMDK ends inside of one.
    let mut disk = vec![0; (9 << 20) + (64 << 10)];
    for (seed, start, len) in [
        (1, 0, 300_000),
        (2, 3 << 20, 4096),
        (3, (5 << 20) - 512, 1024),
        (4, (9 << 20) + 512, 1024),
    ] {
        disk[start..start + len].copy_from_slice(&noise(seed, len));
    }
    bench.write("disk.raw", &disk)?;
    let path = |name: &str| -> Result<String> {
        let path: PathBuf = bench.path(name);
        Ok(path.to_str().context("a folder with a strange name")?.to_owned())
    };
    let expected = python(&["-c", DIGEST, &path("disk.raw")?])?;
    for target in Target::ALL.into_iter().filter(|target| target.format() != Format::Raw) {
        let name = format!("disk.{}", target.extension());
        bench.make("disk.raw", &name, target)?;
        let name = bench.unwrapped(&name, target)?;
        let read = python(&["-c", READ, target.format().name(), &path(&name)?]).with_context(|| target.to_string())?;
        ensure!(read == expected, "{target}: {read} instead of {expected}");
    }
    Ok(())
}
