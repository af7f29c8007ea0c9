//! Tests on a real Kafka: producing, consuming, and interop with the Python packages.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod bounds;
mod connecting;
mod consuming;
mod copies;
mod crashes;
mod interop;
mod joining;
mod member;
mod places;
mod producing;
mod rebalancing;
mod rights;
mod settling;
mod starting;
