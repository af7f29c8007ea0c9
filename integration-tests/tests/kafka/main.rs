//! Tests on a real Kafka: producing and consuming.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

mod bounds;
mod connecting;
mod consuming;
mod copies;
mod crashes;
mod joining;
mod member;
mod places;
mod producing;
mod rebalancing;
mod rights;
mod settling;
mod starting;
mod undelivered;
