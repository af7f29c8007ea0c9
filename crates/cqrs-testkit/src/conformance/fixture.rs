//! [`Fixture`]: a broker with a topic and a group for one case, and waits with a limit; used by both
//! halves of the conformance suite.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cqrs_core::broker::{Confirmation, Receipt};
use cqrs_core::codec::JsonSerializer;
use cqrs_core::consume::{
    DeadLetter, StatusReporter, SubscribeError, SubscribeErrorKind, SubscribeRequest, TopicSet,
};
use cqrs_core::event::{Emission, EventRoute};
use cqrs_core::message::content_type;
use cqrs_core::{
    Event, Message, MessageBroker, Notification, NotificationEvent, Subscribe, Subscription,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::harness::{Capabilities, Fault, Harness, Setup};
use crate::error_chain;
use crate::probe::{Probe, StoredMessage};
use crate::source::{TestSource, is_consuming};

/// The silence after which nothing more is expected.
pub(super) const QUIET: Duration = Duration::from_millis(300);

/// The key of most messages: those of one key are received in order.
pub(super) const KEY: &str = "k";

/// The body of the message behind all that a group has not settled.
const LAST: &str = "the last one";

/// The event of the suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) key: String,
    pub(super) number: u32,
}

impl Event for Counted {
    const NAME: &'static str = "Counted";
    const ROUTE: EventRoute = EventRoute::Notification;

    fn into_emission(self) -> Emission {
        Emission::notification(self)
    }
}

impl Notification for Counted {
    type Serializer = JsonSerializer;

    fn topic() -> Cow<'static, str> {
        Cow::Borrowed("conformance")
    }
}

pub(super) struct Fixture<'h, H> {
    pub(super) harness: &'h H,
    pub(super) can: Capabilities,
    pub(super) broker: Arc<dyn Subscribe>,
    pub(super) topic: String,
    pub(super) group: String,
    /// All keys that were published.
    keys: Mutex<BTreeSet<Bytes>>,
}

impl<'h, H: Harness> Fixture<'h, H> {
    pub(super) async fn new(harness: &'h H) -> Self {
        Self::with(harness, Setup::default()).await
    }

    pub(super) async fn with_faults(harness: &'h H) -> Self {
        Self::with(harness, Setup { with_faults: true, ..Setup::default() }).await
    }

    pub(super) async fn with(harness: &'h H, setup: Setup) -> Self {
        let broker = harness.connect(setup).await;
        let topic = harness.fresh_topic().await;
        let (can, group, keys) = (harness.capabilities(), fresh_group(), Mutex::default());
        Self { harness, can, broker, topic, group, keys }
    }

    pub(super) async fn inject(&self, fault: Fault<'_>) {
        self.harness.inject(fault).await;
    }

    // ---- publishing

    /// A message of the one key.
    pub(super) fn message(&self, text: impl ToString) -> Message {
        self.message_of(KEY, text)
    }

    pub(super) fn message_of(&self, key: &str, text: impl ToString) -> Message {
        Message::new(self.topic.as_str(), text.to_string()).with_key(key.to_owned())
    }

    /// An event as a message.
    pub(super) fn event(&self, key: &str, number: u32) -> Message {
        let event = NotificationEvent::new(Counted { key: key.to_owned(), number })
            .with_topic(self.topic.clone());
        let body = serde_json::to_vec(&event).expect("JSON");
        Message::new(self.topic.as_str(), body)
            .with_id(event.event_id)
            .with_name(Counted::NAME)
            .with_key(key.to_owned())
            .with_content_type(content_type::JSON)
    }

    pub(super) async fn enqueue(&self, message: Message) -> Receipt {
        self.note_key(&message);
        let enqueued = self.within("enqueue", self.broker.enqueue(message)).await;
        enqueued.unwrap_or_else(|error| panic!("enqueue: {}", error_chain(&error)))
    }

    pub(super) async fn confirmed(&self, receipt: Receipt) -> Confirmation {
        let confirmed = self.within("confirm", receipt).await;
        confirmed.unwrap_or_else(|error| panic!("confirm: {}", error_chain(&error)))
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

    /// Publishes in that order.
    pub(super) async fn publish_all(&self, messages: impl IntoIterator<Item = Message>) {
        let mut receipts = Vec::new();
        for message in messages {
            receipts.push(self.enqueue(message).await);
        }
        self.all_confirmed(receipts).await;
    }

    fn note_key(&self, message: &Message) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.extend(message.key.clone());
    }

