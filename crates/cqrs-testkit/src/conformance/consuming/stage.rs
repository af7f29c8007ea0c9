//! What most cases need: a broker, a topic, a group, and waits that end.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cqrs_core::consume::{
    DeadLetter, StatusReporter, SubscribeError, SubscribeErrorKind, SubscribeRequest, TopicSet,
};
use cqrs_core::message::content_type;
use cqrs_core::{
    Emission, Event, EventRoute, JsonSerializer, Message, MessageBrokerExt, Notification,
    NotificationEvent, Subscribe, Subscription,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::stage::chain;
use super::opened::Opened;
use super::{ConsumingCapabilities, ConsumingFault, ConsumingHarness};
use crate::{Probe, Received};

/// How long nothing must come for "nothing came".
pub(super) const QUIET: Duration = Duration::from_millis(300);

/// The key of most messages: those of one key come in order.
pub(super) const KEY: &str = "k";

/// Behind everything that a group has not settled.
const THE_LAST: &str = "the last one";

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

pub(super) struct Stage<'h, H> {
    pub(super) harness: &'h H,
    pub(super) can: ConsumingCapabilities,
    pub(super) broker: Arc<dyn Subscribe>,
    pub(super) topic: String,
    pub(super) group: String,
    /// All keys that were published.
    keys: Mutex<BTreeSet<Bytes>>,
}

impl<'h, H: ConsumingHarness> Stage<'h, H> {
    pub(super) async fn new(harness: &'h H) -> Self {
        Self::with(harness, false).await
    }

    pub(super) async fn with_faults(harness: &'h H) -> Self {
        Self::with(harness, true).await
    }

    async fn with(harness: &'h H, with_faults: bool) -> Self {
        let broker = harness.connect(with_faults).await;
        let topic = harness.fresh_topic().await;
        let (can, group, keys) = (harness.capabilities(), fresh_group(), Mutex::default());
        Self { harness, can, broker, topic, group, keys }
    }

    pub(super) async fn inject(&self, fault: ConsumingFault) {
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

    pub(super) async fn publish(&self, message: Message) {
        self.note_key(&message);
        let published = self.within("publish", self.broker.publish(message)).await;
        published.unwrap_or_else(|error| panic!("publish: {}", chain(&error)));
    }

    /// Publishes in that order.
    pub(super) async fn publish_all(&self, messages: impl IntoIterator<Item = Message>) {
        let mut receipts = Vec::new();
        for message in messages {
            self.note_key(&message);
            let enqueued = self.within("enqueue", self.broker.enqueue(message)).await;
            receipts.push(enqueued.unwrap_or_else(|error| panic!("enqueue: {}", chain(&error))));
        }
        for receipt in receipts {
            let confirmed = self.within("confirm", receipt).await;
            confirmed.unwrap_or_else(|error| panic!("confirm: {}", chain(&error)));
        }
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
    pub(super) fn request(
        &self,
        change: impl FnOnce(&mut SubscribeRequest),
    ) -> (SubscribeRequest, Status) {
        let topics = TopicSet::Named(vec![self.topic.as_str().into()]);
        let (reporter, status) = StatusReporter::new();
        let mut request = SubscribeRequest::new(topics, self.group.as_str(), reporter);
        change(&mut request);
        (request, status)
    }

    /// Opens a source of the group.
    pub(super) async fn open(&self) -> Opened {
        self.open_with(|_| {}).await
    }

    /// Opens a source of another request.
    pub(super) async fn open_with(&self, change: impl FnOnce(&mut SubscribeRequest)) -> Opened {
        let (request, status) = self.request(change);
        let opened = self.within("subscribe", self.broker.subscribe(request)).await;
        let source = opened.unwrap_or_else(|error| panic!("subscribe: {}", chain(&error)));
        let mut opened = Opened::new(source, status, self.can.patience);
        opened.wait_until_consuming().await;
        opened
    }

    /// Opens and closes a source, so that there is a group to publish to.
    pub(super) async fn make_group(&self) {
        self.open().await.close().await;
    }

    /// What the group has not settled, in the order it comes; settles it.
    pub(super) async fn left(&self) -> Vec<String> {
        let mut opened = self.open().await;
        // Keys may come in any order, and that of a key behind all of it.
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut coming = keys.len();
        let last = |key| Message::new(self.topic.as_str(), THE_LAST).with_key(key);
        self.publish_all(keys.into_iter().map(last)).await;
        let mut left = Vec::new();
        while coming > 0 {
            match opened.acked().await {
                last if last == THE_LAST => coming -= 1,
                text => left.push(text),
            }
        }
        while let Some(text) = opened.acked_within(QUIET).await {
            left.push(text);
        }
        opened.close().await;
        left
    }

    /// Checks that the group has settled everything.
    pub(super) async fn assert_nothing_left(&self) {
        let left = self.left().await;
        assert!(left.is_empty(), "settled, and came again: {left:?}");
    }

    pub(super) fn subscription(&self) -> Subscription {
        Subscription::to(self.topic.as_str()).group(self.group.as_str()).json::<Counted>()
    }

    /// The dead letters of the topic and the group.
    pub(super) async fn dead_letters(&self) -> Probe {
        self.harness.dead_letters(&format!("{}.{}.dead", self.topic, self.group)).await
    }

    /// The next of `letters`, and what it says of itself.
    pub(super) async fn dead_letter(&self, letters: &mut Probe) -> (Received, DeadLetter) {
        let patience = self.can.patience;
        let Some(message) = letters.next(patience).await else {
            panic!("no dead letter within {patience:?}");
        };
        match DeadLetter::from_headers(&message.headers) {
            Ok(letter) => (message, letter),
            Err(error) => panic!("{error}: it has {:?}", message.headers),
        }
    }

    // ---- waiting

    pub(super) async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        let patience = self.can.patience;
        let done = tokio::time::timeout(patience, future).await;
        done.unwrap_or_else(|_| panic!("{what}: not after {patience:?}"))
    }

    /// Waits for a condition.
    pub(super) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + self.can.patience;
        while !condition() {
            assert!(Instant::now() < end, "{what}: not after {:?}", self.can.patience);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(super) type Status = tokio::sync::watch::Receiver<cqrs_core::consume::SourceStatus>;

pub(super) fn fresh_group() -> String {
    format!("group-{}", Uuid::now_v7().simple())
}

/// Checks that `problems` say that the broker cannot do it.
#[track_caller]
pub(super) fn assert_unsupported(problems: &[SubscribeError], what: &str) {
    let kinds: Vec<_> = problems.iter().map(SubscribeError::kind).collect();
    assert_eq!(kinds, [SubscribeErrorKind::Unsupported], "{what} is not declared");
}
