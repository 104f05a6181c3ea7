//! What is tested: an endpoint with credentials, or a server of ours that is started for the purpose.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_mins(1);
/// The folder of the data folder, in the server's own.
const DISK: &str = "disk";
/// The unit of processor times in `/proc`: on Linux always this, whatever the kernel's own.
const TICK: Duration = Duration::from_millis(10);
/// How often something is looked at that does not call by itself.
pub const POLL: Duration = Duration::from_millis(20);

/// An S3 endpoint.
#[derive(Debug, Clone)]
pub struct Target {
    /// `http://HOST:PORT`, without a slash at the end.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The access key.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// Below which domain the endpoint answers to virtual-host style, if it does.
    pub domain: Option<String>,
    /// `http://HOST:PORT` of the admin API, if it is a server of ours.
    pub management: Option<String>,
}

impl Target {
    /// `HOST:PORT` of the endpoint.
    ///
    /// # Errors
    ///
    /// If the endpoint is not plain HTTP.
    pub fn authority(&self) -> Result<&str> {
        let authority = self.endpoint.strip_prefix("http://");
        authority.with_context(|| format!("the endpoint {} is not plain HTTP", self.endpoint))
    }
}

/// How a server of ours is to be started.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// The zones it serves; one called `default` if there are none.
    pub zones: Vec<String>,
    /// The domain of its virtual-host style.
    pub domain: Option<String>,
    /// Networks that imports may fetch from although they are loopback or private.
    pub import_allow: Vec<String>,
    /// Addresses to listen on; free ones by default.
    pub addresses: Option<Addresses>,
    /// Further arguments of `lithos serve`.
    pub arguments: Vec<String>,
    /// The most file descriptors it may have open; what this process may, by default.
    pub descriptors: Option<u64>,
    /// Its data folder; one that goes with it by default.
    pub data: Option<PathBuf>,
    /// Whether it serves reads only. It then needs addresses and a data folder, which it writes nothing to.
    pub read_only: bool,
}

/// Where a server listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// S3.
    pub transfer: String,
    /// The admin API.
    pub management: String,
}

/// A Lithos server in a folder of its own, killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    options: ServerOptions,
    /// What the next process is given in its environment.
    environment: Vec<(String, String)>,
    process: Option<Child>,
    target: Target,
    management: String,
}

