use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use cqrs_core::PublishErrorKind;
use cqrs_core::broker::{BoxFuture, PendingConfirm};
use lapin::Confirmation;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};

use super::confirms::Confirms;
use super::frame::{Frame, FrameFormat};
use super::ledger::{Ledger, Returned};
use super::status::{LaneState, Status};
use crate::connect::{Connector, Health, Link};
use crate::{AmqpError, ErrorKind};

/// Messages handed to lapin that it has not written to the socket. What waits beyond these stays with us
/// and can be reported as "not sent" when the server does not read.
const UNWRITTEN: usize = 128;
/// Messages written before the other events of the lane are looked at.
const BATCH: usize = 64;
/// Messages the server may leave unanswered for good before the lane takes a new channel.
const GIVEN_UP: usize = 10_000;

/// What all lanes share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) connector: Arc<Connector>,
    pub(crate) status: Status,
    pub(crate) format: FrameFormat,
    /// When set: finish until then, and end.
    pub(crate) stop: watch::Receiver<Option<Instant>>,
}

/// The task that owns one channel and all messages of its lane; see the [module](super).
///
/// Returns how many messages were given up after the shutdown began.
pub(crate) async fn run(
    index: usize,
    shared: Shared,
    jobs: mpsc::UnboundedReceiver<PendingConfirm>,
) -> usize {
    let mut guard = PanicGuard { index, status: Some(shared.status.clone()) };
    let undelivered = Lane::new(index, shared, jobs).run().await;
    guard.status = None;
    undelivered
}

struct Lane {
    index: usize,
    shared: Shared,
    jobs: mpsc::UnboundedReceiver<PendingConfirm>,
    ledger: Ledger,
    line: Line,
    confirms: Confirms<lapin::Result<Confirmation>>,
    unwritten: Arc<AtomicUsize>,
    declaring: Option<Declaring>,
    /// Whether the topology was declared again since the server last took a message.
    declared_again: bool,
    stop_at: Option<Instant>,
    undelivered: usize,
}

enum Line {
    /// Never fails: tries again for ever.
    Opening(BoxFuture<'static, Link>),
    Open(Link),
}

/// The declaration of a topic, which it names.
type Declaring = BoxFuture<'static, (Arc<str>, Result<(), AmqpError>)>;

/// What the lane waits for.
enum Event {
    Stop(Option<Instant>),
    BrokerDropped,
    TimeIsUp,
    Jobs,
    Opened(Link),
    Progress,
    Health,
    Declared(Arc<str>, Result<(), AmqpError>),
    Deadline,
}

impl Lane {
    fn new(index: usize, shared: Shared, jobs: mpsc::UnboundedReceiver<PendingConfirm>) -> Self {
        let line = Line::Opening(open(index, shared.clone(), None));
        Self {
            index,
            shared,
            jobs,
            ledger: Ledger::new(),
            line,
            confirms: Confirms::new(),
            unwritten: Arc::default(),
            declaring: None,
            declared_again: false,
            stop_at: None,
            undelivered: 0,
        }
    }

    async fn run(mut self) -> usize {
        let mut batch = Vec::new();
        let mut done = Vec::new();
        let mut timer = Box::pin(tokio::time::sleep_until(Instant::now()));
        loop {
            self.expire();
            self.write(&mut done);
            if !done.is_empty() {
                self.settle(&mut done);
                continue;
            }
            if self.stop_at.is_some() && self.jobs.is_closed() && self.jobs.is_empty() {
                // Nothing new can come.
                if self.ledger.is_empty() {
                    return self.undelivered;
                }
            }
            match self.wait(&mut batch, &mut done, timer.as_mut()).await {
                Event::Stop(at) => {
                    self.stop_at = at;
                    self.jobs.close();
                }
                Event::BrokerDropped => return self.undelivered,
                Event::TimeIsUp => {
                    while let Ok(pending) = self.jobs.try_recv() {
                        self.ledger.push(pending);
                    }
                    return self.undelivered + self.ledger.abandon();
                }
                Event::Jobs => batch.drain(..).for_each(|job| self.ledger.push(job)),
                Event::Opened(link) => self.opened(link),
                Event::Progress => self.settle(&mut done),
                Event::Health => self.health_changed(&mut done),
                Event::Declared(topic, result) => self.declared(&topic, result),
                Event::Deadline => self.look_at_channel(),
            }
        }
    }

