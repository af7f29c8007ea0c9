//! [`ServiceTester`]: runs a service's own wiring in process, on a broker that records what happens.

mod broker;
mod events;
mod journal;
mod outcome;
mod running;
mod wall_clock;

use std::sync::Arc;
use std::time::Duration;

pub use broker::TesterBroker;
use cqrs_core::broker::MessageBrokerExt;
use cqrs_core::codec::{Deserializer, JsonDeserializer};
use cqrs_core::event::EventRoute;
use cqrs_core::memory::MemoryFaults;
use cqrs_core::{Event, Mediator, MemoryBroker, Message, Notification, Service};
pub use events::TesterEvents;
use journal::{Journal, JournalState, Outcome};
pub use outcome::{DeadLettered, Retried, TesterError};
pub use running::RunningService;
use serde::de::DeserializeOwned;

/// Tests a service without a server: starts its own wiring on an in-memory broker, publishes typed
/// events, waits until they are handled, retried or dead-lettered, and returns what the service published.
///
/// ```
/// use std::sync::Arc;
///
/// use cqrs_core::{EventHandler, EventMediator, HandlerError, Scope, Service, Subscribe, Subscription};
/// # use cqrs_core::consume::DeadLetterReason;
/// # use cqrs_core::HandlerResultExt;
/// # use cqrs_macros::Notification;
/// use cqrs_testkit::ServiceTester;
/// # use serde::{Deserialize, Serialize};
///
/// # #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
/// # #[cqrs(crate = "cqrs_core", name = "UserCreated", topic = "user_events", key = "email")]
/// # struct UserCreated { email: String }
/// # #[derive(Debug, PartialEq, Serialize, Deserialize, Notification)]
/// # #[cqrs(crate = "cqrs_core", name = "WelcomeSent", topic = "mails")]
/// # struct WelcomeSent { to: String }
/// # struct SendWelcomeMail;
/// # impl EventHandler<UserCreated> for SendWelcomeMail {
/// #     async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
/// #         if !event.email.contains('@') {
/// #             return Err("no address").permanent();
/// #         }
/// #         scope.emit(WelcomeSent { to: event.email.clone() });
/// #         Ok(())
/// #     }
/// # }
/// /// The application's: `main` gives it Kafka or RabbitMQ.
/// fn mailer(broker: Arc<dyn Subscribe>) -> Result<Service, Box<dyn std::error::Error>> {
///     let events = EventMediator::builder()
///         .event::<UserCreated, _>(SendWelcomeMail)
///         .broker(Arc::clone(&broker))
///         .build()?;
///     let users = Subscription::to("user_events").group("mailer").json::<UserCreated>();
///     Ok(Service::builder(broker).subscribe(users, events).build()?)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// // #[tokio::test(start_paused = true)]: delays of minutes take no time.
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tester = ServiceTester::new();
/// let running = tester.start(mailer(Arc::new(tester.broker()))?).await;
///
/// let ada = UserCreated { email: "ada@example.org".into() };
/// tester.publish(ada.clone()).await?;
/// assert_eq!(tester.handled::<UserCreated>(1).await?, [ada]);
/// assert_eq!(tester.published::<WelcomeSent>(), [WelcomeSent { to: "ada@example.org".into() }]);
///
/// tester.publish(UserCreated { email: "nowhere".into() }).await?;
/// let dead = tester.dead_letters(1).await?;
/// assert_eq!(dead[0].letter.reason, DeadLetterReason::Permanent);
/// assert!(dead[0].letter.error.ends_with("no address"));
///
/// let report = running.stop().await?;
/// assert_eq!(report.subscriptions[0].counts.handled, 1);
/// # Ok(())
/// # }
/// ```
///
/// # How it waits
/// [`handled`](Self::handled), [`retried`](Self::retried) and [`dead_letters`](Self::dead_letters) wait for
/// a count. They fail with a list of all that did happen when the count is not reached within
/// [5 seconds](Self::timeout), or when the service ends with an error. With `0` they return at once.
///
/// The five seconds are of the wall clock. The service itself runs on tokio's clock: under
/// `#[tokio::test(start_paused = true)]` a retry in five minutes is due at once.
///
/// # Counts
/// It records what the broker sees. An event is of type `P` if it has that name and its body is JSON of `P`
/// (or what [`decode`](Self::decode) reads).
/// An event that two groups handled was handled twice. A message that a policy skipped or discarded was
/// acked, and so counts as handled ([`RunningService::health`] distinguishes them). Immediate retries do
/// not reach the broker: [`RunningService::failed_attempts`] counts them.
#[derive(Debug)]
pub struct ServiceTester {
    broker: TesterBroker,
    timeout: Duration,
}

