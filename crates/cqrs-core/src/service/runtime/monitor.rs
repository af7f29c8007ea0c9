//! The monitor of one subscription: its counters, its state and its log limits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::repeats::Repeats;
use crate::consume::{SourceStatus, SubscribeRequest};
use crate::service::state::{SubscriptionCounts, SubscriptionState};

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) received: Counter,
    pub(crate) handled: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) skipped: Counter,
    pub(crate) dead_lettered: Counter,
    pub(crate) discarded: Counter,
    pub(crate) rescheduled: Counter,
    pub(crate) given_back: Counter,
    pub(crate) revoked: Counter,
    pub(crate) failed_attempts: Counter,
    pub(crate) panics: Counter,
    pub(crate) unacked: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, number: usize) {
        self.0.fetch_add(number as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    fn read(&self) -> SubscriptionCounts {
        SubscriptionCounts {
            received: self.received.get(),
            handled: self.handled.get(),
            duplicates: self.duplicates.get(),
            skipped: self.skipped.get(),
            dead_lettered: self.dead_lettered.get(),
            discarded: self.discarded.get(),
            rescheduled: self.rescheduled.get(),
            given_back: self.given_back.get(),
            revoked: self.revoked.get(),
            failed_attempts: self.failed_attempts.get(),
            panics: self.panics.get(),
            unacked: self.unacked.get(),
        }
    }
}

/// The part of a subscription that health and reports read while it runs.
#[derive(Debug)]
pub(crate) struct Monitor {
    pub(crate) name: Arc<str>,
    pub(crate) group: Arc<str>,
    pub(crate) counters: Counters,
    pub(super) repeats: Repeats,
    source: watch::Receiver<SourceStatus>,
    /// The number of settlements that wait for the broker.
    paused: AtomicUsize,
    state: Mutex<MonitorState>,
}

#[derive(Debug)]
struct MonitorState {
    /// The error of the last settlement that failed.
    reason: Arc<str>,
    lifecycle: Lifecycle,
    /// The reasons of the messages that are held because the broker refuses their settlement.
    held: BTreeMap<u64, Arc<str>>,
    /// The number of messages that were held so far.
    holds: u64,
}

/// A held message. Health names it until this value is dropped.
#[derive(Debug)]
pub(crate) struct HeldEntry {
    monitor: Arc<Monitor>,
    id: u64,
}

impl HeldEntry {
    /// Replaces the reason.
    pub(crate) fn show(&self, reason: Arc<str>) {
        self.monitor.lock().held.insert(self.id, reason);
    }
}

impl Drop for HeldEntry {
    fn drop(&mut self) {
        self.monitor.lock().held.remove(&self.id);
    }
}

#[derive(Debug)]
enum Lifecycle {
    Running,
    Draining,
    Stopped,
    Failed(Arc<str>),
}

impl Monitor {
    pub(crate) fn new(request: &SubscribeRequest, source: watch::Receiver<SourceStatus>) -> Self {
        let state = MonitorState {
            reason: "".into(),
            lifecycle: Lifecycle::Running,
            held: BTreeMap::new(),
            holds: 0,
        };
        Self {
            name: Arc::clone(&request.name),
            group: Arc::clone(&request.group),
            counters: Counters::default(),
            repeats: Repeats::default(),
            source,
            paused: AtomicUsize::new(0),
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, MonitorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pause(&self, reason: &str) {
        self.lock().reason = reason.into();
        self.paused.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn resume(&self) {
        self.paused.fetch_sub(1, Ordering::AcqRel);
    }

    /// Shows a message as held because of `reason`.
    pub(crate) fn hold(self: &Arc<Self>, reason: Arc<str>) -> HeldEntry {
        self.show_held(&mut self.lock(), reason)
    }

    /// As [`hold`](Self::hold), if fewer than `most` messages are held.
    pub(crate) fn hold_beside_fewer(
        self: &Arc<Self>,
        most: usize,
        reason: Arc<str>,
    ) -> Option<HeldEntry> {
        let mut state = self.lock();
        (state.held.len() < most).then(|| self.show_held(&mut state, reason))
    }

    fn show_held(self: &Arc<Self>, state: &mut MonitorState, reason: Arc<str>) -> HeldEntry {
        let id = state.holds;
        state.holds += 1;
        state.held.insert(id, reason);
        HeldEntry { monitor: Arc::clone(self), id }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire) > 0
    }

    pub(crate) fn draining(&self) {
        self.lock().lifecycle = Lifecycle::Draining;
    }

    pub(crate) fn stopped(&self) {
        self.lock().lifecycle = Lifecycle::Stopped;
    }

    pub(crate) fn failed(&self, error: &str) {
        self.lock().lifecycle = Lifecycle::Failed(error.into());
    }

    pub(crate) fn counts(&self) -> SubscriptionCounts {
        self.counters.read()
    }

    pub(crate) fn state(&self) -> SubscriptionState {
        let state = self.lock();
        match &state.lifecycle {
            Lifecycle::Draining => return SubscriptionState::Draining,
            Lifecycle::Stopped => return SubscriptionState::Stopped,
            Lifecycle::Failed(error) => {
                return SubscriptionState::Failed { error: Arc::clone(error) };
            }
            Lifecycle::Running => {}
        }
        match &*self.source.borrow() {
            SourceStatus::Connecting { last_error } => {
                SubscriptionState::Starting { last_error: last_error.clone() }
            }
            SourceStatus::Disconnected { last_error } => {
                SubscriptionState::Disconnected { last_error: Arc::clone(last_error) }
            }
            _ if self.is_paused() => {
                SubscriptionState::Paused { reason: Arc::clone(&state.reason) }
            }
            status => match (state.held.values().next(), status) {
                (Some(first), _) => {
                    SubscriptionState::Stuck { reason: stuck(first, state.held.len()) }
                }
                (None, SourceStatus::Full { reason }) => {
                    SubscriptionState::Full { reason: Arc::clone(reason) }
                }
                (None, _) => SubscriptionState::Consuming,
            },
        }
    }
}

fn stuck(first: &Arc<str>, held: usize) -> Arc<str> {
    match held {
        1 => Arc::clone(first),
        _ => format!("{first} (and {} more)", held - 1).into(),
    }
}
