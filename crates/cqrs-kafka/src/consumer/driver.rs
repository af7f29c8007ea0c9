//! The poll thread of a subscription: one session after the other, until it is closed.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cqrs_core::consume::{SourceError, SourceStatus, SubscribeError, SubscribeErrorKind};

use super::plan::Plan;
use super::session::{Exit, Session};
use super::shared::{Ending, Opening, Shared};
use crate::error::{ErrorKind, KafkaError};
use crate::events::Events;
use crate::health::Health;

/// Between two looks for a wish to close while no client runs.
const TICK: Duration = Duration::from_millis(50);
/// Between replacing a client and replacing its successor, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A client that lived this long counts as one that worked.
const GOOD_LIFE: Duration = Duration::from_secs(30);
/// How long a cause is told after the connection came back.
const RELEVANT: Duration = Duration::from_secs(30);

/// Starts the poll thread.
pub(super) fn start(plan: &Arc<Plan>, shared: &Arc<Shared>) -> Result<(), SubscribeError> {
    let driver = Driver { plan: Arc::clone(plan), shared: Arc::clone(shared) };
    let spawned =
        thread::Builder::new().name("cqrs-kafka-consumer".into()).spawn(move || driver.run());
    spawned.map(drop).map_err(|error| {
        let text = "the system gives no thread to the consumer";
        SubscribeError::new(SubscribeErrorKind::Other, text).with_source(error)
    })
}

struct Driver {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
}

impl Driver {
    fn run(self) {
        self.shared.set_poller(thread::current());
        // Whoever waits is told even if this thread panics.
        let _end = End(Arc::clone(&self.shared), Arc::clone(&self.plan));
        let mut pause = TICK;
        loop {
            let born = Instant::now();
            let health = Arc::new(Health::new(RELEVANT));
            let events = Events::new(&self.plan.config, health);
            let (plan, shared) = (Arc::clone(&self.plan), Arc::clone(&self.shared));
            let exit = match Session::open(plan, shared, events) {
                Ok(session) => session.run(),
                Err(error) => Exit::Failed(SubscribeErrorKind::Invalid, error),
            };
            match exit {
                Exit::Closed(ending) => {
                    self.shared.ending.send_replace(Some(ending));
                    return;
                }
                Exit::Failed(kind, error) => return self.fail(kind, error),
                Exit::Replace(error) => {
                    tracing::error!(
                        subscription = &*self.plan.request.name,
                        %error,
                        "the kafka consumer failed; a new one is made"
                    );
                    let last_error: Arc<str> = error.to_string().into();
                    self.plan.request.status.report(SourceStatus::Disconnected { last_error });
                }
            }
            pause = if born.elapsed() > GOOD_LIFE { TICK } else { (2 * pause).min(LONGEST_PAUSE) };
            let next = Instant::now() + pause;
            while Instant::now() < next && self.shared.closes_at().is_none() {
                thread::park_timeout(TICK);
            }
            if self.shared.closes_at().is_some() {
                let why = "the consumer had failed, and no new one was made yet".into();
                self.shared.ending.send_replace(Some(Ending::Uncommitted(why)));
                return;
            }
        }
    }

    /// Tells why the subscription cannot go on, to whoever waits for it.
    fn fail(&self, kind: SubscribeErrorKind, error: KafkaError) {
        let name = &self.plan.request.name;
        let advice = match error.kind() {
            ErrorKind::Authorization => "; check the ACLs of topics and group",
            ErrorKind::Authentication => "; check the credentials",
            _ => "",
        };
        let text = format!("subscription {name} cannot go on: {error}{advice}");
        tracing::error!(%error, "{text}");
        let mut error = Some(error);
        self.shared.opening.send_if_modified(|opening| {
            let Opening::Waiting = opening else { return false };
            let failure = SubscribeError::new(kind, text.clone());
            let failure = match error.take() {
                Some(error) => failure.with_source(error),
                None => failure,
            };
            *opening = Opening::Failed(Some(failure));
            true
        });
        if let Some(error) = error {
            let last_error: Arc<str> = error.to_string().into();
            self.plan.request.status.report(SourceStatus::Disconnected { last_error });
            self.shared.fail(SourceError::new(text).with_source(error));
        }
        let why = "the subscription had failed".into();
        self.shared.ending.send_replace(Some(Ending::Uncommitted(why)));
    }
}

struct End(Arc<Shared>, Arc<Plan>);

impl Drop for End {
    fn drop(&mut self) {
        let Self(shared, plan) = self;
        if !thread::panicking() {
            return;
        }
        let text = format!("subscription {}: the consumer's thread panicked", plan.request.name);
        let last_error: Arc<str> = text.as_str().into();
        plan.request.status.report(SourceStatus::Disconnected { last_error });
        shared.fail(SourceError::new(text.clone()));
        shared.opening.send_if_modified(|opening| {
            let Opening::Waiting = opening else { return false };
            let failure = SubscribeError::new(SubscribeErrorKind::Other, text.clone());
            *opening = Opening::Failed(Some(failure));
            true
        });
        shared.ending.send_replace(Some(Ending::Uncommitted(text.into())));
    }
}
