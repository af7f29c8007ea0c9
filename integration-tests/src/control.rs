//! `scripts/brokers` in the hands of a test: servers are killed, started, and told things.

#![allow(clippy::unwrap_used)] // A helper of tests fails the test.

use std::path::PathBuf;

use crate::servers;

fn script() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/brokers"))
}

/// Whether the fault tests run with their full counts: `CQRS_FULL=1`.
pub fn full() -> bool {
    servers::variable("CQRS_FULL", "") == "1"
}

/// What `scripts/brokers` said. It must succeed.
pub async fn brokers(arguments: &[&str]) -> String {
    let ran = try_brokers(arguments).await;
    ran.unwrap_or_else(|said| panic!("scripts/brokers {}: {said}", arguments.join(" ")))
}

/// What `scripts/brokers` said; as an error when it failed.
pub async fn try_brokers(arguments: &[&str]) -> Result<String, String> {
    let ran = tokio::process::Command::new(script()).args(arguments).output().await.unwrap();
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&ran.stderr).into_owned()),
    }
}

/// What `rabbitmqctl` said to these arguments.
pub async fn ctl(arguments: &[&str]) -> String {
    brokers(&[&["ctl", "rabbitmq"][..], arguments].concat()).await
}

/// Undoes what a test does to a server, however it ends: dropped, it runs `scripts/brokers` with these
/// arguments.
#[derive(Debug)]
pub struct Restore(Vec<&'static str>);

impl Restore {
    /// By this command and its arguments.
    pub fn by<const N: usize>(arguments: [&'static str; N]) -> Self {
        Self(arguments.into())
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _best_effort = std::process::Command::new(script()).args(&self.0).output();
    }
}
