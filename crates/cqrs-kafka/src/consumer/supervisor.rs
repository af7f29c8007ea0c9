//! The supervisor of a subscription: its poll thread, which runs one session after the other until the close. Started
//! when the subscription is opened.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cqrs_core::consume::{SourceError, SubscribeError, SubscribeErrorKind};

use super::session::{Exit, Session};
use super::subscription_state::{CloseOutcome, SubscriptionState};
use crate::error::{ErrorKind, KafkaError};
use crate::events::Events;
use crate::health::Health;

/// While no client runs, a request to close is checked this often.
const TICK: Duration = Duration::from_millis(50);
/// The longest pause between two replacements of the client.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A client that lived this long resets the pause.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// The time for which the last error is reported after the connection came back.
const RELEVANT: Duration = Duration::from_secs(30);

/// Starts the poll thread.
pub(super) fn start(state: &Arc<SubscriptionState>) -> Result<(), SubscribeError> {
    let supervisor = Supervisor { state: Arc::clone(state) };
    let thread = thread::Builder::new().name("cqrs-kafka-consumer".into());
    let spawned = thread.spawn(move || supervisor.run());
    spawned.map(drop).map_err(|error| {
        let text = "the system gives no thread to the consumer";
        SubscribeError::new(SubscribeErrorKind::Other, text).with_source(error)
    })
}

struct Supervisor {
    state: Arc<SubscriptionState>,
}

impl Supervisor {
    fn run(self) {
        self.state.poller.set_thread(thread::current());
        let _end = PanicReport(Arc::clone(&self.state));
        let mut pause = TICK;
        loop {
            let started_at = Instant::now();
            let health = Arc::new(Health::new(RELEVANT));
            let events = Events::new(&self.state.plan.config, health);
            let exit = match Session::open(Arc::clone(&self.state), events) {
                Ok(session) => session.run(),
                Err(error) => Exit::Failed(SubscribeErrorKind::Invalid, error),
            };
            match exit {
                Exit::Closed(outcome) => {
                    self.state.set_closed(outcome);
                    return;
                }
                Exit::Failed(kind, error) => return self.fail(kind, error),
                Exit::Replace(error) => {
                    tracing::error!(
                        subscription = &*self.state.plan.request.name,
                        %error,
                        "the kafka consumer failed and is replaced"
                    );
                    self.state.report_disconnected(&error);
                }
            }
            pause = if started_at.elapsed() > STABLE_AFTER {
                TICK
            } else {
                (2 * pause).min(LONGEST_PAUSE)
            };
            let next = Instant::now() + pause;
            while Instant::now() < next && self.state.closes_at().is_none() {
                thread::park_timeout(TICK);
            }
            if self.state.closes_at().is_some() {
                let reason = "the consumer had failed and was not replaced yet".into();
                self.state.set_closed(CloseOutcome::Uncommitted(reason));
                return;
            }
        }
    }

    /// Reports the error to the caller that opens the subscription, or to its source.
    fn fail(&self, kind: SubscribeErrorKind, error: KafkaError) {
        let name = &self.state.plan.request.name;
        let advice = match error.kind() {
            ErrorKind::Authorization => "; check the ACLs of topics and group",
            _ => "",
        };
        let text = format!("subscription {name} cannot continue: {error}{advice}");
        tracing::error!(%error, "{text}");
        let failure = SubscribeError::new(kind, text.clone()).with_source(error.clone());
        if !self.state.fail_opening(failure) {
            self.state.report_disconnected(&error);
            self.state.fail(SourceError::new(text).with_source(error));
        }
        self.state.set_closed(CloseOutcome::Uncommitted("the subscription had failed".into()));
    }
}

/// Fails the subscription when the poll thread panics.
struct PanicReport(Arc<SubscriptionState>);

impl Drop for PanicReport {
    fn drop(&mut self) {
        let Self(state) = self;
        if !thread::panicking() {
            return;
        }
        let text =
            format!("subscription {}: the consumer's thread panicked", state.plan.request.name);
        state.report_disconnected(&text);
        state.fail(SourceError::new(text.clone()));
        state.fail_opening(SubscribeError::new(SubscribeErrorKind::Other, text.clone()));
        state.set_closed(CloseOutcome::Uncommitted(text.into()));
    }
}
