use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};

use super::declare::declare;
use super::places::Places;
use super::plan::Plan;
use super::returns::Returned;
use crate::connect::topology::short;
use crate::connect::{Connector, Link};
use crate::{AmqpError, ErrorKind};

/// A channel with consumers on it: one generation of a source.
pub(super) struct Line {
    pub(super) link: Link,
    pub(super) generation: Arc<Generation>,
    /// Deliveries that were dropped unsettled.
    pub(super) returned: mpsc::UnboundedReceiver<Returned>,
    pub(super) consumers: Consumers,
}

/// The consumers of a line, one for each queue.
pub(super) struct Consumers {
    each: Vec<lapin::Consumer>,
    /// Whose turn it is.
    turn: usize,
    /// Nothing can be given back to a stream.
    of_stream: bool,
}

/// What the deliveries of a line share with it.
pub(super) struct Generation {
    over: AtomicBool,
    ended: Notify,
    acked: AtomicU64,
    returns: mpsc::UnboundedSender<Returned>,
}

impl Generation {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Returned>) {
        let (returns, returned) = mpsc::unbounded_channel();
        let (over, ended, acked) = (AtomicBool::new(false), Notify::new(), AtomicU64::new(0));
        (Arc::new(Self { over, ended, acked, returns }), returned)
    }

    /// Whether its channel is gone, and its deliveries with it.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Ends with the generation. To be made before [`is_over`](Self::is_over) is asked.
    pub(super) fn ended(&self) -> Notified<'_> {
        self.ended.notified()
    }

    /// Never blocks: the task that owns the channel does the rest.
    pub(super) fn give_back(&self, returned: Returned) {
        let _goes_back_with_its_channel = self.returns.send(returned);
    }

    /// Acknowledgements written.
    pub(super) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    pub(super) fn count_ack(&self) {
        self.acked.fetch_add(1, Ordering::Relaxed);
    }

    /// From here on its deliveries cannot be settled.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.ended.notify_waiters();
    }
}

impl Line {
    /// Opens a channel on the source's connection, declares, and consumes: one attempt, after the
    /// connector's backoff. Cancel safe: what was opened is closed.
    pub(super) async fn open(
        connector: &Connector,
        plan: &Plan,
        places: &Places,
    ) -> Result<Self, AmqpError> {
        let link = connector.open().await?;
        match consume(&link, plan, places).await {
            Ok(consumers) => {
                let (generation, returned) = Generation::new();
                let consumers = Consumers { each: consumers, turn: 0, of_stream: plan.is_stream() };
                Ok(Self { link, generation, returned, consumers })
            }
            Err(error) => {
                connector.lost(&link).await;
                Err(error)
            }
        }
    }

    /// Asks the server to send nothing more. What is out can still be settled.
    pub(super) async fn cancel(&mut self, limit: Duration) {
        let cancelling = self.consumers.cancel(&self.link.channel);
        let _gone_with_the_channel = tokio::time::timeout(limit, cancelling).await;
    }

    /// Gives back what is not settled and closes the channel. `Ok` when the server answered: then it has
    /// seen all settlements.
    pub(super) async fn close(&mut self, limit: Duration) -> Result<(), AmqpError> {
        self.generation.end();
        let channel = &self.link.channel;
        let closing = async {
            self.consumers.cancel(channel).await;
            if !self.consumers.of_stream {
                // A nack, because RabbitMQ 4.3 counts what is returned with its channel as a failure of
                // the consumer. Tag 0 is all there are.
                let options = BasicNackOptions { multiple: true, requeue: true };
                let _or_returned_with_the_channel = channel.basic_nack(0, options).await;
            }
            channel.close(200, "OK".into()).await.map_err(|error| {
                AmqpError::from_lapin(ErrorKind::ConnectionLost, "closing the channel", &error)
            })
        };
        self.link.connection.answered(limit, closing).await
    }

