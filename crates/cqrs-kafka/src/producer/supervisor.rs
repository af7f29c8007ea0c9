//! The poll thread of a producer: it serves librdkafka's events, replaces a client that failed, and closes. Started by
//! the broker value and by the copies of consumed records.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cqrs_core::broker::ShutdownReport;
use rdkafka::ClientConfig;
use rdkafka::producer::{Producer, PurgeConfig};

use super::client::Client;
use super::context::Context;
use super::handle::ProducerHandle;
use crate::config::KafkaConfig;
use crate::config::is_idempotent;
use crate::error::{ErrorKind, KafkaError, of_code};
use crate::events::Events;

/// The poll timeout: the overflow queue and a request to close are checked this often.
const TICK: Duration = Duration::from_millis(50);
/// The same while messages wait in the overflow queue.
pub(super) const SHORT_TICK: Duration = Duration::from_millis(10);
/// The longest pause between two replacements of the client.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The pause after the broker refused the principal, since its rights must be granted first.
const REFUSED_PAUSE: Duration = Duration::from_secs(15);
/// A client that lived this long resets the pause.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// The wait for the last delivery reports of a client that failed.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);
/// The wait for the delivery reports of purged messages.
const PURGE: Duration = Duration::from_secs(1);

pub(super) struct Supervisor {
    pub(super) handle: Arc<ProducerHandle>,
    pub(super) options: ClientConfig,
    context: Context,
}

/// Makes the producer and starts its poll thread. Connects in the background.
pub(crate) fn start(config: &KafkaConfig) -> Result<Arc<ProducerHandle>, KafkaError> {
    let (supervisor, client) = Supervisor::new(config)?;
    let handle = Arc::clone(&supervisor.handle);
    let spawned = thread::Builder::new()
        .name("cqrs-kafka-producer".into())
        .spawn(move || supervisor.run(client));
    match spawned {
        Ok(_runs_until_closed) => Ok(handle),
        Err(error) => {
            Err(KafkaError::config("the system gives no thread to the producer").with_source(error))
        }
    }
}

impl Supervisor {
    /// A supervisor that does not run yet, and its first client.
    pub(super) fn new(config: &KafkaConfig) -> Result<(Self, Arc<Client>), KafkaError> {
        let options = config.to_client_config()?;
        let handle = Arc::new(ProducerHandle::new(config));
        let context = Context {
            events: Events::new(config, Arc::clone(&handle.health)),
            oversized: Arc::clone(&handle.oversized),
            is_idempotent: is_idempotent(|name| options.get(name)),
        };
        let supervisor = Self { handle: Arc::clone(&handle), options, context };
        let client = supervisor.make_client()?;
        handle.set_client(Some(Arc::clone(&client)));
        Ok((supervisor, client))
    }

    pub(super) fn make_client(&self) -> Result<Arc<Client>, KafkaError> {
        let made = self.options.create_with_context(self.context.clone());
        made.map(Arc::new).map_err(|error| KafkaError::config(self.context.events.reason(error)))
    }

    fn run(mut self, mut client: Arc<Client>) {
        let _end = EndReport(Arc::clone(&self.handle));
        let (mut born, mut pause) = (Instant::now(), Duration::ZERO);
        // The last refusal that was logged.
        let mut refusal = None;
        loop {
            client.poll(if self.handle.overflow.is_in_use() { SHORT_TICK } else { TICK });
            if self.handle.oversized.is_active() {
                client = self.resend(client);
            }
            if let Some(failure) = self.failure(&client) {
                if born.elapsed() > STABLE_AFTER {
                    pause = Duration::ZERO;
                    refusal = None;
                }
                match self.replace(client, failure, pause, &mut refusal) {
                    Some(next) => client = next,
                    None => return,
                }
                born = Instant::now();
                pause = (2 * pause + TICK).min(LONGEST_PAUSE);
            }
            self.check_contact(&client);
            self.handle.drain_overflow(&client);
            if self.handle.closes_at().is_some() {
                return self.close(client);
            }
        }
    }

    /// librdkafka reports failed connections, not established ones. It knows the cluster's id once it got metadata.
    pub(super) fn check_contact(&self, client: &Client) {
        if self.handle.health.is_connecting()
            && client.client().fetch_cluster_id(Duration::ZERO).is_some()
        {
            self.handle.health.report_up();
        }
    }

