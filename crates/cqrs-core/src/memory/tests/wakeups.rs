//! Tests of the wake-ups of several sources in one group.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::consume::{
    Delayed, RetryState, Source, SourceDelivery, StatusReporter, Subscribe, SubscribeRequest,
    TopicSet,
};
use crate::memory::{MemoryRetry, MemorySubscription};
use crate::{MemoryBroker, Message, MessageBrokerExt};
use futures_util::FutureExt;

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A source of the group "g", polled with a waker of its own.
struct Member {
    source: Box<dyn Source>,
    wakes: Arc<Wakes>,
}

impl Member {
    async fn new(broker: &MemoryBroker, topics: &[&str]) -> Self {
        let (status, _) = StatusReporter::new();
        let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
        let mut request = SubscribeRequest::new(TopicSet::Named(topics), "g", status);
        request.max_unsettled = Some(100);
        request.options.insert(MemorySubscription::default().with_retry(MemoryRetry::Scheduled));
        let source = Subscribe::subscribe(broker, request).await.unwrap();
        Self { source, wakes: Arc::default() }
    }

    /// The next delivery. `None`: it waits.
    fn next(&mut self) -> Option<SourceDelivery> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        match self.source.poll_next(&mut Context::from_waker(&waker)) {
            Poll::Ready(next) => Some(next.unwrap().unwrap()),
            Poll::Pending => None,
        }
    }

    fn is_woken(&self) -> bool {
        self.wakes.0.swap(0, Ordering::Relaxed) > 0
    }
}

async fn publish(broker: &MemoryBroker, topic: &'static str) {
    broker.publish(Message::new(topic, "").with_key("key")).await.unwrap();
}

/// The timer of a retry copy runs when the runtime comes to it: until then any take finds the copy.
#[tokio::test]
async fn copy_that_another_member_releases_wakes_the_holder_of_its_key() {
    let broker = MemoryBroker::new();
    let (mut holder, mut other) =
        (Member::new(&broker, &["t"]).await, Member::new(&broker, &["t"]).await);
    publish(&broker, "t").await;
    publish(&broker, "t").await;
    let (mut copied, _second) = (holder.next().unwrap(), holder.next().unwrap());
    let delay = Duration::from_millis(500);
    let scheduled = copied.settle.retry_later(delay, &RetryState::default()).now_or_never();
    assert_eq!(scheduled.unwrap().unwrap(), Delayed::Scheduled);
    copied.settle.ack().now_or_never().unwrap().unwrap();
    assert!(holder.next().is_none() && !holder.is_woken());
    std::thread::sleep(delay); // not the runtime's: the timer must not run
    assert!(other.next().is_none(), "a message of its key is in flight");
    assert!(holder.is_woken(), "the copy is for it");
    assert!(holder.next().is_some());
}

/// A source that has messages to handle is not polled for a while.
#[tokio::test]
async fn source_that_took_messages_takes_no_wake_up() {
    let broker = MemoryBroker::new();
    let mut busy = Member::new(&broker, &["t", "u"]).await;
    let mut waiting = Member::new(&broker, &["t"]).await;
    assert!(busy.next().is_none(), "it waits for both topics");
    publish(&broker, "u").await;
    let _taken = busy.next().unwrap();
    assert!(waiting.next().is_none() && !waiting.is_woken());
    publish(&broker, "t").await;
    assert!(waiting.is_woken());
    assert!(waiting.next().is_some());
}
