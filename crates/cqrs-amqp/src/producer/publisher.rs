//! One publisher: the task that owns a channel and its unconfirmed messages; started by the producer handle.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cqrs_core::PublishErrorKind;
use cqrs_core::broker::{BoxFuture, PendingConfirm};
use cqrs_core::consume::support::error_chain;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};

use super::frame::FrameFormat;
use super::opening::{open, reopen};
use super::status::{PublisherState, Status};
use super::unconfirmed::Unconfirmed;
use crate::connect::{Answer, ConfirmChannel, Connector, Health, PooledChannel};
use crate::error::{AmqpError, ErrorKind, channel_close};

/// Messages handed to the connection that are not on their way to the socket. Further ones stay queued here and can
/// be reported as "not sent" if the server does not read.
const UNWRITTEN: usize = 128;
/// Messages sent before the other events of the publisher are polled.
const BATCH: usize = 64;
/// Expired messages that the server may leave unanswered before the publisher opens a new channel.
const MAX_UNANSWERED: usize = 10_000;

/// The state that all publishers share.
#[derive(Clone)]
pub(crate) struct PublisherContext {
    pub(crate) connector: Arc<Connector>,
    pub(crate) status: Status,
    pub(crate) format: Arc<FrameFormat>,
    /// Set by a shutdown: the time until which a publisher may finish.
    pub(crate) stop: watch::Receiver<Option<Instant>>,
}

/// Runs a publisher until shutdown. Returns how many messages expired or were abandoned after that began.
pub(crate) async fn run(
    index: usize,
    context: PublisherContext,
    messages: mpsc::UnboundedReceiver<PendingConfirm>,
) -> usize {
    let mut guard = PanicGuard { index, status: Some(context.status.clone()) };
    let undelivered = Publisher::new(index, context, messages).run().await;
    guard.status = None;
    undelivered
}

struct Publisher {
    index: usize,
    context: PublisherContext,
    messages: mpsc::UnboundedReceiver<PendingConfirm>,
    unconfirmed: Unconfirmed,
    channel: PublisherChannel,
    /// Memory for frames.
    frames: Vec<u8>,
    declaring: Option<Declaring>,
    /// Set if the topology was declared again since the last ack.
    declared_again: bool,
    stop_at: Option<Instant>,
    undelivered: usize,
}

enum PublisherChannel {
    /// Retried forever.
    Opening(BoxFuture<'static, PooledChannel>),
    Open(OpenChannel),
}

/// Dropped in this order: what it has not written is discarded before lapin closes the channel.
struct OpenChannel {
    confirms: ConfirmChannel,
    pooled: PooledChannel,
}

/// The declaration of a topic: its name and the result.
type Declaring = BoxFuture<'static, (Arc<str>, Result<(), AmqpError>)>;

/// An event that the publisher waits for.
enum PublisherEvent {
    Stop(Option<Instant>),
    BrokerDropped,
    ShutdownDeadline,
    /// More messages to publish.
    Messages,
    Opened(PooledChannel),
    /// Answers of the server, or room for messages to write.
    Progress,
    Health,
    Declared(Arc<str>, Result<(), AmqpError>),
    Deadline,
}

impl Publisher {
    fn new(
        index: usize,
        context: PublisherContext,
        messages: mpsc::UnboundedReceiver<PendingConfirm>,
    ) -> Self {
        let channel = PublisherChannel::Opening(Box::pin(open(index, context.clone())));
        Self {
            index,
            context,
            messages,
            unconfirmed: Unconfirmed::default(),
            channel,
            frames: Vec::new(),
            declaring: None,
            declared_again: false,
            stop_at: None,
            undelivered: 0,
        }
    }

