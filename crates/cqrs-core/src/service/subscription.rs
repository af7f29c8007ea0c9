//! The builder of a subscription: topics, event types, policies, limits and retries.

use std::sync::Arc;
use std::time::Duration;

use super::policy::{Decoded, DecoderFn, OnDecodeError, Policies, Undecodable, UndecodableFn};
use super::runtime::{Limits, Routes};
use crate::codec::{Deserializer, FromJson, JsonDeserializer, JsonPayloadDeserializer};
use crate::consume::{
    BrokerOptions, DeadLetterTarget, Incoming, Received, Retry, StartAt, StatusReporter,
    SubscribeRequest, TopicSet,
};
use crate::event::{HandlerError, Notification};
use crate::message::Name;
use crate::middleware::{DynMiddleware, Middleware};
use crate::scope::{ErasedInbox, Inbox};

/// A subscription: its topics, how messages are decoded, and what follows a failure. A
/// [`Service`](super::Service) joins it with a target that handles its events.
///
/// ```
/// use cqrs_core::{OnDecodeError, Retry, Subscription};
/// # use cqrs_core::Notification;
/// # fn f<UserCreated: Notification + serde::de::DeserializeOwned>() {
/// let users = Subscription::to("user_events")
///     .group("mailer")
///     .json::<UserCreated>()
///     .concurrency(16)                 // in parallel, in order per key
///     .retry(Retry::default())
///     .on_decode_error(OnDecodeError::DeadLetter);
/// # }
/// ```
#[must_use = "give it to a service"]
pub struct Subscription {
    pub(super) topics: TopicSet,
    pub(super) group: Option<Arc<str>>,
    pub(super) name: Option<Arc<str>>,
    pub(super) routes: Routes,
    pub(super) policies: Policies,
    pub(super) undecodable: Option<UndecodableFn>,
    pub(super) decoders: Vec<DecoderFn>,
    pub(super) middlewares: Vec<Arc<dyn DynMiddleware>>,
    pub(super) inbox: Option<Arc<dyn ErasedInbox>>,
    pub(super) limits: Limits,
    pub(super) retry: Retry,
    pub(super) dead_letter: DeadLetterTarget,
    pub(super) start: StartAt,
    pub(super) max_unsettled: Option<usize>,
    pub(super) options: BrokerOptions,
}

impl Subscription {
    /// A subscription to one topic. On RabbitMQ that is a queue `{topic}.{group}`, bound to the broker's
    /// exchange with the topic as routing key, unless the broker's own options say otherwise.
    pub fn to(topic: impl Into<Name>) -> Self {
        Self::to_all([topic])
    }

    /// A subscription to several topics, with the same handler and settings.
    pub fn to_all<T: Into<Name>>(topics: impl IntoIterator<Item = T>) -> Self {
        Self::over(TopicSet::Named(topics.into_iter().map(|topic| topic.into().0).collect()))
    }

    /// A subscription to every topic whose whole name matches the regular expression, including new ones.
    /// Kafka only; an error of `build` on other brokers.
    pub fn pattern(pattern: impl Into<Name>) -> Self {
        Self::over(TopicSet::Pattern(pattern.into().0))
    }

    fn over(topics: TopicSet) -> Self {
        Self {
            topics,
            group: None,
            name: None,
            routes: Routes::default(),
            policies: Policies::default(),
            undecodable: None,
            decoders: Vec::new(),
            middlewares: Vec::new(),
            inbox: None,
            limits: Limits::default(),
            retry: Retry::default(),
            dead_letter: DeadLetterTarget::default(),
            start: StartAt::default(),
            max_unsettled: None,
            options: BrokerOptions::default(),
        }
    }

    crate::setters! {
        /// Sets the consumer group: its members share the messages, every group gets all of them. Required.
        pub fn group(group: impl Into<Name>) { self.group = Some(group.into().0) }

        /// Sets the name in logs and health reports; `{group}@{topic}` by default.
        pub fn name(name: impl Into<Name>) { self.name = Some(name.into().0) }
    }

    // ---- events

    /// Takes events of type `P` as JSON. Several types of one topic are distinguished by the event's name.
    pub fn json<P: Notification + FromJson>(self) -> Self {
        self.decode::<P>(JsonDeserializer)
    }

