//! A scope's unit of work is committed or rolled back exactly once, whatever strikes.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::time::Duration;

use cqrs_core::{
    EventHandler, HandlerError, Invocation, Mediator, Middleware, Next, Outcome, RequestHandler,
    Scope, SendError, UnitOfWork, UnitOfWorkError,
};
use cqrs_macros::{Command, DomainEvent, Notification};
use serde::Serialize;
use support::{Fault, Log, RecordingBroker, Store, Transaction, poll_times, steps};

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = u32, error = String)]
struct Register {
    wish: Wish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Succeed,
    Fail,
    Panic,
}

#[derive(DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct Counted;

#[derive(Notification, Serialize)]
#[cqrs(crate = "cqrs_core", topic = "registrations")]
struct Registered;

struct Registrar;

impl RequestHandler<Register> for Registrar {
    async fn handle(&self, command: Register, scope: &mut Scope) -> Result<u32, String> {
        steps(1).await;
        let transaction =
            scope.unit_of_work::<Transaction>().await.map_err(|error| error.to_string())?;
        transaction.write("user");
        scope.emit(Counted);
        scope.emit(Registered);
        steps(2).await;
        match command.wish {
            Wish::Succeed => Ok(7),
            Wish::Fail => Err("name taken".to_owned()),
            Wish::Panic => panic!("handler blew up"),
        }
    }
}

struct CountInTransaction {
    fail: bool,
}

impl EventHandler<Counted> for CountInTransaction {
    async fn handle(&self, _event: &Counted, scope: &mut Scope) -> Result<(), HandlerError> {
        steps(1).await;
        scope.unit_of_work::<Transaction>().await?.write("count");
        steps(1).await;
        if self.fail { Err(HandlerError::permanent("no counter")) } else { Ok(()) }
    }
}

struct Setup {
    log: Log,
    store: Store,
    broker: RecordingBroker,
    mediator: Mediator,
}

fn setup(fault: Fault, event_fails: bool) -> Setup {
    let log = Log::default();
    let store = Store::new(&log, fault);
    let broker = RecordingBroker::with_log(&log);
    let mediator = Mediator::builder()
        .handle::<Register, _>(Registrar)
        .event::<Counted, _>(CountInTransaction { fail: event_fails })
        .unit_of_work(store.clone())
        .broker(broker.clone())
        .build()
        .unwrap();
    Setup { log, store, broker, mediator }
}

const DONE: [&str; 3] = ["begin", "commit", "publish Registered"];
const UNDONE: [&str; 2] = ["begin", "rollback"];

#[tokio::test]
async fn success_writes_all_commits_once_then_publishes() {
    let Setup { log, store, mediator, .. } = setup(Fault::None, false);
    assert_eq!(mediator.send(Register { wish: Wish::Succeed }).await.unwrap(), 7);
    assert_eq!(store.visible(), ["user", "count"], "the event's write is in the same transaction");
    assert_eq!(log.lines(), DONE);
}

#[tokio::test]
async fn an_error_rolls_back_and_emits_nothing() {
    let Setup { log, store, mediator, .. } = setup(Fault::None, false);
    let error = mediator.send(Register { wish: Wish::Fail }).await.unwrap_err();
    assert_eq!(error.into_handler().unwrap(), "name taken");
    assert!(store.visible().is_empty());
    assert_eq!(log.lines(), UNDONE);
}

#[tokio::test]
async fn a_panic_rolls_back_and_is_an_error_value() {
    let Setup { log, mediator, .. } = setup(Fault::None, false);
    let error = mediator.send(Register { wish: Wish::Panic }).await.unwrap_err();
    assert!(matches!(&error, SendError::Panicked(text) if text == "handler blew up"), "{error:?}");
    assert_eq!(log.lines(), UNDONE);
}

#[tokio::test]
async fn a_failing_event_handler_rolls_back_the_command() {
    let Setup { log, store, mediator, .. } = setup(Fault::None, true);
    let error = mediator.send(Register { wish: Wish::Succeed }).await.unwrap_err();
    assert!(matches!(error, SendError::Events(_)), "{error:?}");
    assert!(store.visible().is_empty());
    assert_eq!(log.lines(), UNDONE);
}

#[tokio::test]
async fn a_failing_commit_publishes_nothing() {
    for fault in [Fault::Commit, Fault::PanicInCommit] {
        let Setup { log, store, broker, mediator } = setup(fault, false);
        let error = mediator.send(Register { wish: Wish::Succeed }).await.unwrap_err();
        let SendError::UnitOfWork(UnitOfWorkError::Commit(cause)) = error else {
            panic!("{error:?}")
        };
        let text = cause.to_string();
        assert!(
            text.contains("serialization failure") || text.contains("commit blew up"),
            "{text}"
        );
        assert!(store.visible().is_empty() && broker.names().is_empty());
        assert_eq!(log.lines(), ["begin", "commit failed"]);
    }
}

