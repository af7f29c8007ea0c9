//! The producer of one `AmqpMessageBroker`: admits messages and sends each to its publisher; used by the broker.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::broker::{
    BoxFuture, BrokerState, Intake, PendingConfirm, Receipt, ShutdownReport, Window,
};
use cqrs_core::consume::support::far_deadline;
use cqrs_core::{Message, PublishError, PublishErrorKind};
use foldhash::quality::RandomState;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::frame::FrameFormat;
use super::publisher::{self, PublisherContext};
use super::status::Status;
use crate::config::AmqpConfig;
use crate::connect::Connector;
use crate::error::AmqpError;

/// The publisher tasks of a broker value and the window of unconfirmed messages before them. Dropping it stops the
/// tasks.
pub(crate) struct ProducerHandle {
    intake: Intake,
    publishers: Box<[mpsc::UnboundedSender<PendingConfirm>]>,
    next_keyless: AtomicUsize,
    hasher: RandomState,
    format: Arc<FrameFormat>,
    pub(crate) status: Status,
    runtime: Handle,
    /// Taken by the first shutdown.
    tasks: Mutex<Option<Tasks>>,
    stop: watch::Sender<Option<Instant>>,
    report: watch::Receiver<Option<ShutdownReport>>,
}

struct Tasks {
    publishers: Vec<JoinHandle<usize>>,
    connector: Arc<Connector>,
    report: watch::Sender<Option<ShutdownReport>>,
}

impl ProducerHandle {
    /// Starts the publishers, which connect in the background.
    pub(crate) fn new(config: &AmqpConfig) -> Result<Self, AmqpError> {
        let runtime = Handle::try_current().map_err(|_| {
            AmqpError::config("an AmqpMessageBroker must be created inside a tokio runtime")
        })?;
        let connector = Arc::new(Connector::new(config)?);
        let count = usize::from(config.pool_size) * usize::from(config.channels_per_connection);
        let status = Status::new(count);
        let format = Arc::new(FrameFormat::new(config));
        let (stop, stopped) = watch::channel(None);
        let (report_sender, report) = watch::channel(None);
        let context = PublisherContext {
            connector: Arc::clone(&connector),
            status: status.clone(),
            format: Arc::clone(&format),
            stop: stopped,
        };
        let (publishers, tasks): (Vec<_>, Vec<_>) = (0..count)
            .map(|index| {
                let (publisher, messages) = mpsc::unbounded_channel();
                (publisher, runtime.spawn(publisher::run(index, context.clone(), messages)))
            })
            .unzip();
        let window = Window::new(config.window_messages, config.window_bytes);
        let cause = status.clone();
        let intake = Intake::new(window, config.publish_timeout)
            .with_cause(move || cause.cause().map(Into::into));
        let tasks = Mutex::new(Some(Tasks { publishers: tasks, connector, report: report_sender }));
        Ok(Self {
            intake,
            publishers: publishers.into(),
            next_keyless: AtomicUsize::new(0),
            hasher: RandomState::default(),
            format,
            status,
            runtime,
            tasks,
            stop,
            report,
        })
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.intake.in_flight()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.intake.is_closed()
    }

    pub(crate) fn state(&self) -> BrokerState {
        match self.is_closed() {
            true => BrokerState::Closed,
            false => self.status.state(),
        }
    }

    pub(crate) async fn enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        if let Err((kind, detail)) = self.format.check(&message) {
            return Err(PublishError::new(kind, message, detail));
        }
        let (pending, receipt) = self.intake.admit(message).await?;
        self.send(pending)?;
        Ok(receipt)
    }

    pub(crate) fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        if let Err((kind, detail)) = self.format.check(&message) {
            return Err(PublishError::new(kind, message, detail));
        }
        let (pending, receipt) = self.intake.try_admit(message)?;
        self.send(pending)?;
        Ok(receipt)
    }

    /// Fixes the message's place in the order of its publisher.
    fn send(&self, pending: PendingConfirm) -> Result<(), PublishError> {
        let Some(publisher) = self.publishers.get(self.publisher_of(pending.message())) else {
            return Err(pending.reject(PublishErrorKind::Closed, "it has no channels"));
        };
        publisher.send(pending).map_err(|mpsc::error::SendError(pending)| {
            let detail = match self.intake.is_closed() {
                true => "shutdown was called on it",
                false => "one of its tasks ended by a panic; make a new broker value",
            };
            pending.reject(PublishErrorKind::Closed, detail)
        })
    }

    /// The same for all messages of one key; round robin for those without a key.
    fn publisher_of(&self, message: &Message) -> usize {
        let count = self.publishers.len().max(1);
        match &message.key {
            Some(key) => publisher_of_key(&self.hasher, key, count),
            None => self.next_keyless.fetch_add(1, Ordering::Relaxed) % count,
        }
    }

    pub(crate) fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.intake.close();
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tasks) = tasks {
            self.stop.send_replace(Some(far_deadline(deadline)));
            self.runtime.spawn(end(tasks));
        }
        let mut report = self.report.clone();
        Box::pin(async move {
            match report.wait_for(Option::is_some).await {
                Ok(report) => report.unwrap_or_default(),
                // The runtime is shutting down.
                Err(_) => ShutdownReport::new(self.in_flight()),
            }
        })
    }
}

/// The publisher, of `count`, of all messages with this key.
fn publisher_of_key(hasher: &RandomState, key: &[u8], count: usize) -> usize {
    (hasher.hash_one(key) % count as u64) as usize
}

async fn end(Tasks { publishers, connector, report }: Tasks) {
    /// Limit for closing the connections; those that do not answer are dropped.
    const CLOSING: Duration = Duration::from_secs(1);
    let mut undelivered = 0;
    for publisher in publishers {
        // A publisher that panicked failed its messages then.
        undelivered += publisher.await.unwrap_or_default();
    }
    connector.close(CLOSING).await;
    if undelivered > 0 {
        tracing::warn!(undelivered, "shut down with messages that were not confirmed");
    }
    report.send_replace(Some(ShutdownReport::new(undelivered)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_over_all_publishers() {
        let hasher = RandomState::default();
        let shapes: [fn(u32) -> String; 3] = [
            |number| format!("{number:04}"),
            |number| format!("user-{number}"),
            |number| uuid::Uuid::from_u128(number.into()).to_string(),
        ];
        for (shape, count) in shapes.into_iter().flat_map(|shape| [(shape, 2), (shape, 8)]) {
            let mut messages = vec![0; count];
            for number in 0..1_000 {
                messages[publisher_of_key(&hasher, shape(number).as_bytes(), count)] += 1;
            }
            let (share, least) = (1_000 / count, messages.iter().min());
            assert!(least >= Some(&(share / 2)), "{} of {count}: {messages:?}", shape(0));
        }
    }
}