    /// Takes every message as a JSON event of type `P`, whatever its name.
    pub fn json_of<P: Notification + FromJson>(self) -> Self {
        self.decode_all::<P>(JsonDeserializer)
    }

    /// Takes messages whose JSON is the payload alone as events of type `P`. Several types of one topic are
    /// distinguished by the event's name in the frame: see [`JsonPayloadDeserializer`].
    pub fn json_payload<P: Notification + FromJson>(self) -> Self {
        self.decode::<P>(JsonPayloadDeserializer)
    }

    /// Takes events of type `P` as `deserializer` reads them.
    pub fn decode<P: Notification>(mut self, deserializer: impl Deserializer<P>) -> Self {
        self.routes.add(deserializer);
        self
    }

    /// Takes every message as an event of type `P`, whatever its name, as `deserializer` reads it.
    pub fn decode_all<P: Notification>(mut self, deserializer: impl Deserializer<P>) -> Self {
        self.routes.any_name = true;
        self.decode(deserializer)
    }

    /// Adds a hook that runs on each message before it is decoded: to skip, decompress or decrypt it. Hooks
    /// run in the order they were added. Dead letters hold the original message, not the result of a hook.
    ///
    /// A hook that needs another service returns [`DecodeError::not_now`](super::DecodeError::not_now)
    /// while that is away: the message waits then and does not become a dead letter. A hook that exceeds
    /// the [`timeout`](Self::timeout) is a failed attempt: the timeout must be longer than a hook may take.
    ///
    /// ```
    /// # use cqrs_core::consume::Incoming;
    /// # use cqrs_core::service::DecodeError;
    /// # use cqrs_core::Subscription;
    /// # let subscription = Subscription::to("t");
    /// let subscription = subscription.decoder(|mut message: Incoming| async move {
    ///     let body = message.bytes();
    ///     let Some(body) = body.strip_prefix(b"v1:") else {
    ///         return Err(DecodeError::malformed("no version"));
    ///     };
    ///     message.body = Some(body.to_vec().into());
    ///     Ok(Some(message)) // `None` skips it
    /// });
    /// ```
    pub fn decoder<F, Fut>(mut self, decoder: F) -> Self
    where
        F: Fn(Incoming) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Decoded> + Send + 'static,
    {
        self.decoders.push(Arc::new(move |message| Box::pin(decoder(message))));
        self
    }

    crate::setters! {
        /// Bodies of more than `bytes` are not decoded: the policy for decode errors applies, with
        /// [`DeserializeErrorKind::TooLarge`](crate::codec::DeserializeErrorKind::TooLarge). 8 MiB by default.
        /// It is checked before the first [`decoder`](Self::decoder) and after the last.
        ///
        /// A hostile body can take far more memory decoded than it has bytes: about 40 times as much in JSON,
        /// about 160 times in Protobuf (arrays of the smallest elements). The
        /// [`concurrency`](Self::concurrency) times `bytes` times that factor bounds the memory of decoding.
        pub fn max_body_size(bytes: usize) { self.limits.max_body_size = bytes }

        /// Sets the start of a new group; the oldest message by default.
        pub fn start_at(start: StartAt) { self.start = start }

        // ---- policies for messages that cannot be decoded

        /// Sets the policy for bytes that cannot be decoded; [`OnDecodeError::DeadLetter`] by default.
        pub fn on_decode_error(policy: OnDecodeError) { self.policies.decode_error = policy }

        /// Sets the policy for an event of another name than those of this subscription's types;
        /// [`OnDecodeError::DeadLetter`] by default.
        pub fn on_unknown_event(policy: OnDecodeError) { self.policies.unknown_event = policy }

        /// Sets the policy for an empty message, unless it is an event in its format (in Protobuf it is a
        /// message of defaults); [`OnDecodeError::Skip`] by default.
        pub fn on_empty(policy: OnDecodeError) { self.policies.empty = policy }

        /// Sets the policy for a Kafka tombstone; [`OnDecodeError::Skip`] by default.
        pub fn on_tombstone(policy: OnDecodeError) { self.policies.tombstone = policy }
    }

