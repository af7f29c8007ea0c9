//! One channel of a source and what arrives on it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::broker::BoxFuture;
use lapin::message::Delivery;
use lapin::options::{BasicNackOptions, BasicQosOptions};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::arrived::Arrived;
use super::consumers::{Consumers, Interrupted};
use super::context::Desk;
use super::declare::declare;
use super::generation::{Generation, Returned};
use super::inbound::Inbound;
use super::quarantine::look;
use super::quarantine::run::{self, LOOK};
use crate::connect::{Connector, Link};
use crate::{AmqpError, ErrorKind};

/// For one answer of the server.
const LIMIT: Duration = Duration::from_secs(15);

/// A channel and what comes on it: one generation of a source.
pub(super) struct Line {
    pub(super) link: Link,
    pub(super) generation: Arc<Generation>,
    /// Deliveries that were dropped unsettled.
    pub(super) returned: mpsc::UnboundedReceiver<Returned>,
    pub(super) incoming: Inflow,
}

/// How messages come in.
pub(super) struct Inflow {
    channel: Arc<lapin::Channel>,
    generation: Arc<Generation>,
    desk: Arc<Desk>,
    stage: Stage,
    /// When the quarantine queues are looked at next.
    next_look: Instant,
    /// For each queue, whether its quarantine may run on this channel: where another consumer was active when
    /// the channel was opened, not before the first delivery.
    may_run: Vec<bool>,
    /// Deliveries that came after the stop.
    kept: u64,
    /// Acknowledgements written when consuming was cancelled.
    acked_before: u64,
}

