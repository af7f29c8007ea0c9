//! The contract between this framework and a message broker, and the parts for authors of brokers.

mod connect;
mod contract;
mod devnull;
mod error;
mod event_error;
mod intake;
mod number_ring;
mod receipt;
mod timers;
mod window;

pub use connect::connect_within;
pub use contract::{BrokerState, MessageBroker, MessageBrokerExt, ShutdownReport};
pub use devnull::DevnullMessageBroker;
pub use error::{PublishError, PublishErrorKind};
pub use event_error::PublishEventError;
pub use intake::Intake;
pub use number_ring::NumberRing;
pub use receipt::{Confirmation, PendingConfirm, Receipt, SharedMessage};
pub use window::{Slot, Window};

/// A boxed, sendable future, as dyn-safe contract traits return it.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
