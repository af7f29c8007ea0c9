//! The receiving side of a session: consumers, quarantine and the order between them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::broker::BoxFuture;
use lapin::message::Delivery;
use lapin::options::BasicQosOptions;
use tokio::time::{Instant, timeout_at};

use super::channel_epoch::ChannelEpoch;
use super::consumers::{Consumers, Interrupted};
use super::context::SourceContext;
use super::inbound::Inbound;
use super::inbound_delivery::InboundDelivery;
use super::quarantine::inspect;
use super::quarantine::run::{self, INSPECT_INTERVAL, QuarantineRun};
use crate::connect::PooledChannel;
use crate::error::AmqpError;

/// Receives the deliveries of one channel.
pub(super) struct DeliveryReceiver {
    channel: Arc<lapin::Channel>,
    epoch: Arc<ChannelEpoch>,
    context: Arc<SourceContext>,
    phase: Phase,
    /// The time of the next inspection of the quarantine queues.
    next_inspection: Instant,
    /// For each queue, set if its quarantine may run on this channel: where another consumer was active when
    /// the channel was opened, not before the first delivery.
    may_run: Vec<bool>,
    /// Deliveries received after the stop.
    kept: u64,
    /// Acknowledgements written before the consumers were cancelled.
    acked_before_cancel: u64,
}

