use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cqrs_core::broker::ShutdownReport;
use rdkafka::ClientConfig;
use rdkafka::producer::{Producer, PurgeConfig};

use super::{Client, Link};
use crate::config::KafkaConfig;
use crate::config::is_idempotent;
use crate::error::{ErrorKind, KafkaError};
use crate::events::Events;

/// Between two looks at what is not an event of librdkafka (the lane, a wish to close).
const TICK: Duration = Duration::from_millis(50);
/// The same while messages wait in the lane.
pub(super) const SHORT_TICK: Duration = Duration::from_millis(10);
/// Between replacing a producer and replacing its successor, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The same after the broker refused the principal: its rights do not come back by themselves.
const REFUSED_PAUSE: Duration = Duration::from_secs(15);
/// A producer that lived this long counts as one that worked.
const GOOD_LIFE: Duration = Duration::from_secs(30);
/// How long the last confirms of a failed producer are waited for.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);
/// How long purged messages may take to be reported.
const PURGE: Duration = Duration::from_secs(1);

/// The poll thread: serves librdkafka's events, replaces a producer that failed, and closes.
pub(crate) struct Driver {
    pub(super) link: Arc<Link>,
    pub(super) options: ClientConfig,
    context: Events,
}

impl Driver {
    /// Makes the producer and starts its thread. Connects in the background.
    pub(crate) fn start(config: &KafkaConfig) -> Result<Arc<Link>, KafkaError> {
        let (driver, client) = Self::new(config)?;
        let link = Arc::clone(&driver.link);
        let spawned = thread::Builder::new()
            .name("cqrs-kafka-producer".into())
            .spawn(move || driver.run(client));
        match spawned {
            Ok(_runs_until_closed) => Ok(link),
            Err(error) => Err(KafkaError::with_source(
                ErrorKind::Configuration,
                "the system gives no thread to the producer",
                error,
            )),
        }
    }

    /// A driver without a thread, and its first client.
    pub(super) fn new(config: &KafkaConfig) -> Result<(Self, Arc<Client>), KafkaError> {
        let options = config.to_client_config()?;
        let link = Arc::new(Link::new(config));
        let mut context = Events::new(config, Arc::clone(&link.health));
        context.resend = Arc::clone(&link.resend);
        context.is_idempotent = is_idempotent(|name| options.get(name));
        let driver = Self { link: Arc::clone(&link), options, context };
        let client = driver.make_client()?;
        link.set_client(Some(Arc::clone(&client)));
        Ok((driver, client))
    }

    pub(super) fn make_client(&self) -> Result<Arc<Client>, KafkaError> {
        let made = self.options.create_with_context(self.context.clone());
        made.map(Arc::new).map_err(|error| KafkaError::config(self.context.reason(error)))
    }

    fn run(mut self, mut client: Arc<Client>) {
        // Whoever waits for the end is told even if this thread panics.
        let _end = End(Arc::clone(&self.link));
        let (mut born, mut pause) = (Instant::now(), Duration::ZERO);
        // The last refusal that was logged.
        let mut refusal = None;
        loop {
            client.poll(if self.link.lane.is_in_use() { SHORT_TICK } else { TICK });
            if self.link.resend.is_active() {
                client = self.send_again(client);
            }
            if let Some(failure) = self.failure(&client) {
                if born.elapsed() > GOOD_LIFE {
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
            self.look_for_contact(&client);
            self.link.tend(&client);
            if self.link.closes_at().is_some() {
                return self.close(client);
            }
        }
    }

    /// librdkafka tells of failed connections, not of made ones. The cluster's id is known once
    /// metadata arrived.
    pub(super) fn look_for_contact(&self, client: &Client) {
        if self.link.health.is_connecting()
            && client.client().fetch_cluster_id(Duration::ZERO).is_some()
        {
            self.link.health.report_up();
        }
    }

    /// Why the producer can send nothing any more, if that is so.
    pub(super) fn failure(&self, client: &Client) -> Option<KafkaError> {
        if let Some((code, reason)) = client.client().fatal_error() {
            let reason = self.context.redactor.redact(&reason);
            let text = format!("the idempotent producer failed: {reason}");
            let error = KafkaError::of_code(code, text.clone());
            return Some(match error.kind() {
                // It may write to no topic at all: a new producer may not either.
                ErrorKind::Authorization => error,
                _ => KafkaError::new(ErrorKind::Fatal, text),
            });
        }
        self.link.health.is_stranded().then(|| {
            let text = "the cluster said that it has no brokers, and the producer forgot them all";
            KafkaError::new(ErrorKind::Connection, text)
        })
    }

    /// Ends a producer that can send nothing any more, and makes a new one. What was in flight fails,
    /// since only librdkafka could resend it without duplicates. New messages wait in the lane.
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
        self.link.lane.block();
        self.link.set_client(None);
        self.link.health.restart(failure);
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
                        self.link.set_client(Some(Arc::clone(&client)));
                        return Some(client);
                    }
                    Err(error) => self.link.health.restart(error),
                }
                next_try = Instant::now() + LONGEST_PAUSE;
            }
            self.link.expire();
            if let Some(refusal) = &refusal {
                self.link.refuse(refusal);
            }
            if self.link.closes_at().is_some_and(|end| end <= Instant::now()) {
                let undelivered = self.link.intake.in_flight();
                self.link.abandon();
                self.link.ended.send_replace(Some(ShutdownReport::new(undelivered)));
                return None;
            }
            thread::sleep(TICK);
        }
    }

    fn close(&mut self, mut client: Arc<Client>) {
        while self.link.intake.in_flight() > 0
            && let Some(end) = self.link.closes_at()
            && let now = Instant::now()
            && now < end
        {
            let wait = (end - now).min(SHORT_TICK);
            match client.in_flight_count() {
                0 => client.poll(wait),
                // A flush polls too, and does not wait for batches to fill.
                _ => drop(client.flush(wait)),
            }
            if self.link.resend.is_active() {
                client = self.send_again(client);
            }
            self.look_for_contact(&client);
            self.link.tend(&client);
        }
        let undelivered = self.link.intake.in_flight();
        self.link.set_client(None);
        self.link.abandon();
        purge(&client);
        // What was refused meanwhile.
        self.link.abandon();
        self.link.ended.send_replace(Some(ShutdownReport::new(undelivered)));
        // The client is destroyed here, on its own thread: that can take a while.
    }
}

/// Polls until nothing is in flight, or `end`.
fn drain(client: &Client, end: Instant) {
    while client.in_flight_count() > 0 && Instant::now() < end {
        client.poll(SHORT_TICK);
    }
}

/// Ends what is in flight; each message gets its verdict.
fn purge(client: &Client) {
    if client.in_flight_count() > 0 {
        client.purge(PurgeConfig::default().queue().inflight());
        drain(client, Instant::now() + PURGE);
    }
}

struct End(Arc<Link>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.intake.close();
        let left = ShutdownReport::new(self.0.intake.in_flight());
        self.0.ended.send_if_modified(|report| report.is_none() && report.replace(left).is_none());
    }
}
