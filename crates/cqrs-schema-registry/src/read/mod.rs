//! What takes the frame off a message that came.

mod framed;
mod unframe;

pub use framed::Framed;
pub use unframe::OnUnframed;
pub(crate) use unframe::Unframe;
