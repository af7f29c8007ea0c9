//! Tests that notifications of a mediator with an outbox are stored in its unit of work.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;

use cqrs_core::codec::{Encoded, SerializeError};
use cqrs_core::event::Serializer;
use cqrs_core::mediator::BuildProblem;
use cqrs_core::message::CorrelationId;
use cqrs_core::scope::UnitOfWorkError;
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, Mediator, NotificationEvent, RequestHandler, Scope,
    SendError,
};
use cqrs_macros::{Command, DomainEvent, Notification};
use serde::Serialize;
use support::{Fault, Log, RecordingBroker, Store, Transaction, poll_times, steps};

#[derive(Command, Clone, Copy)]
#[cqrs(crate = "cqrs_core", error = String)]
enum Register {
    Write,
    /// Emits, and begins no unit of work.
    EmitOnly,
    EmitBroken,
    Fail,
    Panic,
}

#[derive(DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct Counted;

#[derive(Notification, Serialize)]
#[cqrs(crate = "cqrs_core", topic = "registrations")]
struct Registered;

#[derive(Notification, Serialize)]
#[cqrs(crate = "cqrs_core", topic = "counts")]
struct CountChanged;

#[derive(Notification, Serialize)]
#[cqrs(crate = "cqrs_core", topic = "broken", serializer = Refuse)]
struct Broken;

#[derive(Default)]
struct Refuse;

impl Serializer<Broken> for Refuse {
    fn serialize(&self, _event: &NotificationEvent<Broken>) -> Result<Encoded, SerializeError> {
        Err(SerializeError::new("Broken", "no wire form"))
    }
}

struct Registrar;

impl RequestHandler<Register> for Registrar {
    async fn handle(&self, command: Register, scope: &mut Scope) -> Result<(), String> {
        scope.emit(Registered);
        match command {
            Register::EmitOnly => return Ok(()),
            Register::EmitBroken => scope.emit(Broken),
            _ => scope.emit(Counted),
        }
        steps(1).await;
        scope.unit_of_work::<Transaction>().await.unwrap().write("user");
        steps(1).await;
        match command {
            Register::Fail => Err("name taken".to_owned()),
            Register::Panic => panic!("handler blew up"),
            _ => Ok(()),
        }
    }
}

/// Writes, and emits a notification of its own.
struct Count;

impl EventHandler<Counted> for Count {
    async fn handle(&self, _event: &Counted, scope: &mut Scope) -> Result<(), HandlerError> {
        scope.unit_of_work::<Transaction>().await?.write("count");
        scope.emit(CountChanged);
        Ok(())
    }
}

impl EventHandler<Registered> for Count {
    async fn handle(&self, _event: &Registered, scope: &mut Scope) -> Result<(), HandlerError> {
        scope.emit(CountChanged);
        Ok(())
    }
}

fn setup(fault: Fault) -> (Log, Store, Mediator) {
    let log = Log::default();
    let store = Store::new(&log, fault);
    let mediator = Mediator::builder()
        .handle::<Register, _>(Registrar)
        .event::<Counted, _>(Count)
        .outbox(store.clone())
        .build()
        .unwrap();
    (log, store, mediator)
}

const DONE: [&str; 4] = ["begin", "put Registered", "put CountChanged", "commit"];

#[tokio::test]
async fn events_are_stored_after_all_writes() {
    let (log, store, mediator) = setup(Fault::None);
    mediator.send(Register::Write).await.unwrap();
    assert_eq!(log.lines(), DONE);
    let rows = ["Registered to registrations", "CountChanged to counts"];
    assert_eq!(store.visible(), ["user", "count", rows[0], rows[1]]);
}

#[tokio::test]
async fn emission_without_a_unit_of_work_begins_one() {
    let (log, store, mediator) = setup(Fault::None);
    mediator.send(Register::EmitOnly).await.unwrap();
    assert_eq!(log.lines(), ["begin", "put Registered", "commit"]);
    mediator.emitter().emit(CountChanged).await.unwrap();
    assert_eq!(store.visible(), ["Registered to registrations", "CountChanged to counts"]);
}

#[tokio::test]
async fn begin_that_fails_at_the_end_fails_the_send() {
    let (log, _, mediator) = setup(Fault::Begin);
    let error = mediator.send(Register::EmitOnly).await.unwrap_err();
    assert!(matches!(error, SendError::UnitOfWork(UnitOfWorkError::Begin(_))), "{error:?}");
    assert!(error.is_rolled_back() && log.lines().is_empty());
}

#[tokio::test]
async fn event_without_wire_form_rolls_back() {
    let (log, store, mediator) = setup(Fault::None);
    let error = mediator.send(Register::EmitBroken).await.unwrap_err();
    assert!(matches!(error, SendError::Serialize(_)), "{error:?}");
    assert_eq!(
        (log.lines(), store.visible().len()),
        (["begin", "rollback"].map(String::from).to_vec(), 0)
    );
}

#[tokio::test]
async fn failed_or_panicked_put_rolls_back() {
    for fault in [Fault::Put, Fault::PanicInPut] {
        let (log, store, mediator) = setup(fault);
        let error = mediator.send(Register::Write).await.unwrap_err();
        assert!(error.is_rolled_back());
        let text = match error {
            SendError::UnitOfWork(UnitOfWorkError::Outbox(cause)) => cause.to_string(),
            other => panic!("{other:?}"),
        };
        let expected = match fault {
            Fault::Put => "no such table: outbox",
            _ => "panicked: put blew up",
        };
        assert_eq!(text, expected);
        assert_eq!(log.lines(), ["begin", "rollback"]);
        assert!(store.visible().is_empty());
    }
}

