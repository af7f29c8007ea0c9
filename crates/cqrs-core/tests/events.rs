//! Tests of the rounds of domain events: order, bounds and failure policies.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs_core::mediator::EventsError;
use cqrs_core::middleware::InvocationKind;
use cqrs_core::{
    EventHandler, EventMap, EventMediator, HandlerError, HandlerResultExt, Invocation, Mediator,
    Middleware, Next, NotificationEvent, OnEventFailure, Outcome, RequestHandler, Scope, SendError,
};
use cqrs_macros::{Command, DomainEvent, Notification};
use serde::Serialize;
use support::{Fault, Log, RecordingBroker, Store, Transaction, steps};

/// Emits an `Opened` for each name.
#[derive(Command)]
#[cqrs(crate = "cqrs_core")]
struct Open(Vec<&'static str>);

struct Opener;

impl RequestHandler<Open> for Opener {
    async fn handle(
        &self,
        command: Open,
        scope: &mut Scope,
    ) -> Result<(), std::convert::Infallible> {
        command.0.into_iter().for_each(|name| scope.emit(Opened(name)));
        Ok(())
    }
}

#[derive(DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct Opened(&'static str);

#[derive(DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct FollowUp(String);

#[derive(Notification, Serialize)]
#[cqrs(crate = "cqrs_core", topic = "accounts")]
struct Announced {
    by: String,
}

/// Logs, emits a follow-up and a notification; fails on the event "bad".
struct Note(&'static str, Log);

impl EventHandler<Opened> for Note {
    async fn handle(&self, event: &Opened, scope: &mut Scope) -> Result<(), HandlerError> {
        // Later handlers take less time, so the order of completion is not that of the start.
        steps(usize::from(b'z' - self.0.as_bytes()[0])).await;
        let line = format!("{} {}", self.0, event.0);
        self.1.add(&line);
        scope.emit(FollowUp(line.clone()));
        scope.emit(Announced { by: line });
        match event.0 {
            "bad" => Err(HandlerError::permanent("will not")),
            "panic" => panic!("cannot"),
            _ => Ok(()),
        }
    }
}

struct NoteFollowUp(Log);

impl EventHandler<FollowUp> for NoteFollowUp {
    async fn handle(&self, event: &FollowUp, _scope: &mut Scope) -> Result<(), HandlerError> {
        self.0.add(format!("follow-up {}", event.0));
        Ok(())
    }
}

fn mediator(
    log: &Log,
    broker: &RecordingBroker,
    policy: OnEventFailure,
    parallel: usize,
) -> Mediator {
    Mediator::builder()
        .handle::<Open, _>(Opener)
        .events(
            EventMap::new()
                .bind::<Opened, _>(Note("a", log.clone()))
                .bind::<Opened, _>(Note("b", log.clone())),
        )
        .event::<FollowUp, _>(NoteFollowUp(log.clone()))
        .broker(broker.clone())
        .on_event_failure(policy)
        .concurrency(parallel)
        .build()
        .unwrap()
}

#[tokio::test]
async fn rounds_run_in_order_of_emission_and_binding() {
    let (log, broker) = (Log::default(), RecordingBroker::default());
    mediator(&log, &broker, OnEventFailure::Fail, 1).send(Open(vec!["x", "y"])).await.unwrap();
    let expected = [
        "a x",
        "b x",
        "a y",
        "b y",
        "follow-up a x",
        "follow-up b x",
        "follow-up a y",
        "follow-up b y",
    ];
    assert_eq!(log.lines(), expected);
    assert_eq!(announced(&broker), ["a x", "b x", "a y", "b y"]);
}

#[tokio::test]
async fn parallel_handlers_keep_emission_order() {
    let (log, broker) = (Log::default(), RecordingBroker::default());
    mediator(&log, &broker, OnEventFailure::Fail, 8).send(Open(vec!["x", "y"])).await.unwrap();
    assert_eq!(log.lines()[..2], ["b x", "b y"], "b is faster than a, so they overlapped");
    assert_eq!(announced(&broker), ["a x", "b x", "a y", "b y"]);
}

/// The announcing handlers, in order of publishing.
fn announced(broker: &RecordingBroker) -> Vec<String> {
    let messages = broker.messages.lock().unwrap();
    let by = |body: &[u8]| {
        let event: serde_json::Value = serde_json::from_slice(body).unwrap();
        event["payload"]["by"].as_str().unwrap().to_owned()
    };
    messages.iter().map(|message| by(&message.body)).collect()
}

#[tokio::test]
async fn default_policy_stops_at_first_failure() {
    let (log, broker) = (Log::default(), RecordingBroker::default());
    let mediator = mediator(&log, &broker, OnEventFailure::default(), 1);
    let error = mediator.send(Open(vec!["x", "bad", "y"])).await.unwrap_err();
    let SendError::Events(EventsError::Failed(failures)) = &error else { panic!("{error:?}") };
    assert_eq!(failures.len(), 1);
    assert!(failures[0].handler.ends_with("Note") && failures[0].event == "Opened");
    assert_eq!(log.lines(), ["a x", "b x", "a bad"]);
    assert!(broker.names().is_empty());
}

#[tokio::test]
async fn finish_round_reports_every_failure() {
    let (log, broker) = (Log::default(), RecordingBroker::default());
    let mediator = mediator(&log, &broker, OnEventFailure::FinishRound, 1);
    let error = mediator.send(Open(vec!["bad", "panic", "y"])).await.unwrap_err();
    let SendError::Events(EventsError::Failed(failures)) = &error else { panic!("{error:?}") };
    assert_eq!(failures.len(), 4, "{error}");
    assert!(failures[2].error.to_string().contains("panicked: cannot"));
    assert_eq!(log.lines(), ["a bad", "b bad", "a panic", "b panic", "a y", "b y"]);
    assert!(broker.names().is_empty());
}

#[tokio::test]
async fn log_policy_drops_events_of_failed_handler() {
    for parallel in [1, 4] {
        let (log, broker) = (Log::default(), RecordingBroker::default());
        let mediator = mediator(&log, &broker, OnEventFailure::Log, parallel);
        mediator.send(Open(vec!["bad", "panic", "y"])).await.unwrap();
        assert_eq!(announced(&broker), ["a y", "b y"]);
        assert_eq!(log.count("follow-up a bad") + log.count("follow-up a panic"), 0);
        assert_eq!(log.count("follow-up b y"), 1);
    }
}

#[tokio::test]
async fn parallel_failure_awaits_running_handlers() {
    let (log, broker) = (Log::default(), RecordingBroker::default());
    let mediator = mediator(&log, &broker, OnEventFailure::Fail, 2);
    let error = mediator.send(Open(vec!["bad", "y"])).await.unwrap_err();
    assert!(matches!(error, SendError::Events(_)));
    assert_eq!(log.lines(), ["b bad", "a bad"], "a was running, y was not started");
}

#[tokio::test]
async fn a_loop_of_events_ends_at_the_depth_limit() {
    struct Loop(Arc<AtomicUsize>);
    impl EventHandler<Opened> for Loop {
        async fn handle(&self, _event: &Opened, scope: &mut Scope) -> Result<(), HandlerError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            scope.emit(Opened("again"));
            Ok(())
        }
    }
    let runs = Arc::new(AtomicUsize::new(0));
    let mediator = Mediator::builder()
        .handle::<Open, _>(Opener)
        .event::<Opened, _>(Loop(Arc::clone(&runs)))
        .max_event_depth(5)
        .build()
        .unwrap();
    let error = mediator.send(Open(vec!["x"])).await.unwrap_err();
    assert!(error.to_string().contains("loop?"), "{error}");
    assert_eq!(runs.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn parallel_handlers_are_bounded_without_unit_of_work() {
    #[derive(Default)]
    struct Busy {
        now: AtomicUsize,
        most: AtomicUsize,
    }
    struct Work(Arc<Busy>);
    impl EventHandler<Opened> for Work {
        async fn handle(&self, _event: &Opened, scope: &mut Scope) -> Result<(), HandlerError> {
            let now = self.0.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.most.fetch_max(now, Ordering::SeqCst);
            steps(3).await;
            self.0.now.fetch_sub(1, Ordering::SeqCst);
            assert_eq!(scope.get::<u8>(), Some(&7), "values are shared with child scopes");
            let error = scope.unit_of_work::<Transaction>().await.err().unwrap();
            assert!(error.to_string().contains("concurrency to 1"), "{error}");
            Ok(())
        }
    }
    let busy = Arc::new(Busy::default());
    let log = Log::default();
    let mediator = Mediator::builder()
        .handle::<Open, _>(Opener)
        .event::<Opened, _>(Work(Arc::clone(&busy)))
        .unit_of_work(Store::new(&log, Fault::None))
        .concurrency(3)
        .build()
        .unwrap();
    mediator.send_in(Scope::new().with(7_u8), Open(vec!["x"; 20])).await.unwrap();
    assert_eq!(busy.most.load(Ordering::SeqCst), 3);
    assert!(log.lines().is_empty(), "no transaction was begun");
}

#[tokio::test]
async fn emitter_handles_and_publishes_without_request() {
    let (log, broker) = (Log::default(), RecordingBroker::default());
    let emitter = mediator(&log, &broker, OnEventFailure::Fail, 1).emitter();
    emitter.emit(Opened("x")).await.unwrap();
    assert_eq!(log.lines(), ["a x", "b x", "follow-up a x", "follow-up b x"]);
    emitter.emit(Announced { by: "the emitter".into() }).await.unwrap();
    assert_eq!(announced(&broker), ["a x", "b x", "the emitter"]);
    assert!(matches!(emitter.emit(Opened("bad")).await, Err(SendError::Events(_))));
    let lost = NotificationEvent::new(Announced { by: "nobody".into() }).with_topic("refused");
    let error = emitter.emit(lost).await.unwrap_err();
    assert!(matches!(error, SendError::Undelivered(_)), "{error:?}");
    assert_eq!(broker.names().len(), 3, "nothing of the failed ones");
}

#[tokio::test]
async fn a_domain_event_without_handlers_is_fine() {
    let mediator = Mediator::builder().handle::<Open, _>(Opener).build().unwrap();
    mediator.send(Open(vec!["x"])).await.unwrap();
}

struct SeePayload(Log);

impl EventHandler<Announced> for SeePayload {
    async fn handle(&self, event: &Announced, scope: &mut Scope) -> Result<(), HandlerError> {
        self.0.add(format!("payload by {}", event.by));
        scope.emit(FollowUp(event.by.clone()));
        scope.emit(Announced { by: format!("echo of {}", event.by) });
        "seven".parse::<u8>().map(drop).or_else(|error| match &*event.by {
            "retryable" => Err(HandlerError::from(error)),
            "permanent" => Err(error).permanent(),
            _ => Ok(()),
        })
    }
}

struct SeeEvent(Log);

impl EventHandler<NotificationEvent<Announced>> for SeeEvent {
    async fn handle(
        &self,
        event: &NotificationEvent<Announced>,
        _scope: &mut Scope,
    ) -> Result<(), HandlerError> {
        self.0.add(format!("event on {} by {}", event.topic, event.payload.by));
        Ok(())
    }
}

struct Around(Log);

impl Middleware for Around {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        assert_eq!(call.kind(), InvocationKind::Event);
        let by = call.input::<Announced>().map(|event| event.by.clone());
        let whole = call.input::<NotificationEvent<Announced>>().is_some();
        self.0.add(format!("before {} by {} ({whole})", call.name(), by.unwrap()));
        let outcome = next.run(call).await;
        self.0.add(if outcome.is_ok() { "after" } else { "after failure" });
        outcome
    }
}

fn consumer(log: &Log, broker: &RecordingBroker) -> EventMediator {
    EventMediator::builder()
        .event::<Announced, _>(SeePayload(log.clone()))
        .event::<NotificationEvent<Announced>, _>(SeeEvent(log.clone()))
        .event::<FollowUp, _>(NoteFollowUp(log.clone()))
        .middleware(Around(log.clone()))
        .broker(broker.clone())
        .requires::<Announced>()
        .build()
        .unwrap()
}

#[tokio::test]
async fn consumed_event_runs_middlewares_and_follow_ups() {
    let (log, broker) = (Log::default(), RecordingBroker::default());
    let event = NotificationEvent::new(Announced { by: "me".into() }).with_topic("elsewhere");
    consumer(&log, &broker).send(event).await.unwrap();
    let expected = [
        "before Announced by me (true)",
        "payload by me",
        "event on elsewhere by me",
        "after",
        "follow-up me",
    ];
    assert_eq!(log.lines(), expected);
    assert_eq!(broker.names(), ["Announced"], "the echo was published");
}

#[tokio::test]
async fn consumed_event_error_is_retryable_or_not() {
    for (by, retryable) in [("retryable", true), ("permanent", false)] {
        let (log, broker) = (Log::default(), RecordingBroker::default());
        let error = consumer(&log, &broker).send(Announced { by: by.into() }).await.unwrap_err();
        let SendError::Handler(failed) = &error else { panic!("{error:?}") };
        assert_eq!(failed.is_retryable(), retryable);
        assert!(log.lines().contains(&"after failure".to_owned()));
        assert!(broker.names().is_empty(), "nothing is emitted when a handler failed");
    }
}

#[tokio::test]
async fn a_consumed_events_failure_is_never_only_logged() {
    let log = Log::default();
    let mediator = EventMediator::builder()
        .event::<Announced, _>(SeePayload(log.clone()))
        .event::<NotificationEvent<Announced>, _>(SeeEvent(log.clone()))
        .on_event_failure(OnEventFailure::Log)
        .build()
        .unwrap();
    let failed = mediator.send(Announced { by: "retryable".into() }).await;
    assert!(matches!(&failed, Err(SendError::Handler(error)) if error.is_retryable()));
    assert_eq!(log.lines().len(), 2, "the other handler ran: {:?}", log.lines());
}

#[tokio::test]
async fn consumed_event_without_handler_is_an_error() {
    let mediator = EventMediator::builder().build().unwrap();
    let error = mediator.send(Announced { by: "me".into() }).await.unwrap_err();
    assert!(matches!(&error, SendError::NoHandler { request } if request.ends_with("Announced")));
    let error = EventMediator::builder().requires::<FollowUp>().build().unwrap_err();
    assert!(error.to_string().contains("FollowUp is required"), "{error}");
}
