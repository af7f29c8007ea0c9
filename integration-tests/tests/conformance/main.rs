//! The conformance suite, both halves, on the real servers.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod amqp;
mod consuming_amqp;
mod consuming_kafka;
mod kafka;
mod server;
