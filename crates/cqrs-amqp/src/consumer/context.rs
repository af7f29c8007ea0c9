//! The state that all deliveries of a source share; part of the consumer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cqrs_core::consume::LogLimit;

use super::copies::Copies;
use super::in_flight::InFlight;
use super::plan::Plan;
use super::quarantine::state::QuarantineState;
use super::stream_offsets::StreamOffsets;

/// The state of a source, over all its channels.
pub(super) struct SourceContext {
    pub(super) plan: Plan,
    pub(super) stream_offsets: StreamOffsets,
    pub(super) quarantine: QuarantineState,
    /// Deliveries handed out to the runtime or in quarantine, neither settled nor held.
    pub(super) handed_out: InFlight,
    /// Handed-out deliveries that are running.
    pub(super) running: InFlight,
    pub(super) copies: Arc<Copies>,
    pub(super) logs: Logs,
    /// Set if the server refuses to declare a dead-letter or quarantine queue that exists.
    pub(super) look_up_first: AtomicBool,
}

/// Limits of log lines that each message could cause.
#[derive(Debug, Default)]
pub(super) struct Logs {
    pub(super) held: LogLimit,
    pub(super) minimal: LogLimit,
}

impl SourceContext {
    pub(super) fn new(plan: Plan, copies: Arc<Copies>) -> Self {
        Self {
            stream_offsets: StreamOffsets::new(&plan),
            plan,
            quarantine: QuarantineState::default(),
            handed_out: InFlight::new(),
            running: InFlight::new(),
            copies,
            logs: Logs::default(),
            look_up_first: AtomicBool::new(false),
        }
    }
}
