//! Tests that a scope's unit of work is committed or rolled back exactly once.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::time::Duration;

use cqrs_core::middleware::Failure;
use cqrs_core::scope::{CommitError, UnitOfWorkError};
use cqrs_core::{
    EventHandler, HandlerError, Invocation, Mediator, Middleware, Next, Outcome, RequestHandler,
    Scope, SendError, UnitOfWork,
};
use cqrs_macros::{Command, DomainEvent, Notification};
use serde::Serialize;
use support::{Fault, Lines, Log, RecordingBroker, Store, Transaction, poll_times, steps};

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
    for fault in [Fault::Commit, Fault::LostInCommit, Fault::PanicInCommit] {
        let Setup { log, store, broker, mediator } = setup(fault, false);
        let error = mediator.send(Register { wish: Wish::Succeed }).await.unwrap_err();
        assert_eq!(error.is_rolled_back(), fault == Fault::Commit, "only a clear no is certain");
        let text = match error {
            SendError::UnitOfWork(UnitOfWorkError::Commit(cause)) => format!("certain: {cause}"),
            SendError::UnitOfWork(UnitOfWorkError::CommitUnknown(cause)) => cause.to_string(),
            other => panic!("{other:?}"),
        };
        let expected = match fault {
            Fault::Commit => "certain: serialization failure",
            Fault::LostInCommit => "connection lost",
            _ => "commit panicked: commit blew up",
        };
        assert_eq!(text, expected);
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
async fn recovery_does_not_commit_failed_handlers_writes() {
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

#[tokio::test]
async fn cancelled_handler_is_rolled_back() {
    struct GiveUp;
    impl Middleware for GiveUp {
        async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
            // The handler is dropped after it wrote and emitted.
            assert!(poll_times(next.run(call), 5).await.is_none());
            assert!(call.respond(0_u32));
            Ok(())
        }
    }
    let log = Log::default();
    let store = Store::new(&log, Fault::None);
    let mediator = Mediator::builder()
        .handle::<Register, _>(Registrar)
        .middleware(GiveUp)
        .unit_of_work(store.clone())
        .broker(RecordingBroker::with_log(&log))
        .build()
        .unwrap();
    assert_eq!(mediator.send(Register { wish: Wish::Succeed }).await.unwrap(), 0);
    assert_eq!(mediator.shutdown(Duration::from_secs(5)).await.unfinished, 0);
    assert_eq!((store.visible().len(), log.lines()), (0, UNDONE.map(String::from).to_vec()));
}

#[tokio::test]
async fn rejection_rolls_back_even_if_outer_recovers() {
    struct RejectAfter;
    impl Middleware for RejectAfter {
        async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
            next.run(call).await?;
            Err(Failure::rejected("too late"))
        }
    }
    /// Recovers with its own response, or returns `Ok` without one.
    struct Outer(bool);
    impl Middleware for Outer {
        async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
            let failure = next.run(call).await.unwrap_err();
            assert_eq!(failure.reason().unwrap().to_string(), "too late");
            assert!(!self.0 || call.respond(0_u32));
            Ok(())
        }
    }
    for answers in [true, false] {
        let log = Log::default();
        let store = Store::new(&log, Fault::None);
        let mediator = Mediator::builder()
            .handle::<Register, _>(Registrar)
            .middleware(Outer(answers))
            .middleware(RejectAfter)
            .unit_of_work(store.clone())
            .broker(RecordingBroker::with_log(&log))
            .build()
            .unwrap();
        match mediator.send(Register { wish: Wish::Succeed }).await {
            Ok(answer) => assert_eq!((answer, answers), (0, true)),
            Err(error) => assert!(matches!(error, SendError::NoResponse) && !answers, "{error:?}"),
        }
        assert_eq!((store.visible().len(), log.lines()), (0, UNDONE.map(String::from).to_vec()));
    }
}

