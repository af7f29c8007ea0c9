//! Tests of the handlers of a mediator, which a worker runs again and again in the same allocations.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs_core::EventMediator;
use cqrs_core::mediator::OnEventFailure;
use proptest::prelude::*;

use super::*;

/// What a handler does with an event, by its step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Succeed,
    SucceedLater,
    Fail,
    FailLater,
    Panic,
    PanicLater,
}

const ACTS: [Act; 6] =
    [Act::Succeed, Act::SucceedLater, Act::Fail, Act::FailLater, Act::Panic, Act::PanicLater];

impl Act {
    fn of(step: u32) -> Self {
        ACTS[step as usize % ACTS.len()]
    }

    fn succeeds(self) -> bool {
        matches!(self, Self::Succeed | Self::SucceedLater)
    }

    async fn act(self) -> Result<(), HandlerError> {
        if matches!(self, Self::SucceedLater | Self::FailLater | Self::PanicLater) {
            tokio::task::yield_now().await;
        }
        match self {
            Self::Succeed | Self::SucceedLater => Ok(()),
            Self::Fail | Self::FailLater => Err(HandlerError::retryable("it fails")),
            Self::Panic | Self::PanicLater => panic!("it panics"),
        }
    }
}

/// Marks its scope, and checks that it has no mark of another event and that the scope is that of the event.
struct Acts(Records);

struct Mark;

impl Acts {
    fn enter(&self, what: String, id: uuid::Uuid, scope: &mut Scope) {
        let received = scope.get::<Received>().unwrap();
        assert_eq!(received.id.as_deref(), Some(&*id.to_string()), "the scope of another message");
        let first = scope.get::<Mark>().is_none();
        record(&self.0, format!("{what}{}", if first { "" } else { " again" }));
        scope.insert(Mark);
    }
}

impl EventHandler<NotificationEvent<UserCreated>> for Acts {
    async fn handle(
        &self,
        event: &NotificationEvent<UserCreated>,
        scope: &mut Scope,
    ) -> Result<(), HandlerError> {
        self.enter(format!("whole {}", event.payload.step), event.event_id, scope);
        Act::of(event.payload.step).act().await
    }
}

impl EventHandler<UserCreated> for Acts {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        let id = scope.get::<Received>().unwrap().id.as_deref().unwrap().parse().unwrap();
        self.enter(format!("payload {}", event.step), id, scope);
        // The second handler runs if the first one waits, too.
        Act::of(event.step / 6).act().await
    }
}

impl EventHandler<NotificationEvent<UserDeleted>> for Acts {
    async fn handle(
        &self,
        event: &NotificationEvent<UserDeleted>,
        scope: &mut Scope,
    ) -> Result<(), HandlerError> {
        self.enter(format!("deleted {}", event.payload.user_id), event.event_id, scope);
        Ok(())
    }
}

async fn publish_event<P: cqrs_core::Notification + Serialize>(broker: &MemoryBroker, payload: P) {
    let event = NotificationEvent::new(payload);
    broker.publish(event.to_message().unwrap()).await.unwrap();
}

fn created(step: u32) -> UserCreated {
    UserCreated { user_id: "ada".into(), step }
}

