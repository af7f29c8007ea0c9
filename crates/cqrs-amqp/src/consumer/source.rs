use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::{Source, SourceDelivery, SourceError};
use tokio::sync::{mpsc, oneshot};

use super::arrived::Arrived;
use super::context::Desk;
use super::in_flight::{InFlight, Permit};
use super::inbound::{Inbound, Received};
use super::pump::{Closing, Command};
use super::settle::{AmqpSettle, Handle, Permits};

/// The runtime's end of a subscription; the [pump](super::pump) is the other.
///
/// Dropped without a [`close`](Source::close), the pump leaves the broker by itself.
pub(super) struct AmqpSource {
    desk: Arc<Desk>,
    inbound: Arc<Inbound>,
    commands: mpsc::UnboundedSender<Command>,
    /// Deliveries in the hands of the runtime.
    in_flight: InFlight,
    stopped: bool,
    failed: bool,
}

impl AmqpSource {
    pub(super) fn new(
        desk: Arc<Desk>,
        inbound: Arc<Inbound>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        let in_flight = InFlight::new();
        Self { desk, inbound, commands, in_flight, stopped: false, failed: false }
    }

    fn delivery(&self, arrived: Arrived, permit: Permit) -> Option<SourceDelivery> {
        let Arrived { queue, tag, acker, original, redelivered, crashes, alone, generation, sent } =
            arrived;
        let plan = self.desk.plan.queues.get(queue)?;
        let message = original.view(plan, redelivered);
        let mut retry = original.retry();
        retry.crashes = crashes;
        let permits = Some(Permits { _in_flight: permit, handed_on: sent, running: None, alone });
        let handle = Handle { tag, acker: Some(acker), generation, permits };
        let settle = AmqpSettle { original, queue, desk: Arc::clone(&self.desk), handle };
        let mut delivery = SourceDelivery::new(message, settle);
        delivery.retry = retry;
        // Only retry copies carry attempts, and they come when their delay is over.
        delivery.delayed = retry.attempts > 0;
        Some(delivery)
    }

    fn fail(&mut self, error: SourceError) -> Poll<Option<Result<SourceDelivery, SourceError>>> {
        self.failed = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl Source for AmqpSource {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<SourceDelivery, SourceError>>> {
        if self.stopped || self.failed {
            return Poll::Ready(None);
        }
        loop {
            // An error needs no room.
            if ready!(self.inbound.poll_ready(cx)) {
                ready!(self.in_flight.poll_fewer(self.desk.plan.max_unsettled, cx));
            }
            let arrived = match self.inbound.take(&self.desk.handed_on) {
                Some(Received::Arrived(arrived)) => arrived,
                Some(Received::Failed(error)) => return self.fail(error),
                Some(Received::TaskEnded) => {
                    let detail = format!(
                        "subscription {:?}: its task ended by a panic; subscribe again",
                        self.desk.plan.name
                    );
                    return self.fail(SourceError::new(detail));
                }
                None => continue,
            };
            // Its channel is gone: it is redelivered.
            if arrived.generation.is_over() {
                continue;
            }
            if let Some(delivery) = self.delivery(*arrived, self.in_flight.add()) {
                return Poll::Ready(Some(Ok(delivery)));
            }
        }
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        let first = !std::mem::replace(&mut self.stopped, true);
        let (done, stopped) = oneshot::channel();
        if first {
            let _the_pump_is_gone = self.commands.send(Command::Stop(done));
        }
        Box::pin(async move {
            if first {
                let _the_pump_is_gone = stopped.await;
            }
        })
    }

    fn close(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        let (reply, closed) = oneshot::channel();
        let _the_pump_is_gone = self.commands.send(Command::Close(Closing::new(deadline, reply)));
        Box::pin(async move {
            closed.await.unwrap_or_else(|_gone| {
                let detail = format!(
                    "subscription {:?}: its task ended before it was closed; messages that were \
                     settled last can come again",
                    self.desk.plan.name
                );
                Err(SourceError::new(detail))
            })
        })
    }
}

impl fmt::Debug for AmqpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues = self.desk.plan.queues.iter().map(|queue| &queue.name).collect::<Vec<_>>();
        f.debug_struct("AmqpSource")
            .field("subscription", &self.desk.plan.name)
            .field("queues", &queues)
            .field("in_flight", &self.in_flight.count())
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}