#[tokio::test]
async fn a_handlers_scope_cannot_be_given_to_another_send() {
    struct PassOn(Mediator);
    impl RequestHandler<Register> for PassOn {
        async fn handle(&self, command: Register, scope: &mut Scope) -> Result<u32, String> {
            scope.unit_of_work::<Transaction>().await.unwrap().write("half");
            let inner = self.0.send_in(std::mem::take(scope), command).await;
            assert!(matches!(inner, Err(SendError::ScopeInUse)), "{inner:?}");
            Err("the outer one fails".to_owned())
        }
    }
    let Setup { log, store, mediator, .. } = setup(Fault::None, false);
    let outer = Mediator::builder()
        .handle::<Register, _>(PassOn(mediator))
        .unit_of_work(store.clone())
        .build()
        .unwrap();
    assert!(outer.send(Register { wish: Wish::Succeed }).await.is_err());
    assert_eq!(outer.shutdown(Duration::from_secs(5)).await.unfinished, 0);
    assert_eq!((store.visible().len(), log.lines()), (0, UNDONE.map(String::from).to_vec()));
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_running_sends_until_deadline() {
    /// Writes, sleeps, and emits.
    struct Slow;
    impl RequestHandler<Register> for Slow {
        async fn handle(&self, _command: Register, scope: &mut Scope) -> Result<u32, String> {
            scope.unit_of_work::<Transaction>().await.unwrap().write("user");
            tokio::time::sleep(Duration::from_secs(10)).await;
            scope.emit(Registered);
            Ok(1)
        }
    }
    for (within, in_time) in [(60, true), (3, false)] {
        let Setup { log, store, broker, .. } = setup(Fault::None, false);
        let mediator = Mediator::builder()
            .handle::<Register, _>(Slow)
            .unit_of_work(store.clone())
            .broker(broker.clone())
            .build()
            .unwrap();
        let running = tokio::spawn({
            let mediator = mediator.clone();
            async move { mediator.send(Register { wish: Wish::Succeed }).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let start = tokio::time::Instant::now();
        let left = mediator.shutdown(Duration::from_secs(within)).await;
        assert_eq!(left.unfinished, usize::from(!in_time));
        assert_eq!(start.elapsed().as_secs(), if in_time { 9 } else { 3 });
        match running.await.unwrap() {
            Ok(answer) => assert_eq!((answer, in_time), (1, true)),
            Err(error) => assert!(matches!(error, SendError::ShutDown) && !in_time, "{error:?}"),
        }
        assert_eq!(log.lines(), if in_time { DONE.to_vec() } else { UNDONE.to_vec() });
    }
}

#[tokio::test]
async fn a_shutdown_without_end_is_no_overflow() {
    let Setup { mediator, .. } = setup(Fault::None, false);
    assert_eq!(mediator.shutdown(Duration::MAX).await.unfinished, 0);
    let refused = mediator.send(Register { wish: Wish::Succeed }).await;
    assert!(matches!(refused, Err(SendError::ShutDown)));
}

/// Drops `send` after each possible number of polls. Every unit of work ends exactly once, nothing is
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

#[tokio::test]
async fn failed_commit_of_dropped_send_is_one_line() {
    let lines = Lines::default();
    let _guard = lines.record();
    for polls in 1..20 {
        let Setup { mediator, .. } = setup(Fault::LostInCommit, false);
        drop(poll_times(mediator.send(Register { wish: Wish::Succeed }), polls).await);
        assert_eq!(mediator.shutdown(Duration::from_secs(5)).await.unfinished, 0);
    }
    let logged = lines.with("a send that was dropped could not be finished");
    assert!(!logged.is_empty(), "some are dropped in the commit");
    for line in logged {
        assert!(line.contains("connection lost") && !line.contains('\n'), "{line:?}");
    }
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
        async fn commit(self) -> Result<(), CommitError> {
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

/// A payload that panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a payload that panics when it is dropped")
    }
}

/// Panics with a payload that panics.
struct Exploding;

impl UnitOfWork for Exploding {
    async fn commit(self) -> Result<(), CommitError> {
        std::panic::panic_any(Bomb)
    }

    async fn rollback(self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        std::panic::panic_any(Bomb)
    }
}

impl cqrs_core::scope::UnitOfWorkFactory for Exploding {
    type Unit = Exploding;

    async fn begin(&self) -> Result<Exploding, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Exploding)
    }
}

#[tokio::test]
async fn panic_payload_that_panics_is_an_error_value() {
    struct Handler;
    impl RequestHandler<Register> for Handler {
        async fn handle(&self, command: Register, scope: &mut Scope) -> Result<u32, String> {
            scope.unit_of_work::<Exploding>().await.map_err(|error| error.to_string())?;
            match command.wish {
                Wish::Succeed => Ok(7),
                Wish::Fail => Err("name taken".to_owned()),
                Wish::Panic => std::panic::panic_any(Bomb),
            }
        }
    }
    let mediator =
        Mediator::builder().handle::<Register, _>(Handler).unit_of_work(Exploding).build().unwrap();
    let send = |wish| mediator.send(Register { wish });
    let commit = send(Wish::Succeed).await.unwrap_err();
    let is_unknown = matches!(&commit, SendError::UnitOfWork(UnitOfWorkError::CommitUnknown(_)));
    assert!(is_unknown, "{commit:?}");
    assert_eq!(send(Wish::Fail).await.unwrap_err().into_handler().unwrap(), "name taken");
    assert!(matches!(send(Wish::Panic).await.unwrap_err(), SendError::Panicked(_)));
    // A dropped send rolls back in a separate task.
    let dropped = poll_times(send(Wish::Succeed), 1).await;
    drop(dropped);
    let left = mediator.shutdown(Duration::from_secs(5)).await;
    assert_eq!(left.unfinished, 0);
}
