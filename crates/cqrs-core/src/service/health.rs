//! The health of a service, for readiness and liveness checks.

use std::sync::Arc;

use super::runtime::Monitor;
use super::state::{SubscriptionCounts, SubscriptionState};

/// The health of a service, for readiness and liveness checks. Cheap to clone and to read.
#[derive(Debug, Clone)]
pub struct ServiceHealth(pub(super) Arc<[Arc<Monitor>]>);

/// The health of one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionHealth {
    /// Its name.
    pub name: Arc<str>,
    /// Its state.
    pub state: SubscriptionState,
    /// Its counts.
    pub counts: SubscriptionCounts,
}

impl ServiceHealth {
    /// `true` if every subscription consumes now. `false` while one starts, has lost its broker, is paused
    /// because of a settlement, drains, or has ended. A subscription that is
    /// [stuck](SubscriptionState::Stuck) with some messages, or has a [full](SubscriptionState::Full)
    /// bound, consumes the others: it is ready.
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(|monitor| {
            matches!(
                monitor.state(),
                SubscriptionState::Consuming
                    | SubscriptionState::Stuck { .. }
                    | SubscriptionState::Full { .. }
            )
        })
    }

    /// `true` if no subscription has failed. A lost broker is no failure: the source reconnects.
    pub fn is_live(&self) -> bool {
        let failed = |state| matches!(state, SubscriptionState::Failed { .. });
        !self.0.iter().any(|monitor| failed(monitor.state()))
    }

    /// All subscriptions, in the order they were added.
    pub fn subscriptions(&self) -> Vec<SubscriptionHealth> {
        let health = |monitor: &Arc<Monitor>| SubscriptionHealth {
            name: Arc::clone(&monitor.name),
            state: monitor.state(),
            counts: monitor.counts(),
        };
        self.0.iter().map(health).collect()
    }
}
