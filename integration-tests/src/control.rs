//! Calls of `scripts/brokers` that kill, start and control the servers; used by fault tests.

#![allow(clippy::unwrap_used)] // A helper of tests fails the test.

use std::path::PathBuf;

use crate::servers;

fn script() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/brokers"))
}

/// Set if the fault tests run with their full counts: `CQRS_FULL=1`.
pub fn full() -> bool {
    servers::variable("CQRS_FULL", "") == "1"
}

/// Runs `scripts/brokers`, which must succeed, and returns its output.
pub async fn brokers(arguments: &[&str]) -> String {
    let ran = try_brokers(arguments).await;
    ran.unwrap_or_else(|said| panic!("scripts/brokers {}: {said}", arguments.join(" ")))
}

/// Runs `scripts/brokers` and returns its output; when it fails, as an error with the exit status.
pub async fn try_brokers(arguments: &[&str]) -> Result<String, String> {
    let ran = tokio::process::Command::new(script()).args(arguments).output().await.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    match ran.status.success() {
        true => Ok(said),
        false => Err(format!("{}: {}{said}", ran.status, String::from_utf8_lossy(&ran.stderr))),
    }
}

/// Runs `rabbitmqctl` and returns its output.
pub async fn ctl(arguments: &[&str]) -> String {
    brokers(&[&["ctl", "rabbitmq"][..], arguments].concat()).await
}

/// Restores a server at the end of a test: dropping it runs `scripts/brokers` with these arguments.
#[derive(Debug)]
pub struct Restore(Vec<&'static str>);

impl Restore {
    /// Restores by this command and its arguments.
    pub fn by<const N: usize>(arguments: [&'static str; N]) -> Self {
        Self(arguments.into())
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _best_effort = std::process::Command::new(script()).args(&self.0).output();
    }
}
