//! Tests of producing and consuming while processes, servers and networks fail. Each prints a summary.
//!
//! Counts are scaled down; `CQRS_FULL=1` runs them in full.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod amqp;
mod consuming;
mod kafka;

use tokio::sync::RwLock;

/// The program that the tests kill.
const WORKER: &str = env!("CARGO_BIN_EXE_worker");

/// A write lock for tests that break Kafka or need all of it; a read lock for the others that use it.
static KAFKA: RwLock<()> = RwLock::const_new(());
/// The same for RabbitMQ.
static RABBITMQ: RwLock<()> = RwLock::const_new(());
