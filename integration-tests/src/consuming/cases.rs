//! The fault tests of consuming, for both brokers.

pub mod bad;
pub mod crashes;
pub mod delays;
pub mod kills;
pub mod members;
pub mod memory;
pub mod order;
pub mod outages;
