//! [`Worker`]: a worker's process, started and killed by fault tests.

use std::fs::OpenOptions;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::work::WorkerOptions;

/// A running worker. Killed when it is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// Of the process.
    pub pid: u32,
}

impl Worker {
    /// Starts `program`, which is `env!("CARGO_BIN_EXE_worker")`. Its log is in a file beside its
    /// journal.
    pub fn spawn(program: &str, options: &WorkerOptions) -> Self {
        let log = options.journal.with_extension("log");
        let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program);
        command.arg(serde_json::to_string(options).unwrap()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let pid = child.id().unwrap();
        Self { child, pid }
    }

    /// `kill -9`; returns when the process is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends SIGTERM.
    pub async fn terminate(&self) {
        let pid = self.pid.to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
        assert!(sent.success(), "kill -TERM {pid}");
    }

    /// Waits for the end of the process and returns its status and the time it took.
    pub async fn exited(mut self, limit: Duration) -> (ExitStatus, Duration) {
        let since = Instant::now();
        let status = tokio::time::timeout(limit, self.child.wait()).await;
        (status.expect("an exit in time").unwrap(), since.elapsed())
    }

    /// Set if the process has ended.
    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGTERM, and its end.
    pub async fn stop(self) -> (ExitStatus, Duration) {
        self.terminate().await;
        self.exited(Duration::from_secs(60)).await
    }

    /// The most memory it ever had in use, in KiB (`VmHWM`).
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory it has in use now, in KiB (`VmRSS`).
    pub fn memory_now(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }
}
