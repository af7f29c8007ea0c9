//! The client, the framing and the hook against a registry in memory, faults included. What a real
//! registry says stands in the integration tests.

#![cfg(feature = "client")]
#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod asking;
mod faults;
mod framing;
mod reading;
mod server;
