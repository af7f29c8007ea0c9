//! The subscriber service: its subscriptions, targets, health and reports.

mod build;
mod delivery;
mod error;
mod function;
mod health;
mod policy;
mod report;
mod run;
mod runtime;
mod signal;
mod state;
mod subscription;
mod target;

pub use build::{Service, ServiceBuilder};
pub use delivery::{Delivery, NotSettled};
pub use error::{ServiceBuildError, ServiceError, ServiceProblem};
pub use function::{BatchFunction, EachFunction, ManualFunction, batch, each, manual};
pub use health::{HealthReport, ServiceHealth, SubscriptionHealth};
pub use policy::{DecodeError, Decoded, OnDecodeError, Undecodable};
pub use report::{ServiceReport, StopHandle, SubscriptionReport};
pub use signal::shutdown_signal;
pub(crate) use signal::stop_on_signals;
pub use state::{SubscriptionCounts, SubscriptionState};
pub use subscription::Subscription;
pub use target::{Handler, Target, per_delivery};
