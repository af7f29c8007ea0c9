//! Kafka, a real server: producing, consuming, and the Python packages on the other side.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod bounds;
mod consuming;
mod copies;
mod crashes;
mod interop;
mod joining;
mod places;
mod producing;
mod rights;
