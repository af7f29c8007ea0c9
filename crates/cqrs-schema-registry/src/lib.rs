//! Confluent's schema-registry framing, and a client of the registry.

#[cfg(feature = "client")]
mod client;
mod frame;
mod read;
mod write;

#[cfg(feature = "client")]
pub use client::{
    Compatibility, Credentials, Pem, RegisteredSchema, RegistryConfig, RegistryError,
    RegistryErrorKind, Schema, SchemaReference, SchemaRegistry, SchemaVersion, TlsConfig,
};
pub use frame::{Frame, FrameError, FrameErrorKind, MessagePath, SchemaId, SchemaType};
pub use read::{Framed, OnUnframed};
#[cfg(feature = "client")]
pub use read::{OnUnknownSchema, RegistryDecoder};
#[cfg(feature = "client")]
pub use write::{
    EventSchema, FrameForm, FramingBuilder, Registration, SchemaSource, SubjectNaming,
};
pub use write::{FramedBroker, Framing, OnUnknownEvent};