/// Futures that must not be dropped half way are kept here.
enum Stage {
    /// Before the consumers are started: messages that are in quarantine run first.
    Opening,
    Starting(BoxFuture<'static, Result<Consumers, AmqpError>>),
    Consuming(Consumers),
    /// Messages run alone. What the consumers receive meanwhile waits in their streams.
    Quarantine(BoxFuture<'static, Result<Instant, AmqpError>>, Option<Consumers>),
    Cancelled,
}

impl Line {
    /// Opens a channel on the source's connection, declares, and takes in messages: one attempt, after
    /// the connector's backoff. Cancel safe: what was opened is closed.
    pub(super) async fn open(connector: &Connector, desk: &Arc<Desk>) -> Result<Self, AmqpError> {
        let link = connector.open().await?;
        match Self::set_up(&link, desk).await {
            Ok((generation, returned, incoming)) => {
                Ok(Self { link, generation, returned, incoming })
            }
            Err(error) => {
                connector.lost(&link).await;
                Err(error)
            }
        }
    }

    async fn set_up(
        link: &Link,
        desk: &Arc<Desk>,
    ) -> Result<(Arc<Generation>, mpsc::UnboundedReceiver<Returned>, Inflow), AmqpError> {
        declare(&desk.plan, &link.connection).await?;
        let setting_up = async {
            let qos = link.channel.basic_qos(desk.plan.prefetch, BasicQosOptions::default());
            qos.await.map_err(|error| {
                AmqpError::from_lapin(ErrorKind::Topology, "setting the prefetch", &error)
            })?;
            let (generation, returned) = Generation::new();
            let incoming = Inflow::start(link, &generation, desk).await?;
            Ok((generation, returned, incoming))
        };
        link.connection.answered(LIMIT, setting_up).await
    }

    /// Hands on nothing more. What is out can still be settled. What came goes back only when the channel is
    /// closed, unless consuming had not begun: before that, a key's next messages would be handled elsewhere
    /// beside those that run here.
    pub(super) async fn stop(&mut self, limit: Duration) {
        self.incoming.leave_quarantine();
        if self.incoming.can_keep() {
            return;
        }
        let _gone_with_the_channel = tokio::time::timeout(limit, self.incoming.cancel()).await;
    }

    /// Gives back what is not settled and closes the channel. `Ok` when the server answered: then it has
    /// seen all settlements.
    pub(super) async fn close(&mut self, limit: Duration) -> Result<(), AmqpError> {
        self.generation.end();
        let (channel, incoming) = (&self.link.channel, &mut self.incoming);
        let closing = async {
            incoming.calm_down(limit / 4).await;
            incoming.cancel().await;
            incoming.flush().await;
            // Nothing can be given back to a stream.
            if !incoming.desk.plan.is_stream() {
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

impl Inflow {
    async fn start(
        link: &Link,
        generation: &Arc<Generation>,
        desk: &Arc<Desk>,
    ) -> Result<Self, AmqpError> {
        let channel = &link.channel;
        let may_run = look::may_run(&link.connection, desk).await?;
        // A line that opens has consumers, unless messages in quarantine come first: so what the server
        // refuses is known.
        let stage = match look::is_waiting(&link.connection, desk, &may_run).await? {
            true => Stage::Opening,
            false => Stage::Consuming(Consumers::start(channel.clone(), desk.clone()).await?),
        };
        let (channel, generation, desk) =
            (Arc::clone(channel), Arc::clone(generation), Arc::clone(desk));
        let next_look = Instant::now() + LOOK;
        Ok(Self { channel, generation, desk, stage, next_look, may_run, kept: 0, acked_before: 0 })
    }

    /// Hands on what comes, until nothing can come any more. Cancel safe.
    pub(super) async fn run(&mut self, inbound: &Arc<Inbound>) -> AmqpError {
        let Self { channel, generation, desk, stage, next_look, may_run, .. } = self;
        let quarantine = |suspect, may_run| {
            let (channel, generation) = (Arc::clone(channel), Arc::clone(generation));
            let (desk, inbound) = (Arc::clone(desk), Arc::clone(inbound));
            Box::pin(run::Session { channel, generation, desk, inbound, may_run }.run(suspect))
        };
        loop {
            let next = match stage {
                Stage::Opening => Stage::Quarantine(quarantine(None, may_run.clone()), None),
                Stage::Quarantine(running, consumers) => {
                    *next_look = match running.await {
                        Ok(next_look) => next_look,
                        Err(error) => return error,
                    };
                    match consumers.take() {
                        Some(consumers) => Stage::Consuming(consumers),
                        None => Stage::Starting(Box::pin(Consumers::start(
                            Arc::clone(channel),
                            Arc::clone(desk),
                        ))),
                    }
                }
                Stage::Starting(starting) => match starting.await {
                    Ok(consumers) => Stage::Consuming(consumers),
                    Err(error) => return error,
                },
                Stage::Consuming(consumers) => {
                    let take = |queue: usize, delivery| {
                        if let Some(may_run) = may_run.get_mut(queue) {
                            *may_run = true;
                        }
                        match Arrived::new(queue, delivery, generation, desk) {
                            Some(arrived) if run::is_suspect(&arrived, desk) => {
                                return ControlFlow::Break(arrived);
                            }
                            arrived => {
                                arrived.into_iter().for_each(|arrived| inbound.push(arrived))
                            }
                        }
                        ControlFlow::Continue(())
                    };
                    let suspect = match timeout_at(*next_look, consumers.run(take)).await {
                        Ok(Interrupted::Ended(error)) => return error,
                        Ok(Interrupted::Suspect(suspect)) => Some(suspect),
                        Err(_time_to_look) => None,
                    };
                    let running = quarantine(suspect, may_run.clone());
                    Stage::Quarantine(running, Some(std::mem::take(consumers)))
                }
                Stage::Cancelled => std::future::pending().await,
            };
            *stage = next;
        }
    }

    /// Takes no further message out of quarantine. One that runs alone can still be settled.
    fn leave_quarantine(&mut self) {
        if let Stage::Quarantine(_, Some(consumers)) = &mut self.stage {
            self.stage = Stage::Consuming(std::mem::take(consumers));
        }
    }

    /// Whether what comes can be kept until the end. A stream takes nothing back.
    fn can_keep(&self) -> bool {
        matches!(self.stage, Stage::Consuming(_)) && !self.desk.plan.is_stream()
    }

    /// Leaves what comes unsettled, until nothing can come any more and nothing be settled. Cancel safe.
    pub(super) async fn keep(&mut self) -> AmqpError {
        if let Self { stage: Stage::Consuming(consumers), kept, channel, .. } = self {
            let keep = |_, _: Delivery| {
                *kept += 1;
                ControlFlow::Continue(())
            };
            // The server may end a consumer alone; what is out can be settled as long as the channel stands.
            if let Interrupted::Ended(error) = consumers.run(keep).await
                && !channel.status().connected()
            {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Waits until nothing seems to be on its way here, if there is so much time.
    ///
    /// A quorum queue takes back at once what is on its way to a consumer that is cancelled, and hands that
    /// out before what the consumer gives back afterwards (seen with RabbitMQ 4.3.6): messages of one key
    /// would change places.
    async fn calm_down(&mut self, limit: Duration) {
        /// More than from an acknowledgement to the delivery for which it makes room.
        const QUIET: Duration = Duration::from_millis(100);
        let end = Instant::now() + limit;
        while self.can_keep() && Instant::now() + QUIET <= end {
            let before = self.kept;
            let lost = tokio::time::timeout(QUIET, self.keep()).await;
            if lost.is_ok() || self.kept == before {
                return;
            }
        }
    }

    async fn cancel(&mut self) {
        let consumers = match std::mem::replace(&mut self.stage, Stage::Cancelled) {
            Stage::Cancelled => return,
            Stage::Consuming(consumers) => Some(consumers),
            Stage::Quarantine(_, consumers) => consumers,
            // Dropped half way it would leave consumers that nobody knows.
            Stage::Starting(starting) => starting.await.ok(),
            Stage::Opening => None,
        };
        if let Some(mut consumers) = consumers {
            consumers.cancel(&self.channel).await;
        }
        self.acked_before = self.generation.acked();
    }

    /// Makes sure that the server keeps what was acknowledged since the cancel.
    ///
    /// RabbitMQ's channel holds acknowledgements back while 32 of them wait for a quorum queue's log, and
    /// forgets these when it is closed (seen with 4.3.6). Starting and ending a consumer goes through
    /// that log and takes them along.
    async fn flush(&mut self) {
        /// The queue client's limit in the channel.
        const PENDING: u64 = 32;
        let acked = self.generation.acked() - self.acked_before;
        if acked < PENDING || self.desk.plan.is_stream() {
            return;
        }
        let one = self.channel.basic_qos(1, BasicQosOptions::default());
        let consumers = Consumers::start(Arc::clone(&self.channel), Arc::clone(&self.desk));
        if let (Ok(()), Ok(mut consumers)) = (one.await, consumers.await) {
            consumers.cancel(&self.channel).await;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.generation.end();
    }
}
