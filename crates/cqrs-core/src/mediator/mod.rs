//! The mediators: requests to their handler, consumed events to their handlers.

mod bootstrap;
mod emitter;
mod error;
mod events;
mod inner;
mod nesting;
mod permanent;
mod requests;

pub use crate::dispatch::{EventFailure, EventsError, OnEventFailure, PublishTarget, Undelivered};
pub use bootstrap::{Bootstrap, BuildError, BuildProblem};
pub use emitter::EventEmitter;
pub(crate) use error::CommittedBelow;
pub use error::{EventSendError, SendError};
pub use events::EventMediator;
pub(crate) use events::{Consumed, SendEnd, SendRun};
pub use inner::MediatorShutdown;
pub(crate) use nesting::{SendLevel, committed_below, track_commits};
#[doc(hidden)]
pub use permanent::classed;
pub(crate) use permanent::is_permanent;
pub use requests::Mediator;
pub(crate) use requests::RequestAnswer;
