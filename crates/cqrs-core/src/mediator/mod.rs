//! The mediators: requests to their handler, consumed events to their handlers.

mod bootstrap;
mod emitter;
mod error;
mod events;
mod inner;
mod nesting;
mod requests;

pub use bootstrap::{Bootstrap, BuildError, BuildProblem};
pub use emitter::EventEmitter;
pub use error::{EventSendError, SendError};
pub use events::EventMediator;
pub use inner::MediatorShutdown;
pub(crate) use nesting::{CommittedBelow, committed_below, watched};
pub use requests::Mediator;