    /// Waits for the next event. Cancel safe but for the futures it owns.
    async fn wait(
        &mut self,
        batch: &mut Vec<PendingConfirm>,
        done: &mut Vec<(u64, lapin::Result<Confirmation>)>,
        mut timer: Pin<&mut Sleep>,
    ) -> Event {
        let deadline = [self.ledger.next_deadline(), self.stop_at].into_iter().flatten().min();
        if let Some(deadline) = deadline
            && timer.deadline() != deadline
        {
            timer.as_mut().reset(deadline);
        }
        let wants_to_write = self.wants_to_write();
        let Self { shared, jobs, line, confirms, unwritten, declaring, stop_at, .. } = self;
        let stopping = stop_at.is_some();
        let (opening, link) = match line {
            Line::Opening(opening) => (Some(opening), None),
            Line::Open(link) => (None, Some(link)),
        };
        let is_open = link.is_some();
        let progress = |cx: &mut Context<'_>| match confirms.poll_done(cx, done) {
            // lapin wrote something, so that more can be handed to it.
            Poll::Pending if wants_to_write && unwritten.load(Ordering::Acquire) < UNWRITTEN => {
                Poll::Ready(())
            }
            poll => poll,
        };
        tokio::select! {
            biased;
            changed = shared.stop.changed(), if !stopping => match changed {
                Ok(()) => Event::Stop(*shared.stop.borrow()),
                Err(_dropped) => Event::BrokerDropped,
            },
            () = timer, if deadline.is_some() => match *stop_at {
                Some(at) if at <= Instant::now() => Event::TimeIsUp,
                _ => Event::Deadline,
            },
            _lost_or_changed = changed(link) => Event::Health,
            link = or_never(opening) => Event::Opened(link),
            (topic, result) = or_never(declaring.as_mut()) => {
                *declaring = None;
                Event::Declared(topic, result)
            },
            received = jobs.recv_many(batch, BATCH), if !(jobs.is_closed() && jobs.is_empty()) => {
                match received {
                    0 if !stopping => Event::BrokerDropped,
                    _ => Event::Jobs,
                }
            },
            () = poll_fn(progress), if is_open => Event::Progress,
        }
    }

    /// Whether a message waits that may be written now.
    fn wants_to_write(&self) -> bool {
        let Line::Open(link) = &self.line else { return false };
        let up = matches!(*link.health.borrow(), Health::Up);
        up && self.declaring.is_none()
            && link.channel.status().connected()
            && self.ledger.next().is_some()
    }

    /// Hands messages to lapin, as many as it may have.
    fn write(&mut self, done: &mut Vec<(u64, lapin::Result<Confirmation>)>) {
        for _ in 0..BATCH {
            if !self.wants_to_write() || self.unwritten.load(Ordering::Acquire) >= UNWRITTEN {
                return;
            }
            let Line::Open(link) = &self.line else { return };
            let Some(message) = self.ledger.next() else { return };
            let (header, limit) =
                (self.shared.format.header_bytes(message), link.connection.header_max());
            if header > limit {
                let detail = format!(
                    "its headers and properties take {header} bytes, at most {limit} fit into a frame \
                     of this connection beside what the server adds"
                );
                self.ledger.refuse_next(PublishErrorKind::TooLarge, detail, None);
                continue;
            }
            if self.shared.connector.topology().is_missing(&link.connection, &message.topic) {
                let topic = Arc::clone(&message.topic);
                self.declaring = Some(declare(&self.shared.connector, link, topic));
                return;
            }
            let frame = self.shared.format.frame(message);
            let (body, mandatory) = (message.body.clone(), message.mandatory);
            let Some(number) = self.ledger.write_next() else { continue };
            let unwritten = Unwritten::new(&self.unwritten);
            let publishing = publish(Arc::clone(&link.channel), frame, body, mandatory, unwritten);
            if let Some(result) = self.confirms.start(number, publishing) {
                done.push((number, result));
            }
        }
    }

