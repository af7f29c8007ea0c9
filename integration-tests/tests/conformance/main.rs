//! The conformance suite on the real servers.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod amqp;
mod kafka;
mod server;