impl Default for ServiceTester {
    fn default() -> Self {
        Self::new()
    }
}

impl ServiceTester {
    /// A tester with a [`MemoryBroker`] of its own.
    pub fn new() -> Self {
        Self::on(MemoryBroker::new())
    }

    /// A tester that is as strict as RabbitMQ: an event whose topic has no group is unroutable, and the message
    /// whose handler emitted it waits. The topics that other services consume get a group by
    /// [`create_group`](MemoryBroker::create_group) of [`memory`](Self::memory).
    pub fn strict() -> Self {
        Self::on(MemoryBroker::builder().require_subscriber(true).build())
    }

    /// A tester on `memory`, which may be built to be small, or strict.
    pub fn on(memory: MemoryBroker) -> Self {
        let broker = TesterBroker { memory, journal: Arc::new(Journal::new()) };
        Self { broker, timeout: Duration::from_secs(5) }
    }

    /// The limit of every wait, by the wall clock; 5 s by default.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The broker to wire the service with.
    pub fn broker(&self) -> TesterBroker {
        self.broker.clone()
    }

    /// The in-memory broker below. Messages published to it directly do not count as published by the
    /// service.
    pub fn memory(&self) -> &MemoryBroker {
        &self.broker.memory
    }

    /// Injects faults: lost confirms, duplicates, redeliveries, revokes, failed settlements.
    pub fn faults(&self) -> MemoryFaults {
        self.broker.memory.faults()
    }

    /// Starts `service`, which is wired with [`broker`](Self::broker), and waits until its subscriptions
    /// are open.
    pub async fn start(&self, service: Service) -> RunningService {
        let journal = &self.broker.journal;
        let expected = {
            let mut state = journal.lock();
            state.failed = None;
            state.subscriptions + service.health().subscriptions().len()
        };
        let running = RunningService::start(service, journal);
        // The next wait reports a subscription that does not open.
        let open = |state: &JournalState| (state.subscriptions >= expected).then_some(());
        let _open = journal.wait(self.timeout, open).await;
        running
    }

    // ---- incoming messages

    /// Publishes a notification to its own topic, as another service would: its payload, or a
    /// [`NotificationEvent`](cqrs_core::NotificationEvent) with an id or topic of its own.
    ///
    /// # Errors
    /// When it is no notification, cannot be serialized, or an injected fault keeps the broker from
    /// confirming it.
    pub async fn publish<E: Event>(&self, event: E) -> Result<(), TesterError> {
        if E::ROUTE != EventRoute::Notification {
            let text = format!("{} is a domain event: it never leaves its process", E::NAME);
            return Err(TesterError(text));
        }
        let other = Mediator::builder().broker(self.broker.memory.clone()).build();
        let other = other.map_err(|error| TesterError::of(&error))?;
        other.emitter().emit(event).await.map_err(|error| TesterError::of(&error))
    }

    /// Publishes any message, for example bytes that are no event.
    ///
    /// # Errors
    /// When the broker does not confirm it.
    pub async fn publish_message(&self, message: Message) -> Result<(), TesterError> {
        let published = self.broker.memory.publish(message).await;
        published.map(drop).map_err(|error| TesterError::of(&error))
    }

    // ---- outcomes

