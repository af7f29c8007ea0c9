//! Tests on a real schema registry: our client, and interop with Confluent's serializers.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod client;
mod interop;