impl Server {
    /// Starts a server as `lithos serve` does by default, on free ports.
    ///
    /// # Errors
    ///
    /// If it does not come up; the error holds the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(ServerOptions::default())
    }

    /// Starts a server as told.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn start_with(options: ServerOptions) -> Result<Self> {
        let mut server = Self::prepare(options)?;
        server.run()?;
        Ok(server)
    }

    /// A server that is yet to be started, by [`Server::run`].
    ///
    /// # Errors
    ///
    /// If there is no place for its folder.
    pub fn prepare(options: ServerOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("lithos-test.").tempdir()?;
        let target = Target {
            endpoint: String::new(),
            region: "us-east-1".to_owned(),
            access_key: String::new(),
            secret_key: String::new(),
            domain: options.domain.clone(),
            management: None,
        };
        fs::create_dir(folder.path().join(DISK))?;
        let server = Self {
            folder,
            options,
            environment: Vec::new(),
            process: None,
            target,
            management: String::new(),
        };
        Ok(server)
    }

    /// Starts the process again on the same data, after [`Server::kill`] or [`Server::stop`]. Its ports are new, unless
    /// the options say which.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn run(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the server is running already");
        let endpoints = self.data().join("endpoints.json");
        if !self.options.read_only {
            // A killed server leaves the file behind, perhaps empty if the machine was cut off.
            let _ = fs::remove_file(&endpoints);
        }
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = match self.options.descriptors {
            Some(count) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {count} && exec \"$0\" \"$@\""));
                shell.arg(binary()?);
                shell
            }
            None => Command::new(binary()?),
        };
        command.arg("serve").args(self.arguments());
        command
            .env("LITHOS_LOG", "info,s3s=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        for name in [
            "LITHOS_ACCESS_KEY",
            "LITHOS_SECRET_KEY",
            "LITHOS_CONFIG",
            "LITHOS_DATA",
            "LITHOS_ZONE",
            "LITHOS_DOMAIN",
        ] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(command.spawn().context("cannot start the server")?);
        if self.options.read_only {
            self.await_listening()?;
        } else {
            self.await_endpoints(&endpoints)?;
        }
        let credentials = fs::read_to_string(self.credentials())?;
        self.target.access_key = setting(&credentials, "aws_access_key_id")?;
        self.target.secret_key = setting(&credentials, "aws_secret_access_key")?;
        self.target.management = Some(self.management.clone());
        Ok(())
    }

    /// Adds to the environment of the next process, and only of that.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    /// What the last process was given beside the usual environment.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Whether there is a process, as far as was seen.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The status of a process that has ended by itself, within `patience`.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn ended(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let Some(process) = &mut self.process else {
            return Ok(None);
        };
        let begun = Instant::now();
        loop {
            if let Some(status) = process.try_wait()? {
                self.process = None;
                return Ok(Some(status));
            }
            if begun.elapsed() >= patience {
                return Ok(None);
            }
            sleep(POLL);
        }
    }

    /// Sends the process a signal, by its name without SIG.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn signal(&self, name: &str) -> Result<()> {
        let process = self.process.as_ref().context("the server is not running")?;
        let command = format!("kill -{name} {}", process.id());
        let signalled = Command::new("sh").arg("-c").arg(command).status()?;
        ensure!(signalled.success(), "cannot signal the server");
        Ok(())
    }

    fn arguments(&self) -> Vec<OsString> {
        let any = || "127.0.0.1:0".to_owned();
        let (transfer, management) = match &self.options.addresses {
            Some(addresses) => (addresses.transfer.clone(), addresses.management.clone()),
            None => (any(), any()),
        };
        let mut arguments: Vec<OsString> = vec!["--data".into(), self.data().into()];
        arguments.extend([
            "--listen".into(),
            transfer.into(),
            "--admin-listen".into(),
            management.into(),
        ]);
        let mut each = |flag: &str, values: &[String]| {
            arguments.extend(values.iter().flat_map(|value| [flag.into(), value.into()]));
        };
        each("--zone", &self.options.zones);
        each("--domain", self.options.domain.as_slice());
        each("--import-allow", &self.options.import_allow);
        arguments.extend(self.options.arguments.iter().map(OsString::from));
        if self.options.read_only {
            arguments.push("--read-only".into());
        }
        arguments
    }

    fn await_endpoints(&mut self, path: &Path) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(path) {
                let endpoints: serde_json::Value = serde_json::from_str(&text)?;
                let address = |name: &str| endpoints.get(name).and_then(|value| value.as_str()).map(str::to_owned);
                self.target.endpoint = address("transfer").context("endpoints.json names no transfer address")?;
                self.management = address("management").context("endpoints.json names no management address")?;
                return Ok(());
            }
            self.await_more(begun)?;
        }
    }

    /// A server that writes no file tells its addresses by answering there.
    fn await_listening(&mut self) -> Result<()> {
        let addresses = self.options.addresses.clone();
        let addresses = addresses.context("a server for reading only needs addresses")?;
        let begun = Instant::now();
        while [&addresses.transfer, &addresses.management]
            .iter()
            .any(|address| TcpStream::connect(address.as_str()).is_err())
        {
            self.await_more(begun)?;
        }
        self.target.endpoint = format!("http://{}", addresses.transfer);
        self.management = format!("http://{}", addresses.management);
        Ok(())
    }

    /// Waits a moment for a server that is starting.
    fn await_more(&mut self, begun: Instant) -> Result<()> {
        if let Some(process) = &mut self.process
            && let Some(status) = process.try_wait()?
        {
            self.process = None;
            bail!("the server ended while starting, {status}:\n{}", self.log_end());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "the server did not start within {PATIENCE:?}:\n{}",
            self.log_end()
        );
        sleep(POLL);
        Ok(())
    }

    /// Where it answers to S3.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `http://HOST:PORT` of its management address.
    pub fn management(&self) -> &str {
        &self.management
    }

    /// Its management address, to be asked with the same keys.
    pub fn management_target(&self) -> Target {
        Target {
            endpoint: self.management.clone(),
            ..self.target.clone()
        }
    }

    /// Where it listens, to start it there again.
    pub fn addresses(&self) -> Addresses {
        let host = |url: &str| url.trim_start_matches("http://").to_owned();
        Addresses {
            transfer: host(&self.target.endpoint),
            management: host(&self.management),
        }
    }

    /// Has the next [`Server::run`] listen on these addresses.
    pub fn listen_on(&mut self, addresses: Addresses) {
        self.options.addresses = Some(addresses);
    }

    /// A folder for the test's own files, removed with the server.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The file with its root keys, in the format of the AWS command line.
    pub fn credentials(&self) -> PathBuf {
        self.data().join("credentials")
    }

    /// The folder that stands for its disk; unless it was given a data folder, that is in it.
    pub fn disk(&self) -> PathBuf {
        self.folder.path().join(DISK)
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.options.data.clone().unwrap_or_else(|| self.disk().join("data"))
    }

    /// Keeps its folder when this is dropped, for people to look at.
    pub fn keep_folder(&mut self) {
        self.folder.disable_cleanup(true);
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines
            .get(lines.len().saturating_sub(40)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// A command of our binary that asks no server: `lithos fsck` and the like.
    ///
    /// # Errors
    ///
    /// If there is no binary.
    pub fn offline_command() -> Result<Command> {
        let mut command = Command::new(binary()?);
        for name in ["LITHOS_ADMIN", "LITHOS_ACCESS_KEY", "LITHOS_SECRET_KEY", "LITHOS_DATA"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// A command of our binary against this server: `lithos job list` and the like.
    ///
    /// # Errors
    ///
    /// If there is no binary.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command
            .env("LITHOS_ADMIN", &self.management)
            .env("LITHOS_ACCESS_KEY", &self.target.access_key)
            .env("LITHOS_SECRET_KEY", &self.target.secret_key)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Ends the process at once, as a crash would (SIGKILL).
    ///
    /// # Errors
    ///
    /// If the system does not let us.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Asks the process to end (SIGTERM), and waits until it has.
    ///
    /// # Errors
    ///
    /// If it does not end in time: then it is killed.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        let mut process = self.process.take().context("the server is not running")?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = process.try_wait()? {
                return Ok(status);
            }
            sleep(POLL);
        }
        process.kill()?;
        process.wait()?;
        bail!("the server did not stop within {PATIENCE:?}:\n{}", self.log_end());
    }

    /// Bytes on disk below the folder of blobs.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read.
    pub fn stored_bytes(&self) -> Result<u64> {
        let mut total = 0;
        each_file(&self.data().join("blobs"), &mut |_, metadata| {
            total += metadata.blocks() * 512;
        })?;
        Ok(total)
    }

    /// Files below the folder of blobs: blobs, and those being written.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read.
    pub fn blob_files(&self) -> Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        each_file(&self.data().join("blobs"), &mut |path, _| {
            files.insert(path.to_owned());
        })?;
        Ok(files)
    }

    /// Files of blobs that are being written.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read.
    pub fn unfinished_files(&self) -> Result<Vec<PathBuf>> {
        let tmp = self.data().join("blobs/tmp");
        Ok(self
            .blob_files()?
            .into_iter()
            .filter(|path| path.starts_with(&tmp))
            .collect())
    }

    /// Waits until there is no file below the folder of blobs: the sweep runs beside the requests.
    ///
    /// # Errors
    ///
    /// If there still is one after a while.
    pub fn await_no_blobs(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let files = self.blob_files()?;
            if files.is_empty() {
                return Ok(());
            }
            let few: Vec<_> = files.iter().take(5).collect();
            ensure!(
                begun.elapsed() < Duration::from_secs(20),
                "{} files are left over, such as {few:?}",
                files.len()
            );
            sleep(POLL);
        }
    }

    /// A line of `/proc/PID/status` in bytes, such as `VmHWM`.
    ///
    /// # Errors
    ///
    /// If the server does not run, or the line is missing.
    pub fn memory(&self, line: &str) -> Result<u64> {
        let process = self.process.as_ref().context("the server is not running")?;
        let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
        let value = status
            .lines()
            .find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("no {line} in the status of the process"))? * 1024)
    }

    /// Processor time that it has used, to 10 ms (proc(5), `/proc/pid/stat`, fields 14 and 15).
    ///
    /// # Errors
    ///
    /// If the server does not run.
    pub fn processor_time(&self) -> Result<Duration> {
        let process = self.process.as_ref().context("the server is not running")?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
        // The second field is a name in parentheses, which may hold anything.
        let (_, fields) = stat
            .rsplit_once(") ")
            .context("the status of the process has no name")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        Ok(TICK * u32::try_from(ticks.sum::<Result<u64, _>>()?)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::thread::panicking() {
            eprintln!("--- the end of the server's log\n{}", self.log_end());
        }
    }
}

/// The binary: `LITHOS_BIN`, or what cargo put beside the test.
fn binary() -> Result<PathBuf> {
    built("lithos", "LITHOS_BIN")
}

/// What cargo built beside the program that runs now, or what the variable says.
///
/// # Errors
///
/// If there is none.
pub fn built(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let this = std::env::current_exe()?;
    // target/release/deps/it-0123 and target/release/lithos-conformance
    let folders = this.ancestors().skip(1).take(2);
    let mut places = folders.flat_map(|folder| [folder.join(name), folder.join("deps").join(name)]);
    let found = places.find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "there is no {name} near {}: run `make test`, which builds it, or set {variable}",
            this.display()
        )
    })
}

fn setting(text: &str, name: &str) -> Result<String> {
    let found = text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    found.with_context(|| format!("the credentials lack {name}"))
}

/// Calls `visit` for each file below `folder`. What vanishes meanwhile is left out.
fn each_file(folder: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            each_file(&path, visit)?;
        } else {
            visit(&path, &metadata);
        }
    }
    Ok(())
}