    /// Books the server's answers, and settles what they make certain.
    fn settle(&mut self, done: &mut Vec<(u64, lapin::Result<Confirmation>)>) {
        let mut failure: Option<lapin::Error> = None;
        for (number, result) in done.drain(..) {
            match result {
                Ok(Confirmation::Ack(returned)) => {
                    self.declared_again = false;
                    if let Line::Open(link) = &mut self.line {
                        link.confirmed = true;
                    }
                    self.ledger.answered(number, true, returned.map(read_return));
                }
                Ok(Confirmation::Nack(returned)) => {
                    self.ledger.answered(number, false, returned.map(read_return));
                }
                Ok(Confirmation::NotRequested) => {
                    let state =
                        lapin::ErrorKind::InvalidConnectionState(lapin::ConnectionState::Error);
                    failure.get_or_insert(state.into());
                }
                // The server's own words are the cause; what else fails is a consequence.
                Err(error) if error.is_amqp_error() => failure = Some(error),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            None => self.ledger.cut(),
            Some(error) if error.is_amqp_soft_error() => {
                let detail = "the server closed the channel";
                let error = AmqpError::from_lapin(ErrorKind::ChannelClosed, detail, &error);
                self.channel_closed(error);
            }
            Some(error) => {
                let detail = "the channel was lost with its connection";
                self.lose(AmqpError::from_lapin(ErrorKind::ConnectionLost, detail, &error));
            }
        }
        if self.ledger.given_up() > GIVEN_UP {
            let detail = format!("the server left {GIVEN_UP} messages of a channel unanswered");
            self.lose(AmqpError::new(ErrorKind::ConnectionLost, detail));
        }
    }

    fn channel_closed(&mut self, error: AmqpError) {
        tracing::warn!(error = %error.chain(), "channel closed by the server");
        let Line::Open(link) = &self.line else { return };
        self.confirms.clear();
        let missing = error.reply_code() == Some(404);
        if missing && self.shared.connector.topology().declares() && !self.declared_again {
            // Somebody deleted the exchange. The message is not to blame until it is there again.
            link.connection.forget_topology();
            self.declared_again = true;
            self.ledger.closed_by_nobody();
        } else {
            self.ledger.closed(&error);
        }
        // No backoff: with each channel at least one message more gets its verdict.
        self.reopen(error, false);
    }

    /// The channel is of no use any more: what is on it is written again on the next one.
    fn lose(&mut self, error: AmqpError) {
        if let Line::Open(_) = &self.line {
            self.confirms.clear();
            self.ledger.lost();
            self.reopen(error, true);
        }
    }

    fn reopen(&mut self, error: AmqpError, backoff: bool) {
        self.declaring = None;
        self.unwritten = Arc::default();
        self.shared.status.set(self.index, LaneState::Down(Some(error)));
        let next = Line::Opening(Box::pin(std::future::pending()));
        if let Line::Open(link) = std::mem::replace(&mut self.line, next) {
            let lost = backoff.then_some(link);
            self.line = Line::Opening(open(self.index, self.shared.clone(), lost));
        }
    }

    fn opened(&mut self, link: Link) {
        self.line = Line::Open(link);
        self.show_health();
    }

    fn health_changed(&mut self, done: &mut Vec<(u64, lapin::Result<Confirmation>)>) {
        let Line::Open(link) = &self.line else { return };
        let health = link.health.borrow().clone();
        match health {
            Health::Up | Health::Blocked(_) => self.show_health(),
            Health::Lost(error) => {
                // Answers that came before the loss count.
                let mut cx = Context::from_waker(std::task::Waker::noop());
                if self.confirms.poll_done(&mut cx, done).is_ready() {
                    self.settle(done);
                }
                self.lose(error);
            }
        }
    }

    fn show_health(&self) {
        let Line::Open(link) = &self.line else { return };
        let state = match &*link.health.borrow() {
            Health::Up => LaneState::Ready,
            Health::Blocked(reason) => LaneState::Blocked(Arc::clone(reason)),
            Health::Lost(error) => LaneState::Down(Some(error.clone())),
        };
        self.shared.status.set(self.index, state);
    }

    fn declared(&mut self, topic: &str, result: Result<(), AmqpError>) {
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Topology => {
                if self.ledger.next().is_some_and(|message| *message.topic == *topic) {
                    let detail = format!("its queue cannot be declared: {}", error.chain());
                    let refused = PublishErrorKind::Refused;
                    self.ledger.refuse_next(refused, detail, Some(error));
                }
            }
            Err(error) => self.lose(error),
        }
    }