    async fn run(mut self) -> usize {
        let mut batch = Vec::new();
        let mut answers = Vec::new();
        let mut timer = Box::pin(tokio::time::sleep_until(Instant::now()));
        loop {
            self.expire();
            self.write();
            let is_last = self.messages.is_closed() && self.messages.is_empty();
            if self.stop_at.is_some() && is_last && self.unconfirmed.is_empty() {
                self.close_channel().await;
                return self.undelivered;
            }
            match self.wait(&mut batch, &mut answers, timer.as_mut()).await {
                PublisherEvent::Stop(at) => {
                    self.stop_at = at;
                    self.messages.close();
                }
                PublisherEvent::BrokerDropped => return self.undelivered,
                PublisherEvent::ShutdownDeadline => {
                    while let Ok(pending) = self.messages.try_recv() {
                        self.unconfirmed.push(pending);
                    }
                    return self.undelivered + self.unconfirmed.abandon();
                }
                PublisherEvent::Messages => {
                    batch.drain(..).for_each(|message| self.unconfirmed.push(message))
                }
                PublisherEvent::Opened(pooled) => self.opened(pooled),
                PublisherEvent::Progress => self.settle(&mut answers),
                PublisherEvent::Health => self.health_changed(&mut answers),
                PublisherEvent::Declared(topic, result) => self.declared(&topic, result),
                PublisherEvent::Deadline => self.check_channel(),
            }
        }
    }

    /// Closes the channel before its connection is: if both end at once, lapin logs an error.
    async fn close_channel(&mut self) {
        const LIMIT: Duration = Duration::from_secs(1);
        let next = PublisherChannel::Opening(Box::pin(std::future::pending()));
        let PublisherChannel::Open(open) = std::mem::replace(&mut self.channel, next) else {
            return;
        };
        let OpenChannel { confirms, pooled } = open;
        // Discards expired messages: none may follow the close.
        drop(confirms);
        let left = self.stop_at.map(|at| at.saturating_duration_since(Instant::now()));
        let limit = left.map_or(LIMIT, |left| left.min(LIMIT));
        // lapin writes no frame on a blocked connection.
        if !pooled.connection.lapin().status().blocked() {
            let closing = pooled.channel.close(200, "OK".into());
            let _closed_with_its_connection = tokio::time::timeout(limit, closing).await;
        }
    }

    /// Waits for the next event. Cancel safe but for the futures it owns.
    async fn wait(
        &mut self,
        batch: &mut Vec<PendingConfirm>,
        answers: &mut Vec<Answer>,
        mut timer: Pin<&mut Sleep>,
    ) -> PublisherEvent {
        let deadline = [self.unconfirmed.next_deadline(), self.stop_at].into_iter().flatten().min();
        if let Some(deadline) = deadline
            && timer.deadline() != deadline
        {
            timer.as_mut().reset(deadline);
        }
        let wants_to_write = self.wants_to_write();
        let Self { context, messages, channel, declaring, stop_at, .. } = self;
        let stopping = stop_at.is_some();
        let (opening, open) = match channel {
            PublisherChannel::Opening(opening) => (Some(opening), None),
            PublisherChannel::Open(open) => (None, Some(open)),
        };
        let (confirms, pooled) = match open {
            Some(OpenChannel { confirms, pooled }) => (Some(confirms), Some(pooled)),
            None => (None, None),
        };
        let progress = |cx: &mut Context<'_>| match &confirms {
            Some(confirms) => match confirms.poll_answers(cx, answers) {
                // Messages were taken to be written, so more can be handed over.
                Poll::Pending if wants_to_write && confirms.room(UNWRITTEN) > 0 => Poll::Ready(()),
                poll => poll,
            },
            None => Poll::Pending,
        };
        tokio::select! {
            biased;
            changed = context.stop.changed(), if !stopping => match changed {
                Ok(()) => PublisherEvent::Stop(*context.stop.borrow()),
                Err(_dropped) => PublisherEvent::BrokerDropped,
            },
            () = timer, if deadline.is_some() => match *stop_at {
                Some(at) if at <= Instant::now() => PublisherEvent::ShutdownDeadline,
                _ => PublisherEvent::Deadline,
            },
            _lost_or_changed = changed(pooled) => PublisherEvent::Health,
            pooled = or_never(opening) => PublisherEvent::Opened(pooled),
            (topic, result) = or_never(declaring.as_mut()) => {
                *declaring = None;
                PublisherEvent::Declared(topic, result)
            },
            received = messages.recv_many(batch, BATCH), if !(messages.is_closed() && messages.is_empty()) => {
                match received {
                    0 if !stopping => PublisherEvent::BrokerDropped,
                    _ => PublisherEvent::Messages,
                }
            },
            () = poll_fn(progress) => PublisherEvent::Progress,
        }
    }

