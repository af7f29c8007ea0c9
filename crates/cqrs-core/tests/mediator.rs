//! Tests of requests: handlers, typed responses, middlewares and wiring.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cqrs_core::mediator::BuildProblem;
use cqrs_core::message::{CorrelationId, TraceContext};
use cqrs_core::middleware::{Failure, InvocationKind};
use cqrs_core::request::RequestKind;
use cqrs_core::{
    DevnullMessageBroker, EventHandler, EventMediator, HandlerError, Invocation, Mediator,
    MemoryBroker, MessageBroker, Middleware, Next, Outcome, RequestHandler, RequestMap, Scope,
    SendError,
};
use cqrs_macros::{Command, Notification, Query};
use serde::Serialize;
use support::{Log, RecordingBroker};

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = String, error = String)]
struct Greet {
    name: String,
}

#[derive(Query)]
#[cqrs(crate = "cqrs_core", response = usize)]
struct Count;

#[derive(Debug, PartialEq, Notification, Serialize)]
#[cqrs(crate = "cqrs_core", topic = "greetings", key = "name")]
struct Greeted {
    name: String,
}

struct Greeter;

impl RequestHandler<Greet> for Greeter {
    async fn handle(&self, Greet { name }: Greet, scope: &mut Scope) -> Result<String, String> {
        scope.emit(Greeted { name: name.clone() });
        match name.as_str() {
            "" => Err("nobody to greet".to_owned()),
            "panic" => panic!("no such name"),
            _ => Ok(format!("hello {name}")),
        }
    }
}

fn greet(name: &str) -> Greet {
    Greet { name: name.to_owned() }
}

#[tokio::test]
async fn send_returns_the_typed_response_or_error() {
    let broker = RecordingBroker::default();
    let mediator =
        Mediator::builder().handle::<Greet, _>(Greeter).broker(broker.clone()).build().unwrap();
    assert_eq!(mediator.send(greet("Ada")).await.unwrap(), "hello Ada");
    let error = mediator.send(greet("")).await.unwrap_err();
    assert_eq!(error.into_handler().unwrap(), "nobody to greet");
    assert_eq!(broker.names(), ["Greeted"], "nothing is emitted when the handler failed");
}

#[tokio::test]
async fn missing_handler_error_names_the_type() {
    let mediator = Mediator::builder().build().unwrap();
    let error = mediator.send(Count).await.unwrap_err();
    assert!(matches!(error, SendError::NoHandler { .. }));
    assert!(error.to_string().contains("mediator::Count"), "{error}");
}

#[tokio::test]
async fn a_panic_is_an_error_value_and_the_next_send_works() {
    let mediator = Mediator::builder()
        .handle::<Greet, _>(Greeter)
        .broker(DevnullMessageBroker::new())
        .build()
        .unwrap();
    let error = mediator.send(greet("panic")).await.unwrap_err();
    assert!(matches!(&error, SendError::Panicked(text) if text == "no such name"));
    assert!(mediator.send(greet("Ada")).await.is_ok());
}

#[tokio::test]
async fn panic_before_first_await_is_caught() {
    struct Eager;
    impl RequestHandler<Count> for Eager {
        #[allow(clippy::manual_async_fn)]
        fn handle(
            &self,
            _query: Count,
            _scope: &mut Scope,
        ) -> impl Future<Output = Result<usize, Infallible>> + Send {
            let limit: usize = "no number".parse().expect("no limit");
            async move { Ok(limit) }
        }
    }
    let mediator = Mediator::builder().handle::<Count, _>(Eager).build().unwrap();
    assert!(matches!(mediator.send(Count).await, Err(SendError::Panicked(_))));
}

struct Counter(usize);

impl RequestHandler<Count> for Counter {
    async fn handle(&self, _query: Count, _scope: &mut Scope) -> Result<usize, Infallible> {
        Ok(self.0)
    }
}

#[test]
fn build_names_every_double_and_every_missing_type() {
    let error = Mediator::builder()
        .handle::<Count, _>(Counter(1))
        .requests(RequestMap::new().bind::<Count, _>(Counter(2)))
        .requires::<Greet>()
        .requires::<Count>()
        .build()
        .unwrap_err();
    assert_eq!(error.problems().len(), 2);
    assert!(matches!(error.problems()[0], BuildProblem::TwoHandlers { .. }));
    let text = error.to_string();
    assert!(text.contains("mediator::Count has two handlers"), "{text}");
    assert!(text.contains("mediator::Greet is required"), "{text}");
}

