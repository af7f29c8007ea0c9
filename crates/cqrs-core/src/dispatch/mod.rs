//! The parts of both mediators: the rounds of event handlers, and the end of a scope.

mod boxed;
mod events;
mod finish;
mod gate;
mod panics;
mod prepared;
mod publish;
mod undelivered;

pub(crate) use boxed::boxed;
pub(crate) use events::EventRounds;
pub use events::{EventFailure, EventsError, OnEventFailure};
pub(crate) use finish::{FinishError, Finisher};
pub(crate) use gate::{Entered, Gate};
pub(crate) use panics::{Panic, caught, caught_panic, panic_message};
pub(crate) use prepared::{PreparedEnd, PreparedEvent, PreparedRun};
pub(crate) use publish::{publish_each_confirmed, publish_one};
pub(crate) use undelivered::sealed;
pub use undelivered::{PublishTarget, Undelivered};
