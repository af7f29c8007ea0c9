//! [`Journal`]: the record of all that happens on a tester's broker.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cqrs_core::Message;
use cqrs_core::consume::{DeadLetter, Incoming};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::wall_clock::WallClockTimeout;

/// Outcome happened to the messages of a tester's broker, in order.
#[derive(Debug)]
pub(super) struct Journal {
    began: Instant,
    state: Mutex<JournalState>,
    changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct JournalState {
    pub(super) entries: Vec<Entry>,
    /// Outcome was taken by [`TesterBroker`](super::TesterBroker) to be published.
    pub(super) published: Vec<Message>,
    /// Topics and groups that were subscribed to.
    pub(super) opened: Vec<(Arc<str>, Arc<str>)>,
    /// The number of those subscriptions.
    pub(super) subscriptions: usize,
    /// The error of a service that ended by itself.
    pub(super) failed: Option<String>,
}

#[derive(Debug)]
pub(super) struct Entry {
    at: Instant,
    pub(super) subject: Arc<Subject>,
    pub(super) outcome: Outcome,
}

/// A delivery.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) message: Incoming,
    pub(super) name: Option<String>,
    pub(super) group: Arc<str>,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Delivered { attempts: u32 },
    Handled,
    Retried { delay: Duration, attempts: u32 },
    DeadLettered(DeadLetter),
    Requeued,
    Revoked,
    NotConfirmed { what: &'static str, error: String },
}

impl Subject {
    pub(super) fn new(message: &Incoming, group: &Arc<str>) -> Self {
        let name = message.name.as_deref().map(str::to_owned).or_else(|| peek(&message.bytes()));
        Self { message: message.clone(), name, group: Arc::clone(group) }
    }
}

/// The event's name in a JSON body.
fn peek(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Name {
        #[serde(alias = "eventName")]
        event_name: String,
    }
    Some(serde_json::from_slice::<Name>(body).ok()?.event_name)
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), state: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, JournalState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut JournalState)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    pub(super) fn note(&self, subject: &Arc<Subject>, outcome: Outcome) {
        let entry = Entry { at: Instant::now(), subject: Arc::clone(subject), outcome };
        self.change(|state| state.entries.push(entry));
    }

    /// Waits until `look` returns something. `None` when it does not within `timeout`, or when a service
    /// has failed.
    pub(super) async fn wait<T>(
        &self,
        timeout: Duration,
        look: impl Fn(&JournalState) -> Option<T>,
    ) -> Option<T> {
        let mut waited = None;
        loop {
            // Created before the look, so that no later change is missed.
            let changed = self.changed.notified();
            {
                let state = self.lock();
                let found = look(&state);
                if found.is_some() || state.failed.is_some() {
                    return found;
                }
            }
            let limit = waited.get_or_insert_with(|| WallClockTimeout::new(timeout));
            tokio::select! {
                () = changed => {}
                () = limit.expired() => return look(&self.lock()),
            }
        }
    }

    /// All that happened, one line per event.
    pub(super) fn history(&self) -> String {
        let state = self.lock();
        let mut history = String::new();
        for entry in &state.entries {
            let Entry { at, subject, outcome } = entry;
            let at = at.saturating_duration_since(self.began).as_secs_f64();
            let name = subject.name.as_deref().unwrap_or("a message without an event name");
            let (topic, group) = (&subject.message.topic, &subject.group);
            let offset = subject.message.offset.unwrap_or_default();
            let outcome = outcome.to_string();
            let _infallible =
                writeln!(history, "  {at:9.3} s  {name} ({topic} {offset}) in {group}: {outcome}");
        }
        for message in &state.published {
            let _infallible =
                writeln!(history, "  published: {} to {}", message.name, message.topic);
        }
        if state.subscriptions == 0 {
            history.push_str("  no subscription was opened: was the service started?\n");
        }
        if let Some(error) = &state.failed {
            let _infallible = writeln!(history, "  the service has ended: {error}");
        }
        if history.is_empty() {
            history.push_str("  nothing\n");
        }
        if let Some(Entry { outcome: Outcome::Retried { .. }, .. }) = state.entries.last() {
            history.push_str(
                "  it waits for its next attempt: `#[tokio::test(start_paused = true)]` lets that \
                 time pass at once\n",
            );
        }
        history
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delivered { attempts: 0 } => f.write_str("delivered"),
            Self::Delivered { attempts } => write!(f, "delivered, after {attempts} attempts"),
            Self::Handled => f.write_str("handled"),
            Self::Retried { delay, attempts } => {
                write!(f, "failed as attempt {attempts}, retried in {delay:?}")
            }
            Self::DeadLettered(letter) => write!(
                f,
                "dead-lettered ({}, {} attempts): {}",
                letter.reason, letter.attempts, letter.error
            ),
            Self::Requeued => f.write_str("requeued"),
            Self::Revoked => f.write_str("revoked"),
            Self::NotConfirmed { what, error } => write!(f, "{what} not confirmed: {error}"),
        }
    }
}