    /// True if a message may be sent now.
    fn wants_to_write(&self) -> bool {
        let PublisherChannel::Open(OpenChannel { pooled, .. }) = &self.channel else {
            return false;
        };
        let up = matches!(*pooled.health.borrow(), Health::Up);
        up && self.declaring.is_none()
            && pooled.channel.status().connected()
            && self.unconfirmed.next().is_some()
    }

    /// Hands messages to the connection, at most a batch.
    fn write(&mut self) {
        if !self.wants_to_write() {
            return;
        }
        let PublisherChannel::Open(OpenChannel { confirms, pooled }) = &self.channel else {
            return;
        };
        let (connector, connection) = (&self.context.connector, &pooled.connection);
        let (frame_max, header_max) = (connection.frame_max(), connection.header_max());
        let mut count = 0;
        for _ in 0..BATCH.min(confirms.room(UNWRITTEN)) {
            if self.frames.len() >= ConfirmChannel::MAX_UNWRITTEN {
                break;
            }
            let Some(message) = self.unconfirmed.next() else { break };
            if connector.topology().is_missing(connection, &message.topic) {
                let topic = Arc::clone(&message.topic);
                self.declaring = Some(declare(connector, pooled, topic));
                break;
            }
            let before = self.frames.len();
            let header =
                self.context.format.write(message, confirms.id(), frame_max, &mut self.frames);
            if header > header_max {
                self.frames.truncate(before);
                let detail = format!(
                    "its headers and properties take {header} bytes, at most {header_max} fit into a \
                     frame of this connection beside what the server adds"
                );
                self.unconfirmed.reject_next(PublishErrorKind::TooLarge, detail, None);
            } else if self.unconfirmed.send_next() {
                count += 1;
            } else {
                self.frames.truncate(before);
            }
        }
        if count > 0 {
            confirms.send(&mut self.frames, count);
        }
    }

    /// Settles messages by the server's answers.
    fn settle(&mut self, answers: &mut Vec<Answer>) {
        let mut closed = None;
        for answer in answers.drain(..) {
            match answer {
                Answer::Confirm { tag, multiple, ack } => {
                    if ack {
                        self.declared_again = false;
                        if let PublisherChannel::Open(open) = &mut self.channel {
                            open.pooled.confirmed = true;
                        }
                    }
                    self.unconfirmed.answered(tag, multiple, ack);
                }
                Answer::Returned(returned) => self.unconfirmed.returned(&returned),
                Answer::Closed { code, text } => closed = Some(channel_close(code, &text)),
            }
        }
        match closed {
            None => {}
            Some(error) if error.kind() == ErrorKind::ChannelClosed => self.channel_closed(error),
            Some(error) => self.lose(error),
        }
        if self.unconfirmed.expired() > MAX_UNANSWERED {
            let detail =
                format!("the server left {MAX_UNANSWERED} messages of a channel unanswered");
            self.lose(AmqpError::new(ErrorKind::ConnectionLost, detail));
        }
    }

    fn channel_closed(&mut self, error: AmqpError) {
        tracing::warn!(error = %error_chain(&error), "channel closed by the server");
        let PublisherChannel::Open(OpenChannel { pooled, .. }) = &self.channel else { return };
        let missing = error.code() == Some(404);
        if missing && self.context.connector.topology().declares() && !self.declared_again {
            // The exchange was deleted. No message is rejected before it is declared again.
            pooled.connection.forget_topology();
            self.declared_again = true;
            self.unconfirmed.channel_lost(true);
        } else {
            self.unconfirmed.channel_closed(&error);
        }
        // No backoff: each channel settles at least one message more.
        self.reopen(error, false);
    }

