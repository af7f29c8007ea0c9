//! Confluent's schema-registry framing, and a client of the registry.

mod frame;
mod read;
mod write;

pub use frame::{Frame, FrameError, FrameErrorKind, MessagePath, SchemaId, SchemaType};
pub use read::{Framed, OnUnframed};
pub use write::{FramedBroker, Framing, OnUnknownEvent};
