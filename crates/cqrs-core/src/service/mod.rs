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
mod function;
mod guard;
mod health;
mod held;
mod job;
mod lanes;
mod outcome;
mod policy;
mod process;
mod read;
mod received;
mod repeats;
mod report;
mod routes;
mod run;
mod runner;
mod settle;
mod signal;
mod spec;
mod state;
mod subscription;
mod target;
mod undelivered;
mod worker;

pub use build::{Service, ServiceBuilder};
pub use delivery::{Delivery, NotSettled};
pub use error::{ServiceBuildError, ServiceError, ServiceProblem};
pub use function::{Batch, Each, Manual, batch, each, manual};
pub use health::{ServiceHealth, SubscriptionHealth};
pub use policy::{DecodeError, Decoded, OnDecodeError, Undecodable};
pub use received::Received;
pub use report::{ServiceReport, StopHandle, SubscriptionReport};
pub use signal::shutdown_signal;
pub use state::{SubscriptionCounts, SubscriptionState};
pub use subscription::Subscription;
pub use target::{PerDelivery, Target, per_delivery};
