//! Tests of a subscription with an inbox.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use cqrs_core::middleware::Failure;
use cqrs_core::scope::{CommitError, Inbox, UnitOfWorkFactory};
use cqrs_core::service::per_delivery;
use cqrs_core::{Event, Invocation, Middleware, Next, Outcome, UnitOfWork};
use uuid::Uuid;

use super::*;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Committed marks and effects. The first `outages` marks fail.
#[derive(Clone, Default)]
struct Database {
    marks: Arc<Mutex<BTreeSet<(String, Uuid)>>>,
    effects: Records,
    outages: Arc<AtomicU32>,
}

struct Transaction {
    database: Database,
    mark: Option<(String, Uuid)>,
    effects: Vec<String>,
}

impl UnitOfWorkFactory for Database {
    type Unit = Transaction;

    async fn begin(&self) -> Result<Transaction, BoxError> {
        Ok(Transaction { database: self.clone(), mark: None, effects: Vec::new() })
    }
}

impl UnitOfWork for Transaction {
    async fn commit(self) -> Result<(), CommitError> {
        self.database.marks.lock().unwrap().extend(self.mark);
        self.database.effects.lock().unwrap().extend(self.effects);
        Ok(())
    }

    async fn rollback(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl Inbox for Database {
    type Unit = Transaction;

    async fn mark(
        &self,
        unit: &mut Transaction,
        consumer: &str,
        message_id: Uuid,
    ) -> Result<bool, BoxError> {
        tokio::task::yield_now().await;
        let outage = |left: u32| left.checked_sub(1);
        if self.outages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, outage).is_ok() {
            return Err("the database is away".into());
        }
        let mark = (consumer.to_owned(), message_id);
        let is_new = !self.marks.lock().unwrap().contains(&mark);
        unit.mark = Some(mark);
        Ok(is_new)
    }
}

/// Writes the event; the first `failures` runs fail after that.
struct Write {
    failures: AtomicU32,
}

impl EventHandler<UserCreated> for Write {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        let unit = scope.unit_of_work::<Transaction>().await?;
        unit.effects.push(event.user_id.clone());
        let failure = |left: u32| left.checked_sub(1);
        match self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, failure) {
            Ok(_) => Err(HandlerError::retryable("not yet")),
            Err(_) => Ok(()),
        }
    }
}

fn mediator(database: &Database, failures: u32) -> EventMediator {
    EventMediator::builder()
        .event::<UserCreated, _>(Write { failures: failures.into() })
        .unit_of_work(database.clone())
        .build()
        .unwrap()
}

/// Publishes one event twice, and another one.
async fn publish_with_copy(broker: &MemoryBroker) {
    let event = |user_id: &str| {
        NotificationEvent::new(UserCreated { user_id: user_id.to_owned(), step: 1 })
    };
    let first = event("ada");
    for event in [first.clone(), first, event("bob")] {
        broker.publish_event(event).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn duplicate_of_a_handled_event_is_only_acked() {
    let (broker, database) = (MemoryBroker::new(), Database::default());
    publish_with_copy(&broker).await;
    let subscription = users().inbox(database.clone());
    let running = run(&broker, subscription, mediator(&database, 0));
    let health = running.health.clone();
    until("all are acked", || health.subscriptions()[0].counts.handled == 3).await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.duplicates), (3, 1));
    assert_eq!(records(&database.effects), ["ada", "bob"]);
    // Another group has its own marks.
    let other =
        run(&broker, users().group("other").inbox(database.clone()), mediator(&database, 0));
    until("the other group handled both", || records(&database.effects).len() == 4).await;
    other.end().await;
}

#[tokio::test(start_paused = true)]
async fn failed_handler_leaves_no_mark() {
    let (broker, database) = (MemoryBroker::new(), Database::default());
    publish_with_copy(&broker).await;
    let running = run(&broker, users().inbox(database.clone()), mediator(&database, 2));
    let health = running.health.clone();
    until("all are acked", || health.subscriptions()[0].counts.handled == 3).await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.failed_attempts, counts.duplicates, counts.dead_lettered), (2, 1, 0));
    assert_eq!(records(&database.effects), ["ada", "bob"]);
}

#[tokio::test(start_paused = true)]
async fn outage_of_the_inbox_counts_no_attempt() {
    let (broker, database) = (MemoryBroker::new(), Database::default());
    database.outages.store(20, Ordering::Relaxed);
    publish_with_copy(&broker).await;
    let running = run(&broker, users().inbox(database.clone()), mediator(&database, 0));
    let health = running.health.clone();
    until("the outage is over", || health.subscriptions()[0].counts.handled == 3).await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.failed_attempts, counts.dead_lettered), (0, 0));
    assert_eq!(records(&database.effects), ["ada", "bob"]);
}