/// Events of two types in one worker: each handler sees each event once, with a scope of its own, whatever happened to
/// the events before.
///
/// With a timeout the worker does not prepare the handlers: the same must hold.
async fn every_event_is_handled_alone(
    steps: Vec<u32>,
    subscription: Subscription,
    attempts: u32,
    policy: OnEventFailure,
) {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let mediator = EventMediator::builder()
        .event::<NotificationEvent<UserCreated>, _>(Acts(seen.clone()))
        .event::<UserCreated, _>(Acts(seen.clone()))
        .event::<NotificationEvent<UserDeleted>, _>(Acts(seen.clone()))
        .on_event_failure(policy)
        .build()
        .unwrap();
    let mut expected = BTreeMap::new();
    let mut expect = |what: String, times| *expected.entry(what).or_insert(0) += times;
    let mut handled = 0;
    for (index, &step) in steps.iter().enumerate() {
        if step % 5 == 0 {
            publish_event(&broker, UserDeleted { user_id: index.to_string() }).await;
            expect(format!("deleted {index}"), 1);
            handled += 1;
            continue;
        }
        publish_event(&broker, created(step)).await;
        let (first, second) = (Act::of(step / 6), Act::of(step));
        let succeeds = first.succeeds() && second.succeeds();
        let times = if succeeds { 1 } else { attempts };
        expect(format!("payload {step}"), times);
        if first.succeeds() || policy == OnEventFailure::FinishRound {
            expect(format!("whole {step} again"), times);
        }
        handled += u64::from(succeeds);
    }
    let running = run(&broker, subscription, mediator);
    let all = steps.len() as u64;
    until("all ended", || {
        let counts = running.health.subscriptions().remove(0).counts;
        running.task.is_finished() || counts.handled + counts.dead_lettered == all
    })
    .await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered), (handled, all - handled));
    let mut found = BTreeMap::new();
    records(&seen).into_iter().for_each(|what| *found.entry(what).or_insert(0) += 1);
    assert_eq!(found, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_event_meets_its_handlers_once(
        steps in proptest::collection::vec(0..36_u32, 1..60),
        concurrency in 1..4_usize,
        retries in 0..3_u32,
        finishes in any::<bool>(),
        prepares in any::<bool>(),
    ) {
        let policy = if finishes { OnEventFailure::FinishRound } else { OnEventFailure::Fail };
        let retry = Retry::none().immediate((0..retries).map(|_| Duration::from_millis(50)));
        let mut subscription =
            users().json::<UserDeleted>().retry(retry).concurrency(concurrency);
        if !prepares {
            subscription = subscription.timeout(Duration::from_secs(3_600));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(every_event_is_handled_alone(steps, subscription, retries + 1, policy));
    }
}

/// Counts its values that exist.
static ALIVE: AtomicUsize = AtomicUsize::new(0);
/// What was dropped, in order.
static DROPPED: Mutex<Vec<&str>> = Mutex::new(Vec::new());

#[derive(Debug, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "UserCreated", topic = "users", key = "user_id")]
struct Counted {
    user_id: String,
    step: u32,
    #[serde(skip, default = "of_event")]
    _alive: Alive,
}

#[derive(Debug)]
struct Alive(&'static str);

fn of_event() -> Alive {
    Alive::new("event")
}

impl Alive {
    fn new(of: &'static str) -> Self {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        Self(of)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::SeqCst);
        DROPPED.lock().unwrap().push(self.0);
    }
}

/// Waits at step 1; while it waits, its scope has a value that is counted.
struct Waits;

impl EventHandler<Counted> for Waits {
    async fn handle(&self, event: &Counted, scope: &mut Scope) -> Result<(), HandlerError> {
        scope.insert(Alive::new("scope"));
        let _alive = Alive::new("handler");
        match event.step {
            1 => std::future::pending().await,
            2 => Err(HandlerError::retryable("it fails")),
            3 => panic!("it panics"),
            _ => Ok(()),
        }
    }
}

/// One test, since the values are counted in the process.
#[tokio::test(start_paused = true)]
async fn event_and_scope_are_dropped_at_end_of_attempt() {
    let (broker, alive) = (MemoryBroker::new(), || ALIVE.load(Ordering::SeqCst));
    let events = EventMediator::builder().event::<Counted, _>(Waits).build().unwrap();
    let retry = Retry::none().immediate([Duration::from_secs(60)]);
    let subscription = Subscription::to("users").group("mailer").json::<Counted>().retry(retry);
    let running = run(&broker, subscription, events);
    for (step, failed, ended) in [(0, 0, (1, 0)), (2, 2, (1, 1)), (3, 4, (1, 2)), (0, 4, (2, 2))] {
        let counts = || running.health.subscriptions().remove(0).counts;
        let failed_before = counts().failed_attempts;
        publish(&broker, "ada", step).await;
        if failed > failed_before {
            until("failed", || counts().failed_attempts > failed_before).await;
            assert_eq!(alive(), 0, "while step {step} waits for its next attempt");
        }
        until("ended", || (counts().handled, counts().dead_lettered) == ended).await;
        assert_eq!((alive(), counts().failed_attempts), (0, failed), "after step {step}");
    }
    publish(&broker, "ada", 1).await;
    until("it waits", || alive() == 3).await;
    DROPPED.lock().unwrap().clear();
    running.stop.stop_now();
    let report = running.end().await;
    assert_eq!(
        (report.subscriptions[0].cancelled, report.subscriptions[0].counts.given_back),
        (1, 1)
    );
    assert_eq!(*DROPPED.lock().unwrap(), ["handler", "scope", "event"]);
}

/// Emits an event, and fails at step 1.
struct Emits;

impl EventHandler<UserCreated> for Emits {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        let user_id = event.step.to_string();
        scope.emit(NotificationEvent::new(UserDeleted { user_id }).with_topic("deleted"));
        tokio::task::yield_now().await;
        match event.step {
            1 => Err(HandlerError::permanent("it fails")),
            _ => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn events_of_a_handler_are_published_unless_it_fails() {
    let broker = MemoryBroker::new();
    let events = EventMediator::builder().event::<UserCreated, _>(Emits).broker(broker.clone());
    for step in 0..3 {
        publish(&broker, "ada", step).await;
    }
    let running = run(&broker, users().retry(Retry::none()), events.build().unwrap());
    until("all ended", || {
        let counts = running.health.subscriptions().remove(0).counts;
        counts.handled + counts.dead_lettered == 3
    })
    .await;
    running.end().await;
    let user_id = |message: Message| {
        let event: NotificationEvent<UserDeleted> = serde_json::from_slice(&message.body).unwrap();
        event.payload.user_id
    };
    let published: Vec<_> = broker.messages("deleted").into_iter().map(user_id).collect();
    assert_eq!(published, ["0", "2"]);
}

#[tokio::test(start_paused = true)]
async fn undecodable_message_is_a_dead_letter_and_the_next_is_handled() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let events = EventMediator::builder()
        .event::<NotificationEvent<UserCreated>, _>(Acts(seen.clone()))
        .build()
        .unwrap();
    publish_event(&broker, created(0)).await;
    publish_raw(&broker, "no event").await;
    publish_event(&broker, UserDeleted { user_id: "ada".into() }).await;
    publish_event(&broker, created(0)).await;
    let running = run(&broker, users(), events);
    until("the last", || records(&seen).len() == 2).await;
    running.end().await;
    let reasons: Vec<_> =
        dead_letters(&broker).into_iter().map(|(_, letter)| letter.reason).collect();
    assert_eq!(reasons, [DeadLetterReason::Decode, DeadLetterReason::UnknownType]);
}
