//! The state that all deliveries of a source share; part of the consumer.

use std::sync::Arc;

use cqrs_core::consume::LogLimit;

use super::copies::Copies;
use super::in_flight::InFlight;
use super::places::Places;
use super::plan::Plan;
use super::quarantine::state::Quarantine;

/// What all deliveries of a source share.
pub(super) struct Desk {
    pub(super) plan: Plan,
    pub(super) places: Places,
    pub(super) quarantine: Quarantine,
    /// Handed on to the runtime, or running alone, and neither settled nor held; over all channels.
    pub(super) handed_on: InFlight,
    /// Those of them that run.
    pub(super) running: InFlight,
    pub(super) copies: Arc<Copies>,
    pub(super) logs: Logs,
}

/// Bounds on log lines that each message could cause.
#[derive(Debug, Default)]
pub(super) struct Logs {
    pub(super) held: LogLimit,
    pub(super) bare: LogLimit,
}
