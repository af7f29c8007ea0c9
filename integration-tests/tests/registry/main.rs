//! The schema registry, a real server: our client, and Confluent's own serializers on the other side.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod client;
mod interop;
