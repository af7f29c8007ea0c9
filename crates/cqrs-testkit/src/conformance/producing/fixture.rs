//! [`ProducingFixture`]: a fixture with a probe of its topic, and the checks of the producing cases.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

use cqrs_core::{Message, MessageBrokerExt, PublishError, PublishErrorKind};

use crate::conformance::fixture::{Fixture, QUIET};
use crate::conformance::harness::{Fault, Harness, Setup};
use crate::error_chain;
use crate::probe::{Probe, StoredMessage};

/// The time after which an unresolved `enqueue` counts as waiting.
pub(super) const WAITS: Duration = Duration::from_millis(300);

/// The messages that a stall may let through beyond the window.
pub(super) const SLACK: usize = 16;

/// A [`Fixture`] whose topic is probed.
pub(super) struct ProducingFixture<'h, H> {
    fixture: Fixture<'h, H>,
    pub(super) probe: Probe,
}

impl<'h, H> Deref for ProducingFixture<'h, H> {
    type Target = Fixture<'h, H>;

    fn deref(&self) -> &Self::Target {
        &self.fixture
    }
}

impl<'h, H: Harness> ProducingFixture<'h, H> {
    pub(super) async fn new(harness: &'h H) -> Self {
        Self::with(harness, Setup::default()).await
    }

    pub(super) async fn with(harness: &'h H, setup: Setup) -> Self {
        let fixture = Fixture::with(harness, setup).await;
        let probe = harness.probe(&fixture.topic).await;
        Self { fixture, probe }
    }

    /// With a first message published and read, and the broker stalled since.
    pub(super) async fn stalled(harness: &'h H, setup: Setup) -> Self {
        let mut fixture = Self::with(harness, Setup { with_faults: true, ..setup }).await;
        let last = fixture.publish_first().await;
        while fixture.receive(1).await.remove(0).text() != last {}
        fixture.inject(Fault::Stall { topic: &fixture.topic }).await;
        fixture
    }

    /// Publishes until a message is confirmed, and returns its body. A short deadline may be over before a
    /// busy server answers; the earlier messages may arrive too, before it, for all have one key.
    async fn publish_first(&self) -> String {
        let end = Instant::now() + self.can.timeout;
        let mut number = 0;
        loop {
            number += 1;
            let body = format!("before the stall, {number}");
            let message = Message::new(self.topic.as_str(), body.clone()).with_key("k");
            match self.within("publish", self.broker.publish(message)).await {
                Ok(_) => return body,
                Err(error) => {
                    assert_kind(&error, &[PublishErrorKind::NotSent, PublishErrorKind::Unknown]);
                    assert!(Instant::now() < end, "publish: {}", error_chain(&error));
                }
            }
        }
    }

    pub(super) async fn resume(&self) {
        self.inject(Fault::Resume { topic: &self.topic }).await;
    }

    /// A message without a key whose body [`numbers`] parses.
    pub(super) fn numbered(&self, number: usize) -> Message {
        Message::new(self.topic.as_str(), number.to_string())
    }

    pub(super) async fn refused(&self, message: Message) -> PublishError {
        let published = self.within("publish", self.broker.publish(message)).await;
        published.expect_err("this publish must fail")
    }

    /// The next `count` messages.
    pub(super) async fn receive(&mut self, count: usize) -> Vec<StoredMessage> {
        let mut received = Vec::with_capacity(count);
        while received.len() < count {
            match self.probe.next(self.can.timeout).await {
                Some(message) => received.push(message),
                None => panic!("lost: {} of {count} messages arrived", received.len()),
            }
        }
        received
    }

    /// The next `count` messages, and there are no more.
    pub(super) async fn receive_all(&mut self, count: usize) -> Vec<StoredMessage> {
        let received = self.receive(count).await;
        if let Some(more) = self.probe.next(QUIET).await {
            panic!("too many: {count} were published, {:?} arrived too", more.text());
        }
        received
    }

    /// Publishes one message and checks that it and nothing else arrives.
    pub(super) async fn round_trip(&mut self, message: Message) -> StoredMessage {
        self.publish(message).await;
        self.receive_all(1).await.remove(0)
    }
}

#[track_caller]
pub(super) fn assert_kind(error: &PublishError, kinds: &[PublishErrorKind]) {
    assert!(kinds.contains(&error.kind()), "not one of {kinds:?}: {}", error_chain(error));
}

/// The number in the body of each message.
pub(super) fn numbers(received: &[StoredMessage]) -> Vec<usize> {
    let number = |message: &StoredMessage| {
        let text = message.text();
        text.parse().unwrap_or_else(|_| panic!("{text:?} was never published"))
    };
    received.iter().map(number).collect()
}

/// Checks that the messages of each key arrived once and in the order sent.
pub(super) fn assert_order(received: &[StoredMessage], sent: &BTreeMap<Vec<u8>, Vec<usize>>) {
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
    assert!(arrived.is_empty(), "keys that were not used: {:?}", arrived.keys());
}
