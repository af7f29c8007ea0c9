use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cqrs_core::broker::{
    BoxFuture, BrokerState, Intake, PendingConfirm, Receipt, ShutdownReport, Window,
};
use cqrs_core::consume::{Source, Subscribe, SubscribeError, SubscribeErrorKind, SubscribeRequest};
use cqrs_core::{Message, MessageBroker, PublishError, PublishErrorKind};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::connect::Connector;
use crate::consumer::Consuming;
use crate::producer::frame::FrameFormat;
use crate::producer::lane::{self, Shared};
use crate::producer::status::Status;
use crate::{AmqpConfig, AmqpError};

/// Publishes to RabbitMQ: persistent messages, publisher confirms, resent after a connection loss.
///
/// A [`MessageBroker`]; publish with [`MessageBrokerExt`](cqrs_core::MessageBrokerExt). And a [`Subscribe`]:
/// its subscriptions have connections of their own, and end by themselves. Clones share its
/// connections. When the last one is dropped without [`shutdown`](MessageBroker::shutdown), its tasks end
/// and what is in flight is given up.
///
/// ```no_run
/// use cqrs_amqp::{AmqpConfig, AmqpMessageBroker};
/// use cqrs_core::{Message, MessageBrokerExt};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = AmqpMessageBroker::connect(AmqpConfig::from_env()?).await?;
/// broker.publish(Message::new("user_events", r#"{"user_id":"1"}"#).with_key("1")).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct AmqpMessageBroker(Arc<Producer>);

struct Producer {
    intake: Intake,
    lanes: Box<[mpsc::UnboundedSender<PendingConfirm>]>,
    next_keyless: AtomicUsize,
    format: FrameFormat,
    status: Status,
    consuming: Consuming,
    ending: Ending,
}

/// What a shutdown needs, and how it ended.
struct Ending {
    runtime: Handle,
    /// Taken by the first shutdown.
    tasks: Mutex<Option<Tasks>>,
    stop: watch::Sender<Option<Instant>>,
    report: watch::Receiver<Option<ShutdownReport>>,
}

struct Tasks {
    lanes: Vec<JoinHandle<usize>>,
    connector: Arc<Connector>,
    report: watch::Sender<Option<ShutdownReport>>,
}

impl AmqpMessageBroker {
    /// Makes the broker value, whether or not the server is up; it connects in the background, for ever.
    ///
    /// Must be called inside a tokio runtime with time and I/O enabled; its tasks run there.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config): a setting is wrong, or a certificate cannot be
    /// read.
    pub fn new(config: AmqpConfig) -> Result<Self, AmqpError> {
        config.validate()?;
        let runtime = Handle::try_current().map_err(|_| {
            AmqpError::config("an AmqpMessageBroker is made inside a tokio runtime")
        })?;
        let connector = Arc::new(Connector::new(&config)?);
        let count = usize::from(config.pool_size) * usize::from(config.channels_per_connection);
        let status = Status::new(count);
        let format = FrameFormat::new(&config);
        let (stop, stopped) = watch::channel(None);
        let (report, reported) = watch::channel(None);
        let shared = Shared {
            connector: Arc::clone(&connector),
            status: status.clone(),
            format: format.clone(),
            stop: stopped,
        };
        let (lanes, tasks): (Vec<_>, Vec<_>) = (0..count)
            .map(|index| {
                let (lane, jobs) = mpsc::unbounded_channel();
                (lane, runtime.spawn(lane::run(index, shared.clone(), jobs)))
            })
            .unzip();
        let window = Window::new(config.window_messages, config.window_bytes);
        let cause = status.clone();
        let intake = Intake::new(window, config.publish_timeout)
            .with_cause(move || cause.cause().map(Into::into));
        let tasks = Mutex::new(Some(Tasks { lanes: tasks, connector, report }));
        Ok(Self(Arc::new(Producer {
            intake,
            lanes: lanes.into(),
            next_keyless: AtomicUsize::new(0),
            format,
            status,
            consuming: Consuming::new(&config)?,
            ending: Ending { runtime, tasks, stop, report: reported },
        })))
    }