#[tokio::test]
async fn transaction_that_ended_is_not_taken_for_rolled_back() {
    let (_, store, mediator) = setup(Fault::Ended);
    let error = mediator.send(Register::Write).await.unwrap_err();
    assert!(!error.is_rolled_back());
    let SendError::UnitOfWork(UnitOfWorkError::Ended(ended)) = error else { panic!("{error:?}") };
    assert_eq!(ended.source().unwrap().to_string(), "DDL");
    assert!(store.visible().is_empty());
}

#[tokio::test]
async fn failed_commit_leaves_no_event() {
    for fault in [Fault::Commit, Fault::LostInCommit, Fault::PanicInCommit] {
        let (_, store, mediator) = setup(fault);
        let error = mediator.send(Register::Write).await.unwrap_err();
        assert_eq!(error.is_rolled_back(), fault == Fault::Commit);
        assert!(store.visible().is_empty());
    }
}

/// Drops `send` after each possible number of polls: its writes and events are visible together or not at
/// all, each event once.
#[tokio::test]
async fn cancel_at_every_await_stores_all_or_nothing() {
    let mut seen = BTreeSet::new();
    for command in [Register::Write, Register::EmitOnly, Register::Fail, Register::Panic] {
        for polls in 0.. {
            let (log, store, mediator) = setup(Fault::None);
            let ended = poll_times(mediator.send(command), polls).await;
            assert_eq!(mediator.shutdown(Duration::from_secs(5)).await.unfinished, 0);
            let lines = log.lines();
            let committed = lines.last().is_some_and(|line| line == "commit");
            match command {
                Register::Write if committed => assert_eq!(lines, DONE),
                Register::EmitOnly if committed => assert_eq!(store.visible().len(), 1),
                _ => {
                    assert!(
                        lines.is_empty() || lines == ["begin", "rollback"],
                        "{polls}: {lines:?}"
                    );
                    assert!(store.visible().is_empty());
                }
            }
            seen.insert((ended.is_some(), committed));
            if ended.is_some() {
                break;
            }
        }
    }
    assert!(
        seen.contains(&(false, true)),
        "the cancel must strike after the events are stored, too"
    );
}

#[tokio::test]
async fn consumed_event_stores_its_follow_ups() {
    let log = Log::default();
    let store = Store::new(&log, Fault::None);
    let mediator = EventMediator::builder()
        .event::<Registered, _>(Count)
        .outbox(store.clone())
        .build()
        .unwrap();
    mediator.send(Registered).await.unwrap();
    assert_eq!(log.lines(), ["begin", "put CountChanged", "commit"]);
}

#[tokio::test]
async fn stored_message_is_that_of_a_direct_publish() {
    use cqrs_core::scope::{CommitError, OutboxUnit, UnitOfWorkFactory};
    use cqrs_core::{Message, UnitOfWork};
    use std::sync::{Arc, Mutex};
    type BoxError = Box<dyn std::error::Error + Send + Sync>;

    #[derive(Clone, Default)]
    struct Rows(Arc<Mutex<Vec<Message>>>);
    impl UnitOfWorkFactory for Rows {
        type Unit = Self;
        async fn begin(&self) -> Result<Self, BoxError> {
            Ok(self.clone())
        }
    }
    impl UnitOfWork for Rows {
        async fn commit(self) -> Result<(), CommitError> {
            Ok(())
        }
        async fn rollback(self) -> Result<(), BoxError> {
            Ok(())
        }
    }
    impl OutboxUnit for Rows {
        async fn put(&mut self, messages: &[Message]) -> Result<(), BoxError> {
            self.0.lock().unwrap().extend_from_slice(messages);
            Ok(())
        }
    }
    let (rows, broker) = (Rows::default(), RecordingBroker::default());
    let stores = Mediator::builder().outbox(rows.clone()).topic::<CountChanged>("renamed");
    let publishes = Mediator::builder().broker(broker.clone()).topic::<CountChanged>("renamed");
    let event = || NotificationEvent::new(CountChanged).with_id(uuid::Uuid::from_u128(7));
    let at = event().event_timestamp;
    for mediator in [stores.build().unwrap(), publishes.build().unwrap()] {
        let scope = Scope::new().with(CorrelationId::new("request-1"));
        mediator.emitter().emit_in(scope, event().with_timestamp(at)).await.unwrap();
    }
    let rows = rows.0.lock().unwrap();
    assert_eq!(*rows, *broker.messages.lock().unwrap());
    assert_eq!(&*rows[0].topic, "renamed");
    assert_eq!(rows[0].headers.correlation_id(), Some("request-1"));
}

#[test]
fn broker_beside_an_outbox_is_a_build_error() {
    let store = Store::new(&Log::default(), Fault::None);
    let wired = Mediator::builder().outbox(store).broker(RecordingBroker::default()).build();
    assert_eq!(wired.unwrap_err().problems(), [BuildProblem::BrokerBesideOutbox]);
}
