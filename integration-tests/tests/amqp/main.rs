//! Tests on a real RabbitMQ: producing and consuming.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod connecting;
mod consuming;
mod crashes;
mod kinds;
mod producing;
mod recovering;
mod rights;
mod settling;
mod slow_network;
mod unreadable;

/// Held by tests with messages in quarantine: a process runs one such message at a time.
static QUARANTINE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
