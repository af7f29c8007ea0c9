//! The consuming contract of the memory broker, for the service runtime.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::coop;

use super::broker::MemoryBroker;
use super::group::Entry;
use super::settle::{MemorySettle, SourceTopic};
use super::source_state::SourceState;
use super::subscriber::Deliveries;
use crate::broker::BoxFuture;
use crate::consume::support::{own_dead_letters, request_problems};
use crate::consume::{
    Fetch, Source, SourceDelivery, SourceError, SourceStatus, Subscribe, SubscribeError,
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
    topics: Vec<(Deliveries, Arc<SourceTopic>)>,
    /// The topic that is asked first, in turn.
    next: usize,
    state: Arc<SourceState>,
    stopped: bool,
}

impl MemorySource {
    fn open(broker: MemoryBroker, request: SubscribeRequest) -> Result<Self, SubscribeError> {
        let names = topics(&request)?;
        let state = Arc::new(SourceState::new(broker, request));
        let SourceState { broker, request, .. } = &*state;
        let topics = names.iter().map(|topic| {
            broker.create_group(topic, &request.group, request.start);
            let deliveries = broker.subscriber(topic, &request.group).into_deliveries();
            let (topic, group) = (Arc::clone(deliveries.topic()), deliveries.group());
            (deliveries, Arc::new(SourceTopic { topic, group, state: Arc::clone(&state) }))
        });
        let topics = topics.collect();
        request.status.report(SourceStatus::Consuming);
        Ok(Self { topics, next: 0, state, stopped: false })
    }

    /// While no message is taken, wake-ups must go to other members.
    fn stop_waiting(&mut self) {
        self.topics.iter_mut().for_each(|(deliveries, _)| deliveries.stop_waiting());
    }

    /// Delivers messages of the topics, at most `max`; `false` once all topics have ended.
    fn poll_topics(&mut self, cx: &mut Context<'_>, fetch: &mut Fetch, max: usize) -> Poll<bool> {
        // A task that always finds a message must yield, too.
        let budget = ready!(coop::poll_proceed(cx));
        let (mut ended, mut taken) = (0, 0);
        for _ in 0..self.topics.len() {
            let at = self.next;
            self.next = if at + 1 < self.topics.len() { at + 1 } else { 0 };
            let Some((deliveries, of)) = self.topics.get_mut(at) else { continue };
            let (room, revocations) = (max - taken, of.topic.revocations());
            let deliver = |tag, entry: &Entry| {
                let message = entry.message.to_incoming(entry.attempt > 1);
                let settle = MemorySettle::boxed(fetch.spare_settle(), of, tag, revocations);
                let (retry, delayed) = (entry.retry, entry.delayed);
                fetch.push(SourceDelivery { message, retry, delayed, settle });
                taken += 1;
            };
            match deliveries.poll_take(cx, room, deliver) {
                Poll::Ready(true) if taken == max => break,
                Poll::Ready(true) | Poll::Pending => {}
                Poll::Ready(false) => ended += 1,
            }
        }
        if taken > 0 {
            budget.made_progress();
            self.state.delivered(taken);
            // It may not be polled again before their handlers end.
            self.stop_waiting();
            return Poll::Ready(true);
        }
        match ended == self.topics.len() {
            true => Poll::Ready(false),
            false => Poll::Pending,
        }
    }
}

impl Source for MemorySource {
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        if self.stopped {
            return Poll::Ready(None);
        }
        if self.state.room() == 0 {
            self.stop_waiting();
            self.state.register(cx.waker());
            // A delivery may have been settled before the waker was registered.
            if self.state.room() == 0 {
                return Poll::Pending;
            }
        }
        let max = self.state.room().min(fetch.room());
        if max == 0 {
            return Poll::Ready(Some(Ok(())));
        }
        match ready!(self.poll_topics(cx, fetch, max)) {
            true => Poll::Ready(Some(Ok(()))),
            false => {
                let last_error = "the broker is shut down".into();
                self.state.request.status.report(SourceStatus::Disconnected { last_error });
                Poll::Pending
            }
        }
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.stopped = true;
        self.stop_waiting();
        Box::pin(async {})
    }

    /// Dropping the source gives all unsettled messages back: see [`Deliveries`].
    fn close(self: Box<Self>, _deadline: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async { Ok(()) })
    }
}

crate::debug_fields!(MemorySource {}, |it|
    subscription: it.state.request.name, unsettled: it.state.unsettled());
