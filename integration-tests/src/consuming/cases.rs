//! The fault tests, for whichever broker.

pub mod bad;
pub mod crashes;
pub mod delays;
pub mod kills;
pub mod members;
pub mod memory;
pub mod order;
pub mod outages;
