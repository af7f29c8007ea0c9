//! Framing of published messages.

mod broker;
#[cfg(feature = "client")]
mod builder;
#[cfg(feature = "client")]
mod event_schema;
mod framing;
#[cfg(feature = "client")]
mod naming;
#[cfg(test)]
mod tests;

pub use broker::FramedBroker;
#[cfg(feature = "client")]
pub use builder::{FrameForm, FramingBuilder, Registration};
#[cfg(feature = "client")]
pub use event_schema::{EventSchema, SchemaSource};
pub use framing::{Framing, OnMissingSchema};
#[cfg(feature = "client")]
pub use naming::SubjectNaming;
