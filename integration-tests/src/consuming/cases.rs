//! The fault tests, for whichever broker.

pub mod bad;
pub mod kills;
pub mod order;
