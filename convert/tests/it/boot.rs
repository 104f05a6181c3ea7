//! A disk that boots still boots when it has gone through other formats: QEMU starts a machine from each.
//!
//! On the disk are a boot loader in an MBR, and a partition with Debian's kernel and busybox. The boot loader finds the kernel
//! by the firmware, the kernel finds the disk by its own driver, and what it starts prints a greeting and the SHA-256 of the
//! whole disk, which has to be that of the raw image. The machine has no network. Without virtualization of the processor a
//! boot takes some four seconds of it. Machine and disk come with `deploy/bootstrap test`.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lithos_convert::Target;
use sha2::{Digest, Sha256};

use crate::support::{Bench, bootstrap, qemu_format, tools};

/// What a machine says once it runs what it has read from the disk.
const GREETING: &str = "Lithos: Debian kernel ";
/// How long it may take: seconds, but a busy machine may take its time.
const TIME_MAX: Duration = Duration::from_mins(4);
/// The formats that the disk goes through, one made from the other.
const CHAIN: [&str; 4] = ["qcow2:zstd", "vmdk:stream", "vhdx", "raw"];

/// A machine that ends with the test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Boots a machine from a disk, and waits until it has read the disk of this SHA-256.
fn boot(bench: &Bench, name: &str, format: &str, digest: &str) -> Result<Duration> {
    let start = Instant::now();
    let mut machine = Machine(
        Command::new(tools("lithos-qemu-system")?)
            .args(["-accel", "tcg", "-m", "256", "-nographic", "-nic", "none", "-no-reboot"])
            .args([
                "-drive",
                &format!("file={name},format={format},if=none,id=disk,snapshot=on"),
            ])
            .args(["-device", "nvme,drive=disk,serial=lithos"])
            .current_dir(bench.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("the machine cannot be started; deploy/bootstrap test installs it")?,
    );
    let mut screen = machine.0.stdout.take().context("a machine without a screen")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut shown = [0; 4096];
        while let Ok(len @ 1..) = screen.read(&mut shown) {
            if sender.send(shown[..len].to_vec()).is_err() {
                break;
            }
        }
    });
    let last = format!("Lithos: the disk has the SHA-256 {digest}.");
    let mut shown: Vec<u8> = Vec::new();
    while let Ok(more) = receiver.recv_timeout(TIME_MAX.saturating_sub(start.elapsed())) {
        shown.extend(more);
        if shows(&shown, GREETING) && shows(&shown, &last) {
            return Ok(start.elapsed());
        }
    }
    bail!(
        "{name} does not boot, or is not read as {digest}: {}",
        String::from_utf8_lossy(&shown)
    )
}

fn shows(shown: &[u8], text: &str) -> bool {
    shown.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_disk_boots_in_every_format_it_goes_through() -> Result<()> {
    let bench = Bench::new()?;
    let disk = bootstrap("--print-disk")?;
    let content = std::fs::read(&disk).with_context(|| format!("{disk}; deploy/bootstrap test makes it"))?;
    let digest = hex::encode(Sha256::digest(&content));
    let mut last = "disk.0.raw".to_owned();
    bench.write(&last, &content)?;
    println!("the source boots in {:?}", boot(&bench, &last, "raw", &digest)?);
    for (number, target) in (1..).zip(CHAIN) {
        let target: Target = target.parse()?;
        let next = format!("disk.{number}.{}", target.extension());
        bench.make(&last, &next, target)?;
        let taken = boot(&bench, &next, qemu_format(target), &digest)?;
        println!("{target} boots in {taken:?}");
        last = next;
    }
    ensure!(
        std::fs::read(bench.path(&last))? == content,
        "the disk is not what it was"
    );
    Ok(())
}
