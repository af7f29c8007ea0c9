//! What puts the frame on a message that goes.

mod broker;
mod framing;
#[cfg(test)]
mod tests;

pub use broker::FramedBroker;
pub use framing::{Framing, OnUnknownEvent};
