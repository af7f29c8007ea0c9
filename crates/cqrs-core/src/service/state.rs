use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::repeats::Repeats;
use crate::consume::SourceStatus;

/// What a subscription is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriptionState {
    /// It is being opened.
    Starting {
        /// Why it did not succeed yet, when it was tried.
        last_error: Option<Arc<str>>,
    },
    /// It consumes.
    Consuming,
    /// It lost its broker and is getting it back.
    Disconnected {
        /// Why.
        last_error: Arc<str>,
    },
    /// It holds back, because a retry copy or a dead letter is not confirmed.
    Paused {
        /// Why.
        reason: Arc<str>,
    },
    /// It consumes, but the retry copies or dead letters of some messages are refused for good. These
    /// messages and their keys are held and tried again at a slow pace; the others go on.
    Stuck {
        /// The message that is held longest, and why.
        reason: Arc<str>,
    },
    /// It consumes, but a bound on unsettled messages is full, so no more is fetched of what it covers.
    Full {
        /// Which bound, and of which partition or queue.
        reason: Arc<str>,
    },
    /// It finishes what runs, and takes nothing new.
    Draining,
    /// It has ended as it was asked to.
    Stopped,
    /// It has ended because it could not go on.
    Failed {
        /// Why.
        error: Arc<str>,
    },
}

/// What a subscription has done since it began. Every message it received ends in exactly one of
/// `handled`, `skipped`, `dead_lettered`, `discarded`, `rescheduled`, `given_back`, `revoked` and
/// `unacked`, or is still here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionCounts {
    /// Deliveries that came, redelivered ones included.
    pub received: u64,
    /// Acked after their handler succeeded.
    pub handled: u64,
    /// Acked unhandled, by policy.
    pub skipped: u64,
    /// Acked after their dead letter was confirmed.
    pub dead_lettered: u64,
    /// Acked instead of becoming dead letters: [`Discard`](crate::DeadLetterTarget::Discard).
    pub discarded: u64,
    /// Acked after a copy for a later attempt was confirmed.
    pub rescheduled: u64,
    /// Given back to the broker unsettled.
    pub given_back: u64,
    /// Dropped because the broker gave them to another member.
    pub revoked: u64,
    /// Attempts that failed; of a batch, one for all of it.
    pub failed_attempts: u64,
    /// Attempts that failed by a panic; among the failed ones.
    pub panics: u64,
    /// Done, but the ack did not reach the broker: they come again.
    pub unacked: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received: Counter,
    pub(super) handled: Counter,
    pub(super) skipped: Counter,
    pub(super) dead_lettered: Counter,
    pub(super) discarded: Counter,
    pub(super) rescheduled: Counter,
    pub(super) given_back: Counter,
    pub(super) revoked: Counter,
    pub(super) failed_attempts: Counter,
    pub(super) panics: Counter,
    pub(super) unacked: Counter,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
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

/// What is known of one subscription from outside; shared with whoever watches it.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) name: Arc<str>,
    pub(super) counters: Counters,
    pub(super) repeats: Repeats,
    source: watch::Receiver<SourceStatus>,
    /// How many settlements wait for the broker.
    paused: AtomicUsize,
    phase: Mutex<Phase>,
}

#[derive(Debug)]
struct Phase {
    /// Why the last settlement that failed did.
    reason: Arc<str>,
    end: End,
    /// Why each message is held whose settlement is refused for good.
    held: BTreeMap<u64, Arc<str>>,
    /// How many were held so far.
    holds: u64,
}

/// A message whose settlement is refused for good. Health names it until this value is dropped.
#[derive(Debug)]
pub(super) struct Held {
    watched: Arc<Watched>,
    id: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.watched.phase().held.remove(&self.id);
    }
}

#[derive(Debug)]
enum End {
    Running,
    Draining,
    Stopped,
    Failed(Arc<str>),
}

impl Watched {
    pub(super) fn new(name: Arc<str>, source: watch::Receiver<SourceStatus>) -> Self {
        let phase = Phase { reason: "".into(), end: End::Running, held: BTreeMap::new(), holds: 0 };
        Self {
            name,
            counters: Counters::default(),
            repeats: Repeats::default(),
            source,
            paused: AtomicUsize::new(0),
            phase: Mutex::new(phase),
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pause(&self, reason: &str) {
        self.phase().reason = reason.into();
        self.paused.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn resume(&self) {
        self.paused.fetch_sub(1, Ordering::AcqRel);
    }

    /// Shows a message as held because of `reason`.
    pub(super) fn hold(self: &Arc<Self>, reason: Arc<str>) -> Held {
        let mut phase = self.phase();
        let id = phase.holds;
        phase.holds += 1;
        phase.held.insert(id, reason);
        Held { watched: Arc::clone(self), id }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire) > 0
    }

    pub(super) fn draining(&self) {
        self.phase().end = End::Draining;
    }

    pub(super) fn stopped(&self) {
        self.phase().end = End::Stopped;
    }

    pub(super) fn failed(&self, error: &str) {
        self.phase().end = End::Failed(error.into());
    }

    pub(super) fn counts(&self) -> SubscriptionCounts {
        self.counters.read()
    }

    pub(super) fn state(&self) -> SubscriptionState {
        let phase = self.phase();
        match &phase.end {
            End::Draining => return SubscriptionState::Draining,
            End::Stopped => return SubscriptionState::Stopped,
            End::Failed(error) => return SubscriptionState::Failed { error: Arc::clone(error) },
            End::Running => {}
        }
        match &*self.source.borrow() {
            SourceStatus::Connecting { last_error } => {
                SubscriptionState::Starting { last_error: last_error.clone() }
            }
            SourceStatus::Disconnected { last_error } => {
                SubscriptionState::Disconnected { last_error: Arc::clone(last_error) }
            }
            _ if self.is_paused() => {
                SubscriptionState::Paused { reason: Arc::clone(&phase.reason) }
            }
            status => match (phase.held.values().next(), status) {
                (Some(first), _) => {
                    SubscriptionState::Stuck { reason: stuck(first, phase.held.len()) }
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
