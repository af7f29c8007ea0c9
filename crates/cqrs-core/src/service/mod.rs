//! The subscriber runtime: subscriptions, how their events are handled and settled, and their life.
//!
//! ```text
//! source ── run (fetch) ── lanes (order per key) ── worker: decode ── middlewares ── handler
//!                              ▲                       │
//!                              └── hold until due ─────┤ retry
//!                                                      └── settle: ack | retry copy | dead letter
//! ```

mod attempt;
mod backoff;
mod batch;
mod build;
mod delivery;
mod error;
mod failure;
mod fetch;
mod function;
mod health;
mod held;
mod job;
mod lanes;
mod policy;
mod read;
mod received;
mod repeats;
mod routes;
mod run;
mod runner;
mod settle;
mod signal;
mod state;
mod subscription;
mod target;
mod undelivered;
mod worker;

use std::time::Duration;

pub use build::{Service, ServiceBuilder};
pub use delivery::{Delivery, NotSettled};
pub use error::{ServiceBuildError, ServiceError, ServiceProblem};
pub(crate) use failure::causes;
pub use function::{Batch, Each, Manual, batch, each, manual};
pub use health::{ServiceHealth, SubscriptionHealth};
pub use policy::{DecodeError, Decoded, OnDecodeError, Undecodable};
pub use received::Received;
pub use run::{ServiceReport, StopHandle, SubscriptionReport};
use runner::Limits;
pub use signal::shutdown_signal;
pub use state::{SubscriptionCounts, SubscriptionState};
pub use subscription::Subscription;
pub use target::{PerDelivery, Target, per_delivery};

/// How long to wait before a settlement that the broker did not confirm is tried again: first, at most.
const SETTLE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a message is held whose settlement the broker refuses for good: first, at most.
const HELD_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// How long a delivery rests that a handler gave back, or that could not be tried: first, at most.
const RETURN_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
