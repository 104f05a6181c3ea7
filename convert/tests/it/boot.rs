//! A disk that boots still boots when it has gone through other formats: QEMU starts a machine from each.
//!
//! The disk is iPXE's image: a boot sector, a boot loader that finds a kernel on the disk, and the kernel. The machine has no
//! network, so that all there is to see is iPXE's greeting. Without virtualization of the processor that takes some three
//! seconds of it. Machine and disk come with `deploy/bootstrap test`.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lithos_convert::Target;

use crate::support::{Bench, bootstrap, qemu_format, tools};

/// What a machine says once it runs the kernel that it has read from the disk.
const GREETING: &[u8] = b"Open Source Network Boot Firmware";
/// How long it may take: seconds, but a busy machine may take its time.
const TIME_MAX: Duration = Duration::from_mins(4);
/// The formats that the disk goes through, one made from the other.
const CHAIN: [&str; 5] = ["raw", "qcow2:zstd", "vmdk:stream", "vhdx", "raw"];

/// A machine that ends with the test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Boots a machine from a disk, and waits for the greeting.
fn boot(bench: &Bench, name: &str, format: &str) -> Result<Duration> {
    let start = Instant::now();
    let mut machine = Machine(
        Command::new(tools("lithos-qemu-system")?)
            .args(["-accel", "tcg", "-m", "64", "-nographic", "-nic", "none", "-no-reboot"])
            .args(["-drive", &format!("file={name},format={format},if=ide,snapshot=on")])
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
    let mut shown: Vec<u8> = Vec::new();
    while let Ok(more) = receiver.recv_timeout(TIME_MAX.saturating_sub(start.elapsed())) {
        shown.extend(more);
        if shown.windows(GREETING.len()).any(|window| window == GREETING) {
            return Ok(start.elapsed());
        }
    }
    bail!("{name} does not boot: {}", String::from_utf8_lossy(&shown))
}

#[test]
fn a_disk_boots_in_every_format_it_goes_through() -> Result<()> {
    let bench = Bench::new()?;
    let disk = bootstrap("--print-disk")?;
    let mut content = std::fs::read(&disk).with_context(|| format!("{disk}; deploy/bootstrap test makes it"))?;
    content.resize(content.len().next_multiple_of(1 << 20), 0);
    let mut last = "disk.0.raw".to_owned();
    bench.write(&last, &content)?;
    for (number, target) in (1..).zip(CHAIN) {
        let target: Target = target.parse()?;
        let next = format!("disk.{number}.{}", target.extension());
        bench.make(&last, &next, target)?;
        let taken = boot(&bench, &next, qemu_format(target))?;
        println!("{target} boots in {taken:?}");
        last = next;
    }
    ensure!(
        std::fs::read(bench.path(&last))? == content,
        "the disk is not what it was"
    );
    Ok(())
}