    /// Makes the broker value and waits until it is connected and its topology stands.
    ///
    /// For a server that may come up later, use [`new`](Self::new).
    ///
    /// # Errors
    /// As [`new`](Self::new); and the first failure to connect, within the connect timeout.
    pub async fn connect(config: AmqpConfig) -> Result<Self, AmqpError> {
        let broker = Self::new(config)?;
        broker.0.status.connected().await?;
        Ok(broker)
    }

    /// Messages that wait or are in flight, without a verdict.
    pub fn in_flight(&self) -> usize {
        self.0.intake.in_flight()
    }

    fn check(&self, message: Message) -> Result<Message, PublishError> {
        match self.0.format.check(&message) {
            Ok(()) => Ok(message),
            Err((kind, detail)) => Err(PublishError::new(kind, message, detail)),
        }
    }

    /// Fixes the message's place in the order of its lane.
    fn send(&self, pending: PendingConfirm) -> Result<(), PublishError> {
        let lane = self.lane(pending.message());
        let Some(lane) = self.0.lanes.get(lane) else {
            return Err(pending.reject(PublishErrorKind::Closed, "it has no lanes"));
        };
        lane.send(pending).map_err(|mpsc::error::SendError(pending)| {
            let detail = match self.0.intake.is_closed() {
                true => "shutdown was called on it",
                false => "one of its tasks ended by a panic; make a new broker value",
            };
            pending.reject(PublishErrorKind::Closed, detail)
        })
    }

    /// The same for all messages of one topic and key; in turn for those without a key.
    fn lane(&self, message: &Message) -> usize {
        let lanes = self.0.lanes.len().max(1);
        match &message.key {
            Some(key) => {
                let mut hasher = DefaultHasher::new();
                (&*message.topic, key).hash(&mut hasher);
                (hasher.finish() % lanes as u64) as usize
            }
            None => self.0.next_keyless.fetch_add(1, Ordering::Relaxed) % lanes,
        }
    }
}

impl MessageBroker for AmqpMessageBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            let (pending, receipt) = self.0.intake.admit(self.check(message)?).await?;
            self.send(pending)?;
            Ok(receipt)
        })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let (pending, receipt) = self.0.intake.try_admit(self.check(message)?)?;
        self.send(pending)?;
        Ok(receipt)
    }

    fn state(&self) -> BrokerState {
        match self.0.intake.is_closed() {
            true => BrokerState::Closed,
            false => self.0.status.state(),
        }
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.intake.close();
        let tasks = self.0.ending.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tasks) = tasks {
            let now = Instant::now();
            let far = Duration::from_secs(365 * 24 * 3600);
            self.0.ending.stop.send_replace(Some(now + deadline.min(far)));
            self.0.ending.runtime.spawn(end(tasks));
        }
        let mut report = self.0.ending.report.clone();
        Box::pin(async move {
            match report.wait_for(Option::is_some).await {
                Ok(report) => report.unwrap_or_default(),
                // The runtime is shutting down.
                Err(_) => ShutdownReport::new(self.0.intake.in_flight()),
            }
        })
    }
}

impl Subscribe for AmqpMessageBroker {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        self.0.consuming.check(requests)
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        if self.0.intake.is_closed() {
            let detail = format!("subscription {:?}: the broker value is shut down", request.name);
            let error = SubscribeError::new(SubscribeErrorKind::Closed, detail);
            return Box::pin(std::future::ready(Err(error)));
        }
        Box::pin(self.0.consuming.subscribe(request))
    }
}

async fn end(Tasks { lanes, connector, report }: Tasks) {
    /// How long closing the connections may take; those that do not answer are dropped.
    const CLOSING: Duration = Duration::from_secs(1);
    let mut undelivered = 0;
    for lane in lanes {
        // A lane that panicked failed its messages then.
        undelivered += lane.await.unwrap_or_default();
    }
    connector.close(CLOSING).await;
    if undelivered > 0 {
        tracing::warn!(undelivered, "shut down with messages that were not confirmed");
    }
    report.send_replace(Some(ShutdownReport::new(undelivered)));
}

impl fmt::Debug for AmqpMessageBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpMessageBroker")
            .field("state", &self.state())
            .field("in_flight", &self.in_flight())
            .field("lanes", &self.0.lanes.len())
            .finish_non_exhaustive()
    }
}