    fn expire(&mut self) {
        let expired = self.ledger.expire(Instant::now());
        if self.stop_at.is_some() {
            self.undelivered += expired;
        }
    }

    /// A channel that died without a word, while nothing was on it that could fail.
    fn look_at_channel(&mut self) {
        if let Line::Open(link) = &self.line
            && !link.channel.status().connected()
        {
            self.lose(AmqpError::new(ErrorKind::ConnectionLost, "the channel is closed"));
        }
    }
}

/// Opens a channel, for ever; `lost` is the one before, when its loss counts for the backoff.
fn open(index: usize, shared: Shared, lost: Option<Link>) -> BoxFuture<'static, Link> {
    Box::pin(async move {
        if let Some(link) = lost {
            shared.connector.lost(&link).await;
        }
        loop {
            match shared.connector.open().await {
                Ok(link) => return link,
                Err(error) => shared.status.set(index, LaneState::Down(Some(error))),
            }
        }
    })
}

fn declare(connector: &Arc<Connector>, link: &Link, topic: Arc<str>) -> Declaring {
    let (connector, connection) = (Arc::clone(connector), Arc::clone(&link.connection));
    Box::pin(async move {
        let declaring = connector.topology().declare_topic(&connection, Arc::clone(&topic));
        let limit = connector.attempt_timeout();
        let result = tokio::time::timeout(limit, declaring).await.unwrap_or_else(|_elapsed| {
            let detail = format!("declaring queue {topic:?}: no answer within {limit:?}");
            Err(AmqpError::new(ErrorKind::ConnectionLost, detail))
        });
        (topic, result)
    })
}

/// Writes one message and waits for its confirm. The first poll hands it to lapin.
async fn publish(
    channel: Arc<lapin::Channel>,
    frame: Frame,
    body: Bytes,
    mandatory: bool,
    unwritten: Unwritten,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
    let Frame { exchange, routing_key, properties } = frame;
    let confirm = channel.basic_publish(exchange, routing_key, options, &body, properties).await?;
    drop((unwritten, body));
    confirm.await
}

/// Counts a message until lapin has written it.
struct Unwritten(Arc<AtomicUsize>);

impl Unwritten {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn read_return(returned: BasicReturnMessage) -> Returned {
    let id = returned.properties.message_id().as_ref();
    Returned {
        id: id.and_then(|id| id.as_str().parse().ok()),
        topic: returned.routing_key.to_string(),
        reason: format!("the server says {}: {}", returned.reply_code, returned.reply_text),
    }
}

/// The connection's health changed, or its watcher is gone; never, without a link.
async fn changed(link: Option<&mut Link>) {
    match link {
        Some(link) => {
            if link.health.changed().await.is_err() {
                // The last state, a loss, has been seen.
                std::future::pending().await
            }
        }
        None => std::future::pending().await,
    }
}

async fn or_never<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Says so in the broker's state when a lane ends by a panic.
struct PanicGuard {
    index: usize,
    status: Option<Status>,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(status) = &self.status
        {
            let detail = "a task of the broker value ended by a panic; make a new broker value";
            let error = AmqpError::new(ErrorKind::ConnectionLost, detail);
            status.set(self.index, LaneState::Down(Some(error)));
        }
    }
}