/// Futures that must not be dropped before they end are kept here.
enum Phase {
    /// The consumers are not started: messages in quarantine run first.
    Opening,
    Starting(BoxFuture<'static, Result<Consumers, AmqpError>>),
    Consuming(Consumers),
    /// Messages in quarantine run. Deliveries to the consumers wait in their streams meanwhile.
    Quarantine(BoxFuture<'static, Result<Instant, AmqpError>>, Option<Consumers>),
    Cancelled,
}

impl DeliveryReceiver {
    pub(super) async fn start(
        pooled: &PooledChannel,
        epoch: &Arc<ChannelEpoch>,
        context: &Arc<SourceContext>,
    ) -> Result<Self, AmqpError> {
        let channel = &pooled.channel;
        let may_run = inspect::may_run(&pooled.connection, context).await?;
        // The consumers are started here, unless messages in quarantine come first: so a refusal by the
        // server fails the open.
        let phase = match inspect::is_waiting(&pooled.connection, context, &may_run).await? {
            true => Phase::Opening,
            false => Phase::Consuming(Consumers::start(channel.clone(), context.clone()).await?),
        };
        Ok(Self {
            channel: Arc::clone(channel),
            epoch: Arc::clone(epoch),
            context: Arc::clone(context),
            phase,
            next_inspection: Instant::now() + INSPECT_INTERVAL,
            may_run,
            kept: 0,
            acked_before_cancel: 0,
        })
    }

    pub(super) fn is_of_stream(&self) -> bool {
        self.context.plan.is_stream()
    }

    /// Queues deliveries in `inbound` until the channel or a consumer ends. Cancel safe.
    pub(super) async fn run(&mut self, inbound: &Arc<Inbound>) -> AmqpError {
        let Self { channel, epoch, context, phase, next_inspection, may_run, .. } = self;
        let quarantine = |candidate, may_run| {
            let (channel, epoch) = (Arc::clone(channel), Arc::clone(epoch));
            let (context, inbound) = (Arc::clone(context), Arc::clone(inbound));
            Box::pin(QuarantineRun { channel, epoch, context, inbound, may_run }.run(candidate))
        };
        loop {
            let next = match phase {
                Phase::Opening => Phase::Quarantine(quarantine(None, may_run.clone()), None),
                Phase::Quarantine(running, consumers) => {
                    *next_inspection = match running.await {
                        Ok(next) => next,
                        Err(error) => return error,
                    };
                    match consumers.take() {
                        Some(consumers) => Phase::Consuming(consumers),
                        None => Phase::Starting(Box::pin(Consumers::start(
                            Arc::clone(channel),
                            Arc::clone(context),
                        ))),
                    }
                }
                Phase::Starting(starting) => match starting.await {
                    Ok(consumers) => Phase::Consuming(consumers),
                    Err(error) => return error,
                },
                Phase::Consuming(consumers) => {
                    let take = |queue: usize, delivery| {
                        if let Some(may_run) = may_run.get_mut(queue) {
                            *may_run = true;
                        }
                        match InboundDelivery::new(queue, delivery, epoch, context) {
                            Some(delivery) if run::is_candidate(&delivery, context) => {
                                return ControlFlow::Break(delivery);
                            }
                            Some(delivery) => inbound.push(delivery),
                            None => {}
                        }
                        ControlFlow::Continue(())
                    };
                    let candidate = match timeout_at(*next_inspection, consumers.run(take)).await {
                        Ok(Interrupted::Ended(error)) => return error,
                        Ok(Interrupted::Candidate(candidate)) => Some(candidate),
                        Err(_inspection_is_due) => None,
                    };
                    let running = quarantine(candidate, may_run.clone());
                    Phase::Quarantine(running, Some(std::mem::take(consumers)))
                }
                Phase::Cancelled => std::future::pending().await,
            };
            *phase = next;
        }
    }

    /// Takes no further message out of quarantine. One that is running can still be settled.
    pub(super) fn leave_quarantine(&mut self) {
        if let Phase::Quarantine(_, Some(consumers)) = &mut self.phase {
            self.phase = Phase::Consuming(std::mem::take(consumers));
        }
    }

    /// True if deliveries can be kept unsettled until the close. A stream takes nothing back.
    pub(super) fn keeps_deliveries(&self) -> bool {
        matches!(self.phase, Phase::Consuming(_)) && !self.is_of_stream()
    }

    /// Leaves deliveries unsettled until the channel ends. Cancel safe.
    pub(super) async fn keep(&mut self) -> AmqpError {
        if let Self { phase: Phase::Consuming(consumers), kept, channel, .. } = self {
            let keep = |_, _: Delivery| {
                *kept += 1;
                ControlFlow::Continue(())
            };
            // The server may end a consumer alone; deliveries can be settled while the channel is open.
            if let Interrupted::Ended(error) = consumers.run(keep).await
                && !channel.status().connected()
            {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Waits until no delivery seems to be on its way, at most `limit`.
    ///
    /// If a consumer is cancelled, a quorum queue requeues the deliveries that the consumer did not receive yet at
    /// once, and delivers them before those that the consumer requeues afterwards (seen with RabbitMQ 4.3.6):
    /// messages of one key would be delivered out of order.
    pub(super) async fn wait_until_idle(&mut self, limit: Duration) {
        /// More than the time from an acknowledgement to the delivery for which it makes room.
        const QUIET: Duration = Duration::from_millis(100);
        let end = Instant::now() + limit;
        while self.keeps_deliveries() && Instant::now() + QUIET <= end {
            let before = self.kept;
            let lost = tokio::time::timeout(QUIET, self.keep()).await;
            if lost.is_ok() || self.kept == before {
                return;
            }
        }
    }

    /// Cancels the consumers. Unsettled deliveries can still be settled.
    pub(super) async fn cancel(&mut self) {
        let consumers = match std::mem::replace(&mut self.phase, Phase::Cancelled) {
            Phase::Cancelled => return,
            Phase::Consuming(consumers) => Some(consumers),
            Phase::Quarantine(_, consumers) => consumers,
            // Dropped before its end, it would leave consumers that cannot be cancelled.
            Phase::Starting(starting) => starting.await.ok(),
            Phase::Opening => None,
        };
        if let Some(mut consumers) = consumers {
            consumers.cancel(&self.channel).await;
        }
        self.acked_before_cancel = self.epoch.acks.written();
    }

    /// Makes sure that the server keeps the acknowledgements written since the cancel.
    ///
    /// RabbitMQ's channel holds acknowledgements back while 32 of them wait for a quorum queue's log, and
    /// forgets these when it is closed (seen with 4.3.6). Starting and cancelling a consumer goes through
    /// that log and flushes them.
    pub(super) async fn flush_acks(&mut self) {
        /// The queue client's limit in the channel.
        const PENDING: u64 = 32;
        let acked = self.epoch.acks.written() - self.acked_before_cancel;
        if acked < PENDING || self.is_of_stream() {
            return;
        }
        let one = self.channel.basic_qos(1, BasicQosOptions::default());
        let consumers = Consumers::start(Arc::clone(&self.channel), Arc::clone(&self.context));
        if let (Ok(()), Ok(mut consumers)) = (one.await, consumers.await) {
            consumers.cancel(&self.channel).await;
        }
    }
}