#[test]
fn handler_of_notification_in_mediator_is_refused() {
    struct Never;
    impl EventHandler<Greeted> for Never {
        async fn handle(&self, _event: &Greeted, _scope: &mut Scope) -> Result<(), HandlerError> {
            Ok(())
        }
    }
    let error = Mediator::builder().event::<Greeted, _>(Never).build().unwrap_err();
    assert!(matches!(error.problems(), [BuildProblem::NeverRuns { .. }]));
    assert!(error.to_string().contains("bind it in the EventMediator"), "{error}");
}

#[tokio::test]
async fn factory_builds_handler_for_each_send() {
    static BUILT: AtomicUsize = AtomicUsize::new(0);
    struct Tenant(usize);
    let mediator = Mediator::builder()
        .handle_with::<Count, _>(|scope| {
            BUILT.fetch_add(1, Ordering::Relaxed);
            Counter(scope.get::<Tenant>().map_or(0, |tenant| tenant.0))
        })
        .build()
        .unwrap();
    assert_eq!(mediator.send_in(Scope::new().with(Tenant(9)), Count).await.unwrap(), 9);
    assert_eq!(mediator.send(Count).await.unwrap(), 0);
    assert_eq!(BUILT.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn notification_without_broker_names_the_remedy() {
    let mediator = Mediator::builder().handle::<Greet, _>(Greeter).build().unwrap();
    let error = mediator.send(greet("Ada")).await.unwrap_err();
    assert!(matches!(&error, SendError::NoBroker { event } if event == "Greeted"));
    assert!(error.to_string().contains("broker(..)"), "{error}");
}

#[tokio::test]
async fn an_unconfirmed_event_comes_back_with_the_response() {
    let broker = RecordingBroker::default();
    let mediator = Mediator::builder()
        .handle::<Greet, _>(Greeter)
        .broker(broker.clone())
        .topic::<Greeted>("refused")
        .build()
        .unwrap();
    let error = mediator.send(greet("Ada")).await.unwrap_err();
    let SendError::Undelivered(undelivered) = error else { panic!("{error:?}") };
    assert_eq!(undelivered.response, "hello Ada");
    assert_eq!(undelivered.events.len(), 1);
    let message = undelivered.events[0].message();
    assert_eq!((&*message.name, &*message.topic), ("Greeted", "refused"));
    assert!(undelivered.events[0].to_string().contains("refused by the broker"));
    assert!(undelivered.to_string().contains("do not send the request again"), "{undelivered}");
    assert!(!format!("{undelivered:?}").contains("hello Ada"), "a response may be a secret");
}

#[tokio::test]
async fn a_message_carries_key_correlation_and_trace() {
    let broker = RecordingBroker::default();
    let mediator =
        Mediator::builder().handle::<Greet, _>(Greeter).broker(broker.clone()).build().unwrap();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let scope = Scope::new()
        .with(CorrelationId::new("request-1"))
        .with(TraceContext::parse(parent, Some("a=1")).unwrap());
    mediator.send_in(scope, greet("Ada")).await.unwrap();
    mediator.send(greet("Bob")).await.unwrap();
    let messages = broker.messages.lock().unwrap();
    assert_eq!(messages[0].key.as_deref(), Some(b"Ada".as_slice()));
    assert_eq!(&*messages[0].topic, "greetings");
    assert_eq!(messages[0].headers.correlation_id(), Some("request-1"));
    assert_eq!(messages[0].headers.trace_context().unwrap().unwrap().traceparent(), parent);
    assert!(messages[1].headers.correlation_id().is_some(), "each send gets one");
    assert!(messages[1].headers.trace_context().is_none());
}

#[tokio::test]
async fn shutdown_refuses_new_requests() {
    let mediator = Mediator::builder()
        .handle::<Count, _>(Counter(1))
        .broker(RecordingBroker::default())
        .build()
        .unwrap();
    let left = mediator.shutdown(Duration::from_secs(1)).await;
    assert_eq!((left.unfinished, left.undelivered), (0, 0));
    assert!(matches!(mediator.send(Count).await, Err(SendError::ShutDown)));
}

#[tokio::test]
async fn shutdown_leaves_the_broker_to_its_other_users() {
    let broker = MemoryBroker::new();
    let events = EventMediator::builder().broker(broker.clone()).build().unwrap();
    let mediator = Mediator::builder().broker(broker.clone()).build().unwrap();
    let _ = mediator.shutdown(Duration::from_secs(1)).await;
    let _ = events.shutdown(Duration::from_secs(1)).await;
    assert!(broker.state().is_ready());
}

struct Tag(&'static str, Log);

impl Middleware for Tag {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        self.1.add(format!("{} before {}", self.0, call.name()));
        let outcome = next.run(call).await;
        let how = match (call.response::<String>(), call.error()) {
            (Some(text), _) => format!("said {text}"),
            (None, Some(error)) => format!("failed: {error}"),
            (None, None) => "no answer".to_owned(),
        };
        self.1.add(format!("{} after: {how}", self.0));
        outcome
    }
}

#[tokio::test]
async fn first_middleware_is_outermost_and_sees_outcomes() {
    let log = Log::default();
    let mediator = Mediator::builder()
        .handle::<Greet, _>(Greeter)
        .broker(DevnullMessageBroker::new())
        .middleware(Tag("outer", log.clone()))
        .middleware(Tag("inner", log.clone()))
        .build()
        .unwrap();
    mediator.send(greet("Ada")).await.unwrap();
    assert!(matches!(mediator.send(greet("")).await, Err(SendError::Handler(_))));
    assert!(matches!(mediator.send(greet("panic")).await, Err(SendError::Panicked(_))));
    assert_eq!(
        log.lines(),
        [
            "outer before Greet",
            "inner before Greet",
            "inner after: said hello Ada",
            "outer after: said hello Ada",
            "outer before Greet",
            "inner before Greet",
            "inner after: failed: nobody to greet",
            "outer after: failed: nobody to greet",
            "outer before Greet",
            "inner before Greet",
            "inner after: failed: panicked: no such name",
            "outer after: failed: panicked: no such name",
        ]
    );
}

enum Act {
    Reject,
    Skip,
    Contradict,
    Respond,
    RespondWrongly,
    Replace,
    Recover,
    RunTwice,
    Panic,
}

impl Middleware for Act {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        assert_eq!(call.kind(), InvocationKind::Request(RequestKind::Command));
        match self {
            Self::Reject => Err(Failure::rejected("not allowed")),
            Self::Skip => Ok(()),
            Self::Contradict => {
                let failed = next.run(call).await;
                assert!(failed.is_err() && call.respond("never mind".to_owned()));
                failed
            }
            Self::Respond => {
                let name = call.input::<Greet>().map(|greet| greet.name.clone());
                assert!(call.respond(format!("cached {}", name.unwrap())));
                Ok(())
            }
            Self::RespondWrongly => {
                assert!(!call.respond(5_u8), "a Greet is answered with a String");
                Ok(())
            }
            Self::Replace => {
                next.run(call).await?;
                *call.response_mut::<String>().unwrap() += "!";
                Ok(())
            }
            Self::Recover => {
                let outcome = next.run(call).await;
                assert!(outcome.is_err() && call.respond("never mind".to_owned()));
                Ok(())
            }
            Self::RunTwice => {
                // `run` consumes `Next`, and the request is `None` by then.
                next.run(call).await?;
                assert!(call.input::<Greet>().is_none());
                Ok(())
            }
            Self::Panic => panic!("middleware blew up"),
        }
    }
}

async fn through(act: Act, name: &str) -> (Result<String, SendError<String, String>>, usize) {
    let broker = RecordingBroker::default();
    let mediator = Mediator::builder()
        .handle::<Greet, _>(Greeter)
        .broker(broker.clone())
        .middleware(act)
        .build()
        .unwrap();
    (mediator.send(greet(name)).await, broker.names().len())
}

#[tokio::test]
async fn a_middleware_can_stop_answer_replace_and_recover() {
    let (stopped, published) = through(Act::Reject, "Ada").await;
    let Err(SendError::Rejected(reason)) = stopped else { panic!("{stopped:?}") };
    assert_eq!((reason.to_string().as_str(), published), ("not allowed", 0));

    let (contradicted, published) = through(Act::Contradict, "").await;
    assert!(matches!(contradicted, Err(SendError::Rejected(_))) && published == 0);
    assert!(matches!(through(Act::Skip, "Ada").await, (Err(SendError::NoResponse), 0)));
    assert!(matches!(through(Act::RespondWrongly, "Ada").await, (Err(SendError::NoResponse), 0)));
    assert_eq!(through(Act::Respond, "Ada").await.0.unwrap(), "cached Ada");
    assert_eq!(through(Act::Replace, "Ada").await.0.unwrap(), "hello Ada!");
    assert_eq!(through(Act::Recover, "").await.0.unwrap(), "never mind");
    assert_eq!(through(Act::RunTwice, "Ada").await.0.unwrap(), "hello Ada");
    let (panicked, _) = through(Act::Panic, "Ada").await;
    assert!(matches!(&panicked, Err(SendError::Panicked(text)) if text == "middleware blew up"));
}

#[tokio::test]
async fn recovery_drops_events_of_failed_handler() {
    let (answer, published) = through(Act::Recover, "").await;
    assert_eq!(answer.unwrap(), "never mind");
    assert_eq!(published, 0, "nothing is emitted when the handler failed");
}
