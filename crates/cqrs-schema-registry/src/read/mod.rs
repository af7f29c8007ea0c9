//! Removal of frames from received messages.

#[cfg(feature = "client")]
mod checked;
mod framed;
mod unframe;

#[cfg(feature = "client")]
pub use checked::{OnUnknownSchema, RegistryDecoder};
pub use framed::Framed;
pub use unframe::OnUnframed;
pub(crate) use unframe::Unframe;
