//! What most cases need: a broker, a topic, its probe, and waits that end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::broker::{Confirmation, Receipt};
use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind};

use super::{Capabilities, Fault, Harness, Setup};
use crate::{Probe, Received};

/// How long nothing must come for "nothing came".
const QUIET: Duration = Duration::from_millis(300);

/// How long an `enqueue` is given to show that it waits.
pub(super) const WAITS: Duration = Duration::from_millis(300);

/// More than this beyond the window is not "in flight" but "unbounded": what a stall lets through.
pub(super) const SLACK: usize = 16;

pub(super) struct Stage<'h, H> {
    pub(super) harness: &'h H,
    pub(super) can: Capabilities,
    pub(super) broker: Arc<dyn MessageBroker>,
    pub(super) topic: String,
    pub(super) probe: Probe,
}

impl<'h, H: Harness> Stage<'h, H> {
    pub(super) async fn new(harness: &'h H) -> Self {
        Self::with(harness, Setup::default()).await
    }

    pub(super) async fn with(harness: &'h H, setup: Setup) -> Self {
        let broker = harness.connect(setup).await;
        let topic = harness.fresh_topic().await;
        let probe = harness.probe(&topic).await;
        Self { harness, can: harness.capabilities(), broker, topic, probe }
    }

    /// With a first message published and read, and the broker stalled since.
    pub(super) async fn stalled(harness: &'h H, setup: Setup) -> Self {
        let mut stage = Self::with(harness, Setup { with_faults: true, ..setup }).await;
        let last = stage.publish_first().await;
        while stage.receive(1).await.remove(0).text() != last {}
        harness.inject(Fault::Stall { topic: &stage.topic }).await;
        stage
    }

    /// Publishes until a message is confirmed, and tells its body: a short deadline may be over before a
    /// busy server answers. The others may arrive too, before it: all have one key.
    async fn publish_first(&self) -> String {
        let end = Instant::now() + self.can.patience;
        let mut number = 0;
        loop {
            number += 1;
            let body = format!("before the stall, {number}");
            let message = Message::new(self.topic.as_str(), body.clone()).with_key("k");
            match self.within("publish", self.broker.publish(message)).await {
                Ok(_) => return body,
                Err(error) => {
                    assert_kind(&error, &[PublishErrorKind::NotSent, PublishErrorKind::Unknown]);
                    assert!(Instant::now() < end, "publish: {}", chain(&error));
                }
            }
        }
    }

    pub(super) async fn resume(&self) {
        self.harness.inject(Fault::Resume { topic: &self.topic }).await;
    }

    /// A message that [`numbers`] finds again.
    pub(super) fn message(&self, number: usize) -> Message {
        Message::new(self.topic.as_str(), number.to_string())
    }

    pub(super) async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        let patience = self.can.patience;
        let done = tokio::time::timeout(patience, future).await;
        done.unwrap_or_else(|_| panic!("{what}: not after {patience:?}"))
    }

    pub(super) async fn enqueue(&self, message: Message) -> Receipt {
        let enqueued = self.within("enqueue", self.broker.enqueue(message)).await;
        enqueued.unwrap_or_else(|error| panic!("enqueue: {}", chain(&error)))
    }

    pub(super) async fn confirmed(&self, receipt: Receipt) -> Confirmation {
        let confirmed = self.within("confirm", receipt).await;
        confirmed.unwrap_or_else(|error| panic!("confirm: {}", chain(&error)))
    }

    pub(super) async fn all_confirmed(&self, receipts: impl IntoIterator<Item = Receipt>) {
        for receipt in receipts {
            self.confirmed(receipt).await;
        }
    }

    pub(super) async fn publish(&self, message: Message) -> Confirmation {
        let receipt = self.enqueue(message).await;
        self.confirmed(receipt).await
    }

    pub(super) async fn refused(&self, message: Message) -> PublishError {
        let published = self.within("publish", self.broker.publish(message)).await;
        published.expect_err("this publish must fail")
    }

    /// The next `count` messages.
    pub(super) async fn receive(&mut self, count: usize) -> Vec<Received> {
        let mut received = Vec::with_capacity(count);
        while received.len() < count {
            match self.probe.next(self.can.patience).await {
                Some(message) => received.push(message),
                None => panic!("lost: {} of {count} messages arrived", received.len()),
            }
        }
        received
    }

    /// The next `count` messages, and there are no more.
    pub(super) async fn receive_all(&mut self, count: usize) -> Vec<Received> {
        let received = self.receive(count).await;
        if let Some(more) = self.probe.next(QUIET).await {
            panic!("too many: {count} were published, {:?} arrived too", more.text());
        }
        received
    }

    /// Publishes one message and checks that it and nothing else arrives.
    pub(super) async fn round_trip(&mut self, message: Message) -> Received {
        self.publish(message).await;
        self.receive_all(1).await.remove(0)
    }
}

/// An error with all of its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[track_caller]
pub(super) fn assert_kind(error: &PublishError, kinds: &[PublishErrorKind]) {
    assert!(kinds.contains(&error.kind()), "not one of {kinds:?}: {}", chain(error));
}

/// The number in the body of each message.
pub(super) fn numbers(received: &[Received]) -> Vec<usize> {
    let number = |message: &Received| {
        let text = message.text();
        text.parse().unwrap_or_else(|_| panic!("{text:?} was never published"))
    };
    received.iter().map(number).collect()
}

/// Checks that every key's messages came in the order they were sent, each once.
pub(super) fn assert_order(received: &[Received], sent: &BTreeMap<Vec<u8>, Vec<usize>>) {
    let mut arrived: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for (message, number) in received.iter().zip(numbers(received)) {
        let key = message.key.as_ref().map(|key| key.to_vec()).unwrap_or_default();
        arrived.entry(key).or_default().push(number);
    }
    for (key, sent) in sent {
        let arrived = arrived.remove(key).unwrap_or_default();
        let key = String::from_utf8_lossy(key);
        let differ = sent.iter().zip(&arrived).position(|(sent, arrived)| sent != arrived);
        if let Some(at) = differ {
            let (sent, arrived) = (sent[at], arrived[at]);
            panic!("out of order: message {at} of key {key:?} is {sent}, but {arrived} arrived");
        }
        assert_eq!(sent.len(), arrived.len(), "messages of key {key:?}");
    }
    assert!(arrived.is_empty(), "keys nobody used: {:?}", arrived.keys());
}