    /// Events of the one key, numbered from 1.
    pub(super) async fn publish_events(&self, count: u32) {
        self.publish_all((1..=count).map(|number| self.event(KEY, number))).await;
    }

    // ---- consuming

    /// A request for the topic and the group.
    pub(super) fn request(&self, change: impl FnOnce(&mut SubscribeRequest)) -> SubscribeRequest {
        let topics = TopicSet::Named(vec![self.topic.as_str().into()]);
        let (reporter, _status) = StatusReporter::new();
        let mut request = SubscribeRequest::new(topics, self.group.as_str(), reporter);
        change(&mut request);
        request
    }

    /// Opens a source of the group.
    pub(super) async fn open(&self) -> TestSource {
        self.open_with(|_| {}).await
    }

    /// Opens a source with a changed request.
    pub(super) async fn open_with(&self, change: impl FnOnce(&mut SubscribeRequest)) -> TestSource {
        let opened = TestSource::open(&self.broker, self.request(change), self.can.timeout).await;
        let mut source =
            opened.unwrap_or_else(|error| panic!("subscribe: {}", error_chain(&error)));
        source.poll_until(is_consuming).await;
        source
    }

    /// Opens and closes a source, so that there is a group to publish to.
    pub(super) async fn make_group(&self) {
        self.open().await.close().await;
    }

    /// The bodies that the group has not settled, in the order received; settles them.
    pub(super) async fn unsettled(&self) -> Vec<String> {
        let mut source = self.open().await;
        // Keys are received in any order, the last message of a key behind all others of the key.
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut expected = keys.len();
        let last = |key| Message::new(self.topic.as_str(), LAST).with_key(key);
        self.publish_all(keys.into_iter().map(last)).await;
        let mut unsettled = Vec::new();
        while expected > 0 {
            match source.ack_next_unrevoked().await {
                last if last == LAST => expected -= 1,
                text => unsettled.push(text),
            }
        }
        while let Some(text) = source.ack_within(QUIET).await {
            unsettled.push(text);
        }
        source.close().await;
        unsettled
    }

    /// Checks that the group has settled everything.
    pub(super) async fn assert_all_settled(&self) {
        let unsettled = self.unsettled().await;
        assert!(unsettled.is_empty(), "settled, and redelivered: {unsettled:?}");
    }

    pub(super) fn subscription(&self) -> Subscription {
        Subscription::to(self.topic.as_str()).group(self.group.as_str()).json::<Counted>()
    }

    /// The dead letters of the topic and the group.
    pub(super) async fn dead_letters(&self) -> Probe {
        self.harness.dead_letters(&format!("{}.{}.dead", self.topic, self.group)).await
    }

    /// The next of `letters` with its parsed headers.
    pub(super) async fn dead_letter(&self, letters: &mut Probe) -> (StoredMessage, DeadLetter) {
        let timeout = self.can.timeout;
        let Some(message) = letters.next(timeout).await else {
            panic!("no dead letter within {timeout:?}");
        };
        match DeadLetter::from_headers(&message.headers) {
            Ok(letter) => (message, letter),
            Err(error) => panic!("{error}: it has {:?}", message.headers),
        }
    }

    // ---- waiting

    pub(super) async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        let timeout = self.can.timeout;
        let done = tokio::time::timeout(timeout, future).await;
        done.unwrap_or_else(|_| panic!("{what}: not after {timeout:?}"))
    }

    /// Waits for a condition.
    pub(super) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + self.can.timeout;
        while !condition() {
            assert!(Instant::now() < end, "{what}: not after {:?}", self.can.timeout);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(super) fn fresh_group() -> String {
    format!("group-{}", Uuid::now_v7().simple())
}

/// Checks that `problems` are one refusal of something unsupported.
#[track_caller]
pub(super) fn assert_unsupported(problems: &[SubscribeError], what: &str) {
    let kinds: Vec<_> = problems.iter().map(SubscribeError::kind).collect();
    assert_eq!(kinds, [SubscribeErrorKind::Unsupported], "{what} is not declared");
}