#[tokio::test(start_paused = true)]
async fn middlewares_see_an_event_with_an_inbox() {
    struct Pass;
    impl Middleware for Pass {
        async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
            assert_eq!(call.name(), UserCreated::NAME);
            next.run(call).await
        }
    }
    let (broker, database) = (MemoryBroker::new(), Database::default());
    publish_with_copy(&broker).await;
    let subscription = users().middleware(Pass).inbox(database.clone());
    let running = run(&broker, subscription, mediator(&database, 0));
    let health = running.health.clone();
    until("all are acked", || health.subscriptions()[0].counts.handled == 3).await;
    assert_eq!(running.end().await.subscriptions[0].counts.duplicates, 1);
    assert_eq!(records(&database.effects), ["ada", "bob"]);
}

/// Answers instead of a failed handler, and writes that down in a new unit of work.
struct Recover;

impl Middleware for Recover {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        if next.run(call).await.is_err() {
            let unit = call.scope().unit_of_work::<Transaction>().await;
            unit.map_err(Failure::rejected)?.effects.push("recovered".to_owned());
            assert!(call.respond(()));
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn recovered_event_is_marked() {
    let (broker, database) = (MemoryBroker::new(), Database::default());
    publish_with_copy(&broker).await;
    let mediator = EventMediator::builder()
        .event::<UserCreated, _>(Write { failures: 2.into() })
        .unit_of_work(database.clone())
        .middleware(Recover)
        .build()
        .unwrap();
    let running = run(&broker, users().inbox(database.clone()), mediator);
    let health = running.health.clone();
    until("all are acked", || health.subscriptions()[0].counts.handled == 3).await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.duplicates), (3, 1));
    assert_eq!(records(&database.effects), ["recovered", "recovered"]);
}

/// The first mark is gone with the failed handler, so a copy may have been handled before the second one.
#[tokio::test(start_paused = true)]
async fn copy_handled_before_a_recovery_undoes_it() {
    struct HandleCopy(Database);
    impl Middleware for HandleCopy {
        async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
            let outcome = next.run(call).await;
            let id = call.input::<NotificationEvent<UserCreated>>().unwrap().event_id;
            self.0.marks.lock().unwrap().insert(("mailer".to_owned(), id));
            outcome
        }
    }
    let (broker, database) = (MemoryBroker::new(), Database::default());
    let event = UserCreated { user_id: "ada".to_owned(), step: 1 };
    broker.publish_event(NotificationEvent::new(event)).await.unwrap();
    let mediator = EventMediator::builder()
        .event::<UserCreated, _>(Write { failures: 1.into() })
        .unit_of_work(database.clone())
        .middleware(Recover)
        .middleware(HandleCopy(database.clone()))
        .build()
        .unwrap();
    let running = run(&broker, users().inbox(database.clone()), mediator);
    let health = running.health.clone();
    until("it is acked", || health.subscriptions()[0].counts.handled == 1).await;
    assert_eq!(running.end().await.subscriptions[0].counts.duplicates, 1);
    assert!(records(&database.effects).is_empty());
}

#[test]
fn inbox_without_its_unit_of_work_is_a_build_error() {
    fn problem(target: impl Target) -> String {
        let subscription = users().inbox(Database::default());
        let built = Service::builder(MemoryBroker::new()).subscribe(subscription, target).build();
        built.map(drop).unwrap_err().to_string()
    }
    let handler = || Write { failures: 0.into() };
    let without = EventMediator::builder().event::<UserCreated, _>(handler()).build().unwrap();
    let function = |_: NotificationEvent<UserCreated>, _: Received| async { Ok(()) };
    for problem in [problem(without), problem(each(function))] {
        assert!(problem.contains("the inbox marks in the unit of work"), "{problem}");
    }
}

/// A duplicate is acked, so an event that is not published yet would be lost with it.
#[tokio::test]
async fn inbox_with_direct_publishing_is_refused() {
    let direct = || {
        EventMediator::builder()
            .event::<UserCreated, _>(Write { failures: 0.into() })
            .unit_of_work(Database::default())
            .broker(MemoryBroker::new())
            .build()
            .unwrap()
    };
    let remedy = "use `outbox(..)`";
    let subscription = users().inbox(Database::default());
    let built = Service::builder(MemoryBroker::new()).subscribe(subscription, direct()).build();
    let problem = built.map(drop).unwrap_err().to_string();
    assert!(problem.contains(remedy), "{problem}");

    let (broker, database) = (MemoryBroker::new(), Database::default());
    publish(&broker, "ada", 1).await;
    let each_time = per_delivery(move |_: &Received| direct());
    let running = run(&broker, users().inbox(database.clone()), each_time);
    until("it is a dead letter", || dead_letters(&broker).len() == 1).await;
    assert!(dead_letters(&broker)[0].1.error.contains(remedy));
    assert!(records(&database.effects).is_empty());
    running.end().await;
}
