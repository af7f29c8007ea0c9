//! What both mediators are made of: the rounds of event handlers, and the end of a scope.

mod events;
mod finish;
mod panics;

pub(crate) use events::EventRounds;
pub use events::{EventFailure, EventsError, OnEventFailure};
pub(crate) use finish::{FinishError, Finisher};
pub use finish::{Undelivered, UndeliveredEvent};
pub(crate) use panics::{caught, panic_message};
