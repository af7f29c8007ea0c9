//! The source of a subscription, as the runtime polls it; the supervisor is its other end.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::{Fetch, Source, SourceDelivery, SourceError};
use tokio::sync::{mpsc, oneshot};

use super::context::SourceContext;
use super::in_flight::{InFlight, Permit};
use super::inbound::{Inbound, SourceEvent};
use super::inbound_delivery::InboundDelivery;
use super::settle::AmqpSettle;
use super::supervisor::{CloseRequest, Command};

/// The runtime's end of a subscription.
///
/// Dropped without a [`close`](Source::close), the [supervisor](super::supervisor) closes the session by itself.
pub(super) struct AmqpSource {
    context: Arc<SourceContext>,
    inbound: Arc<Inbound>,
    commands: mpsc::UnboundedSender<Command>,
    /// Deliveries that the runtime has.
    in_flight: InFlight,
    stopped: bool,
    failed: bool,
}

impl AmqpSource {
    pub(super) fn new(
        context: Arc<SourceContext>,
        inbound: Arc<Inbound>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        let in_flight = InFlight::new();
        Self { context, inbound, commands, in_flight, stopped: false, failed: false }
    }

    fn delivery(
        &self,
        delivery: Box<InboundDelivery>,
        in_flight: Permit,
        fetch: &mut Fetch,
    ) -> Option<SourceDelivery> {
        let plan = self.context.plan.queues.get(delivery.queue)?;
        let message = fetch.message(delivery.original.view(plan, delivery.redelivered));
        let mut retry = delivery.original.retry();
        retry.crashes = delivery.crashes;
        let settle = AmqpSettle::new(delivery, Arc::clone(&self.context), in_flight);
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

    fn poll_delivery(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<SourceDelivery, SourceError>>> {
        if self.stopped || self.failed {
            return Poll::Ready(None);
        }
        loop {
            // The bound does not hold for an error.
            if ready!(self.inbound.poll_ready(cx)) {
                ready!(self.in_flight.poll_fewer(self.context.plan.max_unsettled, cx));
            }
            let delivery = match self.inbound.take(&self.context.handed_out) {
                Some(SourceEvent::Delivery(delivery)) => delivery,
                Some(SourceEvent::Failed(error)) => return self.fail(error),
                Some(SourceEvent::TaskEnded) => {
                    let detail = format!(
                        "subscription {:?}: its task ended by a panic; subscribe again",
                        self.context.plan.name
                    );
                    return self.fail(SourceError::new(detail));
                }
                None => continue,
            };
            // Its channel is gone: the server redelivers it.
            if delivery.epoch.is_over() {
                continue;
            }
            if let Some(delivery) = self.delivery(delivery, self.in_flight.add(), fetch) {
                return Poll::Ready(Some(Ok(delivery)));
            }
        }
    }
}

impl Source for AmqpSource {
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        fetch.poll_fill(|fetch| self.poll_delivery(cx, fetch))
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        let first = !std::mem::replace(&mut self.stopped, true);
        let (done, stopped) = oneshot::channel();
        if first {
            let _or_it_ended = self.commands.send(Command::Stop(done));
        }
        Box::pin(async move {
            if first {
                let _or_it_ended = stopped.await;
            }
        })
    }

    fn close(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        let (reply, closed) = oneshot::channel();
        let _or_it_ended = self.commands.send(Command::Close(CloseRequest::new(deadline, reply)));
        Box::pin(async move {
            closed.await.unwrap_or_else(|_gone| {
                let detail = format!(
                    "subscription {:?}: its task ended before it was closed; messages that were \
                     settled last may be redelivered",
                    self.context.plan.name
                );
                Err(SourceError::new(detail))
            })
        })
    }
}

cqrs_core::debug_fields!(AmqpSource { stopped }, |it|
    subscription: it.context.plan.name, in_flight: it.in_flight.count(),
    queues: it.context.plan.queues.iter().map(|queue| &queue.name).collect::<Vec<_>>());