    /// The events of type `P` as `deserializer` reads them. The other methods of the tester read JSON.
    ///
    /// Give it the deserializer of the [`Subscription`](cqrs_core::Subscription) that consumes them:
    /// `ProtobufDeserializer::new()`, `JsonPayloadDeserializer`, or `Framed::new(..)` behind a `FramedBroker`.
    ///
    /// ```
    /// # use cqrs_core::{Notification, codec::Deserializer};
    /// # use cqrs_testkit::{ServiceTester, TesterError};
    /// # async fn f<UserJoined: Notification + std::fmt::Debug + PartialEq>(
    /// #     ada: UserJoined, protobuf: impl Deserializer<UserJoined>,
    /// # ) -> Result<(), TesterError> {
    /// # let tester = ServiceTester::new();
    /// let joined = tester.decode::<UserJoined>(protobuf);
    /// assert_eq!(joined.handled(1).await?, [ada]);
    /// assert!(joined.published().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn decode<P: Notification>(
        &self,
        deserializer: impl Deserializer<P>,
    ) -> TesterEvents<'_, P> {
        TesterEvents::new(self, deserializer)
    }

    /// Waits until `n` events of type `P` were handled and acked; returns all that were, in that order.
    ///
    /// # Errors
    /// When there are fewer in time: all that did happen.
    ///
    /// # Cancel safety
    /// A dropped call changes nothing.
    pub async fn handled<P>(&self, n: usize) -> Result<Vec<P>, TesterError>
    where
        P: Notification + DeserializeOwned,
    {
        self.decode(JsonDeserializer).handled(n).await
    }

    /// Waits until `n` times an event of type `P` failed and was scheduled for a delayed retry; returns all
    /// that were.
    ///
    /// # Errors
    /// As [`handled`](Self::handled).
    ///
    /// # Cancel safety
    /// A dropped call changes nothing.
    pub async fn retried<P>(&self, n: usize) -> Result<Vec<Retried<P>>, TesterError>
    where
        P: Notification + DeserializeOwned,
    {
        self.decode(JsonDeserializer).retried(n).await
    }

    /// Waits until `n` messages of any type became dead letters; returns all that did, in that order.
    ///
    /// # Errors
    /// As [`handled`](Self::handled).
    ///
    /// # Cancel safety
    /// A dropped call changes nothing.
    pub async fn dead_letters(&self, n: usize) -> Result<Vec<DeadLettered>, TesterError> {
        let look = |state: &JournalState| {
            let dead = state.entries.iter().filter_map(|entry| match &entry.outcome {
                Outcome::DeadLettered(letter) => Some(DeadLettered::new(&entry.subject, letter)),
                _ => None,
            });
            dead.collect::<Vec<_>>()
        };
        self.at_least(n, look)
            .await
            .map_err(|found| self.missing(found, n, "message", "dead-lettered"))
    }

    /// Waits until the groups that were subscribed to have settled everything that is in their topics.
    ///
    /// # Errors
    /// When they have not in time: all that did happen.
    ///
    /// # Cancel safety
    /// A dropped call changes nothing.
    pub async fn all_settled(&self) -> Result<(), TesterError> {
        let memory = &self.broker.memory;
        let unsettled = |state: &JournalState| {
            let unsettled = |(topic, group): &(Arc<str>, Arc<str>)| memory.unsettled(topic, group);
            state.opened.iter().map(unsettled).sum::<usize>()
        };
        let settled =
            |state: &JournalState| (state.subscriptions > 0 && unsettled(state) == 0).then_some(());
        match self.broker.journal.wait(self.timeout, settled).await {
            Some(()) => Ok(()),
            None => {
                let left = unsettled(&self.broker.journal.lock());
                let (timeout, history) = (self.timeout, self.broker.journal.history());
                let text = format!(
                    "messages not settled within {timeout:?}: {left}; recorded so far:\n{history}"
                );
                Err(TesterError(text))
            }
        }
    }

    // ---- published messages

    /// The events of type `P` that the service published, in that order; dead letters are not among them.
    ///
    /// The events that a handler emits are published before its own event is acked: wait for
    /// [`handled`](Self::handled) first.
    ///
    /// # Panics
    /// When a message has the name of `P` and is no JSON of it.
    pub fn published<P: Notification + DeserializeOwned>(&self) -> Vec<P> {
        self.decode(JsonDeserializer).published()
    }

    /// All messages that the service published and the broker stored, in the order they were taken.
    pub fn published_messages(&self) -> Vec<Message> {
        let published = self.broker.journal.lock().published.clone();
        let mut messages = Vec::new();
        // A message that was published again until it was stored counts once.
        for (index, message) in published.iter().enumerate() {
            let stored = self.broker.memory.messages(&message.topic);
            let stored = stored.iter().filter(|stored| stored.id == message.id).count();
            let later = published[index + 1..].iter();
            let is_same =
                |later: &&Message| (later.id, &later.topic) == (message.id, &message.topic);
            if later.filter(is_same).count() < stored {
                messages.push(message.clone());
            }
        }
        messages
    }

    // ---- time

    /// Lets `by` pass on tokio's clock, with all that is due meanwhile in its order. Takes no time when
    /// that clock is paused.
    pub async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    // ----

    /// `Err`: the number found instead.
    async fn at_least<T>(
        &self,
        n: usize,
        look: impl Fn(&JournalState) -> Vec<T>,
    ) -> Result<Vec<T>, usize> {
        let journal = &self.broker.journal;
        let enough = |state: &JournalState| Some(look(state)).filter(|found| found.len() >= n);
        let found = journal.wait(self.timeout, enough).await;
        found.ok_or_else(|| look(&journal.lock()).len())
    }

    fn missing(&self, found: usize, n: usize, name: &str, verb: &str) -> TesterError {
        let (timeout, history) = (self.timeout, self.broker.journal.history());
        let what = match found {
            0 => format!("no {name} was {verb}"),
            _ => format!("{name} was {verb} {found} times instead of {n}"),
        };
        TesterError(format!("{what} within {timeout:?}; recorded so far:\n{history}"))
    }
}
