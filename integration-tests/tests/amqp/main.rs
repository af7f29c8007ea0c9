//! RabbitMQ, a real server: producing, consuming, and the Python packages on the other side.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod consuming;
mod crashes;
mod interop;
mod kinds;
mod memory;
mod producing;
mod recovering;
mod rights;
mod settling;
mod unreadable;

/// Held by tests with messages in quarantine: one of them runs alone in a process.
static QUARANTINE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// An error and all that is under it, in words.
fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words += &format!(" <- {error}");
        cause = error.source();
    }
    words
}