#[tokio::test]
async fn a_failing_begin_reaches_the_handler() {
    let Setup { log, mediator, .. } = setup(Fault::Begin, false);
    let error = mediator.send(Register { wish: Wish::Succeed }).await.unwrap_err();
    assert!(error.to_string().contains("could not be begun"), "{error}");
    assert!(log.lines().is_empty());
}

#[tokio::test]
async fn a_failing_rollback_leaves_the_callers_error() {
    let Setup { log, mediator, .. } = setup(Fault::Rollback, false);
    let error = mediator.send(Register { wish: Wish::Fail }).await.unwrap_err();
    assert_eq!(error.into_handler().unwrap(), "name taken");
    assert_eq!(log.lines(), UNDONE);
}

#[tokio::test]
async fn a_middleware_that_recovers_does_not_commit_what_the_failed_handler_wrote() {
    struct Recover;
    impl Middleware for Recover {
        async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
            assert!(next.run(call).await.is_err() && call.respond(0_u32));
            Ok(())
        }
    }
    for wish in [Wish::Fail, Wish::Panic] {
        let log = Log::default();
        let store = Store::new(&log, Fault::None);
        let mediator = Mediator::builder()
            .handle::<Register, _>(Registrar)
            .middleware(Recover)
            .unit_of_work(store.clone())
            .broker(RecordingBroker::with_log(&log))
            .build()
            .unwrap();
        assert_eq!(mediator.send(Register { wish }).await.unwrap(), 0);
        assert!(store.visible().is_empty());
        assert_eq!(log.lines(), UNDONE);
    }
}

/// Drops `send` after each possible number of polls. Whatever was begun ends exactly once, nothing is
/// published without a commit, and a commit that began is followed by its publishing.
#[tokio::test]
async fn a_cancel_at_every_await_leaves_nothing_half_done() {
    let mut seen = std::collections::BTreeSet::new();
    for wish in [Wish::Succeed, Wish::Fail, Wish::Panic] {
        for polls in 0.. {
            let Setup { log, store, broker, mediator } = setup(Fault::None, false);
            let ended = poll_times(mediator.send(Register { wish }), polls).await;
            let left = mediator.shutdown(Duration::from_secs(5)).await;
            assert_eq!(left.unfinished, 0);
            let lines = log.lines();
            let committed = lines == DONE;
            assert!(lines.is_empty() || committed || lines == UNDONE, "after {polls}: {lines:?}");
            assert_eq!(store.visible().len(), if committed { 2 } else { 0 });
            assert_eq!(broker.names().len(), usize::from(committed));
            assert!(!committed || wish == Wish::Succeed);
            seen.insert((wish as u8, ended.is_some(), lines));
            if ended.is_some() {
                break;
            }
        }
    }
    let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
    let cancelled_after_begin = (0, false, lines(&UNDONE));
    let cancelled_in_commit = (0, false, lines(&DONE));
    assert!(seen.contains(&cancelled_after_begin), "{seen:?}");
    assert!(seen.contains(&cancelled_in_commit), "the cancel must strike in the commit too");
}

#[test]
fn dropped_outside_of_a_runtime_the_unit_is_dropped() {
    let Setup { log, mediator, .. } = setup(Fault::None, false);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut send = Box::pin(mediator.send(Register { wish: Wish::Succeed }));
    runtime.block_on(async {
        while log.lines().is_empty() {
            assert!(poll_times(&mut send, 1).await.is_none());
        }
    });
    drop(send);
    assert_eq!(log.lines(), ["begin", "dropped"]);
}

#[tokio::test]
async fn a_scope_without_a_unit_or_with_another_says_so() {
    struct Other;
    impl UnitOfWork for Other {
        async fn commit(self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            Ok(())
        }
        async fn rollback(self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            Ok(())
        }
    }
    let mut scope = Scope::new();
    let error = scope.unit_of_work::<Other>().await.err().unwrap();
    assert!(error.to_string().contains("unit_of_work(factory)"), "{error}");

    struct AsksForOther;
    impl RequestHandler<Register> for AsksForOther {
        async fn handle(&self, _command: Register, scope: &mut Scope) -> Result<u32, String> {
            let error = scope.unit_of_work::<Other>().await.err().unwrap();
            Err(error.to_string())
        }
    }
    let log = Log::default();
    let mediator = Mediator::builder()
        .handle::<Register, _>(AsksForOther)
        .unit_of_work(Store::new(&log, Fault::None))
        .build()
        .unwrap();
    let text = mediator.send(Register { wish: Wish::Succeed }).await.unwrap_err().to_string();
    assert!(text.contains("Transaction") && text.contains("Other"), "{text}");
    assert_eq!(log.lines(), UNDONE);
}
