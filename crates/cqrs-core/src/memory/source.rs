//! The consuming contract of the memory broker, for the service runtime.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::{self, SelectAll, StreamExt};

use super::broker::MemoryBroker;
use super::settle::MemorySettle;
use super::source_state::SourceState;
use super::subscriber::{Membership, MemoryDelivery, MemorySubscriber};
use crate::broker::BoxFuture;
use crate::consume::support::{own_dead_letters, request_problems};
use crate::consume::{
    Incoming, Source, SourceDelivery, SourceError, SourceStatus, Subscribe, SubscribeError,
    SubscribeErrorKind, SubscribeRequest, TopicSet,
};

impl Subscribe for MemoryBroker {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        requests.iter().filter_map(|request| topics(request).err()).collect()
    }

    /// A failed message that waits for a later attempt keeps its position, as in Kafka's ordered mode,
    /// unless [`MemorySubscription`](super::MemorySubscription) chooses otherwise. Its attempts are kept
    /// with the group.
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        Box::pin(async move {
            let source = MemorySource::open(self.clone(), request)?;
            Ok(Box::new(source) as Box<dyn Source>)
        })
    }
}

fn topics(request: &SubscribeRequest) -> Result<Vec<Arc<str>>, SubscribeError> {
    let invalid = |kind, problem: String| {
        SubscribeError::new(kind, format!("subscription {}: {problem}", request.name))
    };
    let TopicSet::Named(topics) = &request.topics else {
        let problem = "the memory broker has no patterns: name the topics".to_owned();
        return Err(invalid(SubscribeErrorKind::Unsupported, problem));
    };
    if let Some(problem) =
        request_problems(request).into_iter().chain(own_dead_letters(request)).next()
    {
        return Err(invalid(SubscribeErrorKind::Invalid, problem));
    }
    Ok(topics.clone())
}

/// The source of one subscription: the deliveries of all its topics.
struct MemorySource {
    deliveries: SelectAll<Pin<Box<dyn Stream<Item = MemoryDelivery> + Send>>>,
    memberships: Vec<Membership>,
    state: Arc<SourceState>,
    max: usize,
    stopped: bool,
}

impl MemorySource {
    fn open(broker: MemoryBroker, request: SubscribeRequest) -> Result<Self, SubscribeError> {
        let topics = topics(&request)?;
        let max = request.max_unsettled.unwrap_or_else(|| (3 * request.concurrency).clamp(16, 300));
        let subscribers = topics.iter().map(|topic| {
            broker.create_group(topic, &request.group, request.start);
            broker.subscriber(topic, &request.group).keeping_order()
        });
        let subscribers: Vec<_> = subscribers.collect();
        let memberships = subscribers.iter().map(MemorySubscriber::membership).collect();
        let deliveries = stream::select_all(subscribers.into_iter().map(stream_of));
        request.status.report(SourceStatus::Consuming);
        let state = Arc::new(SourceState::new(broker, request));
        Ok(Self { deliveries, memberships, state, max, stopped: false })
    }

    fn is_full(&self) -> bool {
        self.state.unsettled() >= self.max
    }
}

fn stream_of(subscriber: MemorySubscriber) -> Pin<Box<dyn Stream<Item = MemoryDelivery> + Send>> {
    Box::pin(stream::unfold(subscriber, |subscriber| async move {
        let delivery = subscriber.recv().await?;
        Some((delivery, subscriber))
    }))
}

impl Source for MemorySource {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<SourceDelivery, SourceError>>> {
        if self.stopped {
            return Poll::Ready(None);
        }
        if self.is_full() {
            self.state.register(cx.waker());
            // A delivery may have been settled before the waker was registered.
            if self.is_full() {
                return Poll::Pending;
            }
        }
        match self.deliveries.poll_next_unpin(cx) {
            Poll::Ready(Some(delivery)) => {
                self.state.delivered();
                let message = incoming(&delivery);
                let (retry, delayed) = (delivery.retry(), delivery.delayed());
                let settle = MemorySettle::new(delivery, Arc::clone(&self.state));
                let mut delivery = SourceDelivery::new(message, settle);
                (delivery.retry, delivery.delayed) = (retry, delayed);
                Poll::Ready(Some(Ok(delivery)))
            }
            Poll::Ready(None) => {
                let last_error = "the broker is shut down".into();
                self.state.request.status.report(SourceStatus::Disconnected { last_error });
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.stopped = true;
        Box::pin(async {})
    }

    /// Dropping the source gives all unsettled messages back.
    fn close(self: Box<Self>, _deadline: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async { Ok(()) })
    }
}

impl Drop for MemorySource {
    /// As after a crash: the deliveries in flight are revoked.
    fn drop(&mut self) {
        self.memberships.iter().for_each(Membership::leave);
    }
}

crate::debug_fields!(MemorySource {}, |it|
    subscription: it.state.request.name, unsettled: it.state.unsettled());

fn incoming(delivery: &MemoryDelivery) -> Incoming {
    let message = delivery.message();
    Incoming {
        offset: i64::try_from(delivery.offset()).ok(),
        redelivered: delivery.redelivered(),
        ..Incoming::from(message)
    }
}