    /// The error after which this client cannot send anything more, if there is one.
    pub(super) fn failure(&self, client: &Client) -> Option<KafkaError> {
        if let Some((code, reason)) = client.client().fatal_error() {
            let reason = self.context.events.redactor.redact(&reason);
            let text = format!("the idempotent producer failed: {reason}");
            let error = of_code(code, text.clone());
            return Some(match error.kind() {
                // The principal may write to no topic. A new client may not either.
                ErrorKind::Authorization => error,
                _ => KafkaError::new(ErrorKind::Fatal, text),
            });
        }
        self.handle.health.has_lost_all_brokers().then(|| {
            let text = "the cluster reported no brokers, and the producer dropped them all";
            KafkaError::new(ErrorKind::Connection, text)
        })
    }

    /// Replaces a client that cannot send anything more. Messages in flight fail, since only librdkafka could
    /// resend them without duplicates. New messages wait in the overflow queue.
    ///
    /// `None` when the broker value was closed meanwhile.
    fn replace(
        &self,
        old: Arc<Client>,
        failure: KafkaError,
        pause: Duration,
        logged: &mut Option<String>,
    ) -> Option<Arc<Client>> {
        let is_refused = failure.kind() == ErrorKind::Authorization;
        let pause = if is_refused { REFUSED_PAUSE } else { pause };
        let known = is_refused.then(|| failure.to_string());
        if !is_refused || *logged != known {
            tracing::error!(%failure, ?pause, "the kafka producer failed; a new one is made");
        }
        *logged = known;
        let refusal = is_refused.then(|| failure.clone());
        let may_confirm = failure.kind() == ErrorKind::Fatal;
        self.handle.pause();
        self.handle.health.restart(failure);
        if may_confirm {
            drain(&old, Instant::now() + LAST_CONFIRMS);
        }
        purge(&old);
        drop(old);
        let mut next_try = Instant::now() + pause;
        loop {
            if Instant::now() >= next_try {
                match self.make_client() {
                    Ok(client) => {
                        self.handle.set_client(Some(Arc::clone(&client)));
                        return Some(client);
                    }
                    Err(error) => self.handle.health.restart(error),
                }
                next_try = Instant::now() + LONGEST_PAUSE;
            }
            self.handle.expire();
            if let Some(refusal) = &refusal {
                self.handle.refuse(refusal);
            }
            if self.handle.is_past_end() {
                let undelivered = self.handle.intake.in_flight();
                self.handle.abandon();
                self.handle.ended.send_replace(Some(ShutdownReport::new(undelivered)));
                return None;
            }
            thread::sleep(TICK);
        }
    }

    fn close(&mut self, mut client: Arc<Client>) {
        while self.handle.intake.in_flight() > 0
            && let Some(end) = self.handle.closes_at()
            && let now = Instant::now()
            && now < end
        {
            let wait = (end - now).min(SHORT_TICK);
            match client.in_flight_count() {
                0 => client.poll(wait),
                // A flush polls too, and does not wait for batches to fill.
                _ => drop(client.flush(wait)),
            }
            if self.handle.oversized.is_active() {
                client = self.resend(client);
            }
            self.check_contact(&client);
            self.handle.drain_overflow(&client);
        }
        let undelivered = self.handle.intake.in_flight();
        self.handle.set_client(None);
        self.handle.abandon();
        purge(&client);
        // Batches that were refused meanwhile.
        self.handle.abandon();
        self.handle.ended.send_replace(Some(ShutdownReport::new(undelivered)));
        // The client is destroyed here, on its own thread, since that can take a while.
    }
}

/// Polls until nothing is in flight, or `end`.
fn drain(client: &Client, end: Instant) {
    while client.in_flight_count() > 0 && Instant::now() < end {
        client.poll(SHORT_TICK);
    }
}

/// Fails the messages in flight; each gets its delivery report.
fn purge(client: &Client) {
    if client.in_flight_count() > 0 {
        client.purge(PurgeConfig::default().queue().inflight());
        drain(client, Instant::now() + PURGE);
    }
}

/// Reports the end of the producer when the poll thread ends, by a panic too.
struct EndReport(Arc<ProducerHandle>);

impl Drop for EndReport {
    fn drop(&mut self) {
        self.0.intake.close();
        let left = ShutdownReport::new(self.0.intake.in_flight());
        self.0.ended.send_if_modified(|report| report.is_none() && report.replace(left).is_none());
    }
}