    /// Lets go of it after its end, the channel included when that still stands.
    pub(super) async fn abandon(mut self) {
        /// It is closed without an answer, too.
        const LIMIT: Duration = Duration::from_secs(1);
        self.generation.end();
        if self.link.channel.status().connected() {
            let _ended_anyway = self.close(LIMIT).await;
        }
    }
}

impl Consumers {
    /// Ends all of them, once.
    async fn cancel(&mut self, channel: &lapin::Channel) {
        for consumer in self.each.drain(..) {
            let options = BasicCancelOptions::default();
            let _or_with_the_channel = channel.basic_cancel(consumer.tag(), options).await;
        }
    }

    /// Hands on all deliveries, each with the number of its queue. Ends with the first consumer that
    /// does. Cancel safe.
    pub(super) async fn run(&mut self, mut hand_on: impl FnMut(usize, Delivery)) -> AmqpError {
        /// Deliveries handed on before others have their turn.
        const BATCH: usize = 64;
        std::future::poll_fn(|cx| {
            for _ in 0..BATCH {
                match ready!(self.poll_next(cx)) {
                    Ok((queue, delivery)) => hand_on(queue, delivery),
                    Err(error) => return Poll::Ready(error),
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// The next delivery and the number of its queue; in turn when there are several.
    ///
    /// # Errors
    /// The end of a consumer: of its channel or connection, or because the server cancelled it.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(usize, Delivery), AmqpError>> {
        let count = self.each.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Some(consumer) = self.each.get_mut(index) else { continue };
            match Pin::new(&mut *consumer).poll_next(cx) {
                Poll::Pending => {}
                Poll::Ready(Some(Ok(delivery))) => {
                    self.turn = index + 1;
                    return Poll::Ready(Ok((index, delivery)));
                }
                Poll::Ready(Some(Err(error))) => {
                    let kind = match error.is_amqp_soft_error() {
                        true => ErrorKind::ChannelClosed,
                        false => ErrorKind::ConnectionLost,
                    };
                    let detail = "the channel of the consumer was closed";
                    return Poll::Ready(Err(AmqpError::from_lapin(kind, detail, &error)));
                }
                Poll::Ready(None) => {
                    let queue = consumer.queue();
                    let detail = format!(
                        "the server cancelled the consumer of queue {:?} (deleted, or moved)",
                        queue.as_str()
                    );
                    return Poll::Ready(Err(AmqpError::new(ErrorKind::ChannelClosed, detail)));
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.generation.end();
    }
}

async fn consume(
    link: &Link,
    plan: &Plan,
    places: &Places,
) -> Result<Vec<lapin::Consumer>, AmqpError> {
    /// For one answer of the server.
    const LIMIT: Duration = Duration::from_secs(15);
    declare(plan, &link.connection).await?;
    let channel = &link.channel;
    let setting_up = async {
        let qos = BasicQosOptions::default();
        channel.basic_qos(plan.prefetch, qos).await.map_err(|error| {
            AmqpError::from_lapin(ErrorKind::Topology, "setting the prefetch", &error)
        })?;
        let mut consumers = Vec::new();
        for (index, queue) in plan.queues.iter().enumerate() {
            let tag = match (&plan.consumer_tag, index) {
                (None, _) => String::new(),
                (Some(tag), 0) => tag.clone(),
                (Some(tag), _) => format!("{tag}-{index}"),
            };
            let (name, tag) = (short(&queue.name)?, short(&tag)?);
            let (options, arguments) = (
                BasicConsumeOptions::default(),
                plan.consume_arguments(places.resume(index).or(plan.offset)),
            );
            let consumer =
                channel.basic_consume(name, tag, options, arguments).await.map_err(|error| {
                    let kind = match error.is_amqp_error() {
                        true => ErrorKind::Topology,
                        false => ErrorKind::ConnectionLost,
                    };
                    let doing = format!("consuming from queue {:?}", queue.name);
                    AmqpError::from_lapin(kind, doing, &error)
                })?;
            consumers.push(consumer);
        }
        Ok(consumers)
    };
    link.connection.answered(LIMIT, setting_up).await
}
