//! The consuming half of the contract between this framework and a message broker.
//!
//! [`Subscribe::subscribe`] opens a [`Source`]. The service runtime ([`Service`](crate::Service)) polls it,
//! runs the handlers, and settles each [`SourceDelivery`] once its outcome is safe. The responsibilities:
//!
//! | the source | the runtime |
//! |---|---|
//! | fetches, and bounds what is fetched and not settled | order per key, concurrency |
//! | recovers connections and topology, forever | decoding, policies, panics |
//! | writes retry copies and dead letters, confirmed | what is retried, when, how often |
//! | settles; what is dropped is given back | never settles before the outcome is safe |
//! | reports its status | readiness, drain |

mod contract;
mod dead_letter;
mod error;
mod fetch;
mod frame;
mod incoming;
mod log_limit;
mod received;
mod request;
mod retry;
mod status;
pub mod support;

pub use contract::{Delayed, Settle, Source, SourceDelivery, Subscribe};
pub use dead_letter::{
    DEAD_LETTER_HEADERS, DeadLetter, DeadLetterReason, InvalidDeadLetter, ORIGINAL_PREFIX,
};
pub use error::{SettleError, SourceError, SubscribeError, SubscribeErrorKind};
pub use fetch::Fetch;
pub(crate) use fetch::Spare;
pub use incoming::Incoming;
pub use log_limit::LogLimit;
pub use received::Received;
pub(crate) use request::DEFAULT_MAX_CRASHES;
pub use request::{BrokerOptions, DeadLetterTarget, StartAt, SubscribeRequest, TopicSet};
pub(crate) use retry::NextAttempt;
pub use retry::{RETRY_HEADERS, Retry, RetryState};
pub use status::{SourceStatus, StatusReporter};