    /// Drops the channel; its unconfirmed messages are sent again on the next one.
    fn lose(&mut self, error: AmqpError) {
        if let PublisherChannel::Open(_) = &self.channel {
            self.unconfirmed.channel_lost(false);
            self.reopen(error, true);
        }
    }

    fn reopen(&mut self, error: AmqpError, backoff: bool) {
        self.declaring = None;
        self.context.status.set(self.index, PublisherState::Down(Some(error)));
        let next = PublisherChannel::Opening(Box::pin(std::future::pending()));
        if let PublisherChannel::Open(open) = std::mem::replace(&mut self.channel, next) {
            let opening = reopen(self.index, self.context.clone(), open.pooled, backoff);
            self.channel = PublisherChannel::Opening(opening);
        }
    }

    fn opened(&mut self, pooled: PooledChannel) {
        let confirms = pooled.connection.confirm_channel(&pooled.channel);
        self.channel = PublisherChannel::Open(OpenChannel { confirms, pooled });
        self.show_health();
        self.check_channel();
    }

    fn health_changed(&mut self, answers: &mut Vec<Answer>) {
        let PublisherChannel::Open(OpenChannel { confirms, pooled }) = &self.channel else {
            return;
        };
        let health = pooled.health.borrow().clone();
        if let Health::Lost(_) = health {
            // Answers received before the loss count.
            confirms.take_answers(answers);
            self.settle(answers);
        }
        match health {
            Health::Up | Health::Blocked(_) => self.show_health(),
            Health::Lost(error) => self.lose(error),
        }
    }

    fn show_health(&self) {
        let PublisherChannel::Open(OpenChannel { confirms, pooled }) = &self.channel else {
            return;
        };
        let state = match &*pooled.health.borrow() {
            Health::Up => PublisherState::Ready(confirms.connection().clone()),
            Health::Blocked(reason) => PublisherState::Blocked(Arc::clone(reason)),
            Health::Lost(error) => PublisherState::Down(Some(error.clone())),
        };
        self.context.status.set(self.index, state);
    }

    fn declared(&mut self, topic: &str, result: Result<(), AmqpError>) {
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Topology => {
                if self.unconfirmed.next().is_some_and(|message| *message.topic == *topic) {
                    let detail = format!("its queue cannot be declared: {}", error_chain(&error));
                    let refused = PublishErrorKind::Refused;
                    self.unconfirmed.reject_next(refused, detail, Some(error));
                }
            }
            Err(error) => self.lose(error),
        }
    }

    fn expire(&mut self) {
        let expired = self.unconfirmed.expire(Instant::now());
        if self.stop_at.is_some() {
            self.undelivered += expired;
        }
    }

    /// Detects a channel that was closed while no message on it could report that.
    fn check_channel(&mut self) {
        if let PublisherChannel::Open(OpenChannel { pooled, .. }) = &self.channel
            && !pooled.channel.status().connected()
        {
            self.lose(AmqpError::new(ErrorKind::ConnectionLost, "the channel is closed"));
        }
    }
}

fn declare(connector: &Arc<Connector>, pooled: &PooledChannel, topic: Arc<str>) -> Declaring {
    let (connector, connection) = (Arc::clone(connector), Arc::clone(&pooled.connection));
    Box::pin(async move {
        let declaring = connector.topology().declare_topic(&connection, Arc::clone(&topic));
        let result = connection.answered(connector.attempt_timeout(), declaring).await;
        (topic, result)
    })
}

/// Waits for a change of the connection's health; never ready without a channel.
async fn changed(pooled: Option<&mut PooledChannel>) {
    match pooled {
        Some(pooled) => {
            if pooled.health.changed().await.is_err() {
                // The watcher ended with the loss, which was seen.
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

/// Reports a panic of the publisher in the broker's state.
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
            status.set(self.index, PublisherState::Down(Some(error)));
        }
    }
}
