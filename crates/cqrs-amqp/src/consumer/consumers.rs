//! The consumers of one channel, one for each queue; part of the session, polled by its receiver.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions};

use super::context::SourceContext;
use super::inbound_delivery::InboundDelivery;
use crate::connect::topology::short;
use crate::error::{AmqpError, ErrorKind, from_lapin};

/// The consumers of a channel, one for each queue.
#[derive(Default)]
pub(super) struct Consumers {
    each: Vec<lapin::Consumer>,
    /// The next consumer to poll (round robin).
    turn: usize,
}

/// The reason for which consuming stops.
pub(super) enum Interrupted {
    Ended(AmqpError),
    /// A message that has to be quarantined.
    Candidate(Box<InboundDelivery>),
}

impl Consumers {
    /// Starts a consumer of each queue.
    pub(super) async fn start(
        channel: Arc<lapin::Channel>,
        context: Arc<SourceContext>,
    ) -> Result<Self, AmqpError> {
        let plan = &context.plan;
        let mut each = Vec::new();
        for (index, queue) in plan.queues.iter().enumerate() {
            let tag = match (&plan.consumer_tag, index) {
                (None, _) => String::new(),
                (Some(tag), 0) => tag.clone(),
                (Some(tag), _) => format!("{tag}-{index}"),
            };
            let offset = context.stream_offsets.resume(index).or(plan.offset);
            let (name, tag) = (short(&queue.name)?, short(&tag)?);
            let (options, arguments) =
                (BasicConsumeOptions::default(), plan.consume_arguments(offset));
            let consumer =
                channel.basic_consume(name, tag, options, arguments).await.map_err(|error| {
                    let kind = match error.is_amqp_error() {
                        true => ErrorKind::Topology,
                        false => ErrorKind::ConnectionLost,
                    };
                    let doing = format!("consuming from queue {:?}", queue.name);
                    from_lapin(kind, doing, &error)
                })?;
            each.push(consumer);
        }
        Ok(Self { each, turn: 0 })
    }

    /// Passes each delivery with the number of its queue to `take`, until `take` breaks or a consumer ends.
    /// Cancel safe.
    pub(super) async fn run(
        &mut self,
        mut take: impl FnMut(usize, Delivery) -> ControlFlow<Box<InboundDelivery>>,
    ) -> Interrupted {
        /// Deliveries taken before the task yields.
        const BATCH: usize = 64;
        std::future::poll_fn(|cx| {
            for _ in 0..BATCH {
                match ready!(self.poll_next(cx)) {
                    Ok((queue, delivery)) => {
                        if let ControlFlow::Break(candidate) = take(queue, delivery) {
                            return Poll::Ready(Interrupted::Candidate(candidate));
                        }
                    }
                    Err(error) => return Poll::Ready(Interrupted::Ended(error)),
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// The next delivery and the number of its queue (round robin).
    ///
    /// # Errors
    /// The end of a consumer: its channel or connection was lost, or the server cancelled it.
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
                    return Poll::Ready(Err(from_lapin(kind, detail, &error)));
                }
                Poll::Ready(None) => {
                    let detail = format!(
                        "the server cancelled the consumer of queue {:?} (it was deleted or moved, \
                         or a message was handled for longer than the consumer timeout)",
                        consumer.queue().as_str()
                    );
                    return Poll::Ready(Err(AmqpError::new(ErrorKind::ChannelClosed, detail)));
                }
            }
        }
        Poll::Pending
    }

    /// Cancels all consumers. Their deliveries can still be settled.
    pub(super) async fn cancel(&mut self, channel: &lapin::Channel) {
        for consumer in self.each.drain(..) {
            let cancelling = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
            let _or_it_ends_with_the_channel = cancelling.await;
        }
    }
}