    /// Sets the function that [`OnDecodeError::Handle`] runs. Its result settles the message as a handler's
    /// does.
    pub fn undecodable<F, Fut>(mut self, function: F) -> Self
    where
        F: Fn(Undecodable, Received) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.undecodable =
            Some(Arc::new(move |error, received| Box::pin(function(error, received))));
        self
    }

    // ---- handling

    crate::setters! {
        /// Sets the number of handlers that may run at once; 1 by default, which is strict order. With more,
        /// messages of one topic and key still run one after the other, in order; those without a key are
        /// unordered.
        pub fn concurrency(handlers: usize) { self.limits.concurrency = handlers }

        /// Sets the number of messages that may be fetched and not settled. By default three times the
        /// concurrency (or the size of a [`batch`](super::batch)), at least 16 and at most 300 (RabbitMQ's
        /// prefetch, and the memory broker), or 10,000 (Kafka); twice the size of a batch of more than 300.
        ///
        /// While half of them (by default 8 at least, 150 at most) are held, a message whose handler's events are
        /// not published is not held as well but becomes a dead letter.
        pub fn max_unsettled(messages: usize) { self.max_unsettled = Some(messages) }

        /// Sets the time that one run of the handler may take, decoding included. A longer run is cancelled and
        /// counts as a retryable failure. No limit by default. A handler that blocks its thread cannot be
        /// cancelled. A mediator's work whose commit began is not cancelled: it is committed, its events are
        /// published, and it does not run again.
        pub fn timeout(timeout: Duration) { self.limits.timeout = Some(timeout) }

        /// Sets the retry schedule of failed messages.
        pub fn retry(retry: Retry) { self.retry = retry }

        /// Sets the target of dead letters.
        pub fn dead_letter(to: DeadLetterTarget) { self.dead_letter = to }

        /// Sets the number of crashes, while it ran alone, after which a message becomes a dead letter; 3 by
        /// default. 0 switches it off: no crash is counted, and a message that crashes its process is tried
        /// again forever.
        ///
        /// Supported by Kafka and RabbitMQ's quorum queues. The page of the broker's crate describes how the
        /// message is found.
        pub fn max_crashes(crashes: u32) { self.limits.max_crashes = crashes }

        /// Adds `middleware` inside those added before, around the handling of each event. It runs outside a
        /// mediator's own middlewares and its commit: a failure that it returns after a success runs the
        /// handler again. Not for [`manual`](super::manual) and [`batch`](super::batch).
        pub fn middleware(middleware: impl Middleware) {
            self.middlewares.push(Arc::new(middleware))
        }

        /// Handles each event once: its id is marked in the mediator's unit of work before the handlers run, so
        /// that a duplicate of an event whose handling is committed is acked without running them again.
        ///
        /// The marks of a group are apart from those of the others. The id is that of the event
        /// ([`NotificationEvent::event_id`](crate::NotificationEvent)): a sender that writes none, or a new one
        /// for each copy, has no duplicates. While the mark cannot be stored (its database is away), no attempt is
        /// counted: the message waits and is tried again, for as long as needed.
        ///
        /// For mediators only, whose unit of work must be that of the inbox. A mediator that publishes directly
        /// (`broker(..)` of its builder) is refused: use `outbox(..)`. A message that is redelivered while the events of
        /// its handler are not published yet would be acked as a duplicate, and the events lost.
        pub fn inbox(inbox: impl Inbox) { self.inbox = Some(Arc::new(inbox)) }
    }

    /// Adds options that only one broker knows, of its own type; other brokers ignore them.
    pub fn option<T: Send + Sync + 'static>(mut self, options: T) -> Self {
        self.options.insert(options);
        self
    }

    /// The request to the broker.
    pub(super) fn request(&self, group: &Arc<str>, status: StatusReporter) -> SubscribeRequest {
        let mut request = SubscribeRequest::new(self.topics.clone(), Arc::clone(group), status);
        if let Some(name) = &self.name {
            request.name = Arc::clone(name);
        }
        request.start = self.start;
        request.concurrency = self.limits.concurrency;
        request.max_unsettled = self.max_unsettled;
        request.retry = self.retry.clone();
        request.dead_letter = self.dead_letter.clone();
        request.max_crashes = self.limits.max_crashes;
        request.options = self.options.clone();
        request
    }
}

crate::debug_fields!(Subscription { topics, group, policies, limits, retry, dead_letter }, |it|
    events: it.routes, middlewares: it.middlewares.len());
