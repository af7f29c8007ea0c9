//! Tests of a send's notifications with failing serializers, brokers and callers.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::convert::Infallible;
use std::time::Duration;

use cqrs_core::broker::{
    BoxFuture, BrokerState, Confirmation, Intake, Receipt, ShutdownReport, Window,
};
use cqrs_core::{
    EventMediator, Mediator, Message, MessageBroker, Notification, PublishError, PublishErrorKind,
    RequestHandler, Scope, SendError,
};
use cqrs_macros::{Command, Notification};
use serde::{Serialize, Serializer};
use support::{Fault, Log, Store, Transaction, poll_times};

/// Emits one event per (key, body), after a write.
#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = &'static str)]
struct Announce(Vec<(&'static str, Body)>);

#[derive(Debug, Clone, Copy)]
enum Body {
    Good,
    Unserializable,
    PanicInSerialize,
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Good => serializer.serialize_str("good"),
            Self::Unserializable => Err(serde::ser::Error::custom("no such thing in JSON")),
            Self::PanicInSerialize => panic!("serializer blew up"),
        }
    }
}

#[derive(Notification, Serialize)]
#[cqrs(crate = "cqrs_core", topic = "news", key = "key")]
struct News {
    key: &'static str,
    body: Body,
}

struct Announcer;

impl RequestHandler<Announce> for Announcer {
    async fn handle(
        &self,
        command: Announce,
        scope: &mut Scope,
    ) -> Result<&'static str, Infallible> {
        scope.unit_of_work::<Transaction>().await.unwrap().write("row");
        for (key, body) in command.0 {
            scope.emit(News { key, body });
        }
        Ok("done")
    }
}

/// The behaviour of the broker for each key.
#[derive(Debug, Clone, Default)]
struct Moody {
    log: Log,
    intake: Intake,
}

impl Moody {
    fn take(&self, message: Message) -> Result<Receipt, PublishError> {
        let key = String::from_utf8(message.key.clone().unwrap().to_vec()).unwrap();
        self.log.add(format!("enqueue {key}"));
        match key.as_str() {
            "panic" => panic!("enqueue blew up"),
            "invalid" => Err(PublishError::new(PublishErrorKind::Invalid, message, "no")),
            _ => {
                let (pending, receipt) = self.intake.try_admit(message)?;
                match key.as_str() {
                    "refused" => pending.fail(PublishErrorKind::Refused, "no", None),
                    "never" => {
                        assert!(pending.start_sending());
                        std::mem::forget(pending);
                    }
                    _ => pending.confirm(Confirmation::default()),
                }
                Ok(receipt)
            }
        }
    }
}

impl MessageBroker for Moody {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move { self.take(message) })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.take(message)
    }

    fn state(&self) -> BrokerState {
        BrokerState::Ready
    }

    fn shutdown(&self, _deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        Box::pin(async { ShutdownReport::default() })
    }
}

fn mediator(broker: &Moody) -> (Mediator, Store) {
    let store = Store::new(&broker.log, Fault::None);
    let mediator = Mediator::builder()
        .handle::<Announce, _>(Announcer)
        .unit_of_work(store.clone())
        .broker(broker.clone())
        .build()
        .unwrap();
    (mediator, store)
}

fn good(keys: &[&'static str]) -> Announce {
    Announce(keys.iter().map(|key| (*key, Body::Good)).collect())
}

type Sent = Result<&'static str, SendError<&'static str, Infallible>>;

/// Key and kind of each undelivered event; the send must have been committed.
fn undelivered(sent: Sent) -> Vec<(String, PublishErrorKind)> {
    let Err(SendError::Undelivered(undelivered)) = sent else { panic!("{sent:?}") };
    assert_eq!(undelivered.response, "done");
    let key = |event: &PublishError| {
        String::from_utf8(event.message().key.clone().unwrap().to_vec()).unwrap()
    };
    undelivered.events.iter().map(|event| (key(event), event.kind())).collect()
}

#[tokio::test]
async fn serialize_error_rolls_back() {
    for (body, expected) in [
        (Body::Unserializable, "News could not be serialized"),
        (Body::PanicInSerialize, "panicked: serializer blew up"),
    ] {
        let broker = Moody::default();
        let (mediator, store) = mediator(&broker);
        let error =
            mediator.send(Announce(vec![("a", Body::Good), ("b", body)])).await.unwrap_err();
        assert!(error.is_rolled_back());
        assert_eq!(error.to_string(), expected);
        assert!(store.visible().is_empty());
        assert_eq!(broker.log.lines(), ["begin", "rollback"]);
    }
}

#[tokio::test]
async fn broker_panic_after_commit_keeps_the_response() {
    let broker = Moody::default();
    let (mediator, store) = mediator(&broker);
    let sent = mediator.send(good(&["a", "panic", "b"])).await;
    assert!(!sent.as_ref().unwrap_err().is_rolled_back());
    assert_eq!(undelivered(sent), [("panic".to_owned(), PublishErrorKind::Unknown)]);
    assert_eq!(store.visible(), ["row"]);
}

#[test]
fn a_receipt_that_panics_leaves_its_event_unknown() {
    // Without tokio's timer a receipt that waits panics.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let broker = Moody::default();
    let (mediator, store) = mediator(&broker);
    let sent = runtime.block_on(mediator.send(good(&["never", "a"])));
    assert_eq!(undelivered(sent), [("never".to_owned(), PublishErrorKind::Unknown)]);
    assert_eq!(store.visible(), ["row"]);
}

#[tokio::test]
async fn rejected_event_blocks_later_ones_of_its_key() {
    let broker = Moody::default();
    let (mediator, _) = mediator(&broker);
    let sent = mediator.send(good(&["invalid", "a", "invalid", "refused", "b"])).await;
    let expected = [
        ("invalid", PublishErrorKind::Invalid),
        ("invalid", PublishErrorKind::NotSent),
        ("refused", PublishErrorKind::Refused),
    ];
    assert_eq!(undelivered(sent), expected.map(|(key, kind)| (key.to_owned(), kind)));
    assert_eq!(broker.log.count("enqueue invalid"), 1, "the second one was held back");
    assert_eq!(broker.log.count("enqueue b"), 1, "other keys go on");
}

#[tokio::test(start_paused = true)]
async fn stuck_broker_ends_events_within_two_deadlines() {
    /// Admits one message and never confirms it.
    #[derive(Debug)]
    struct Stuck(Intake);
    impl MessageBroker for Stuck {
        fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
            Box::pin(async move {
                let (pending, receipt) = self.0.admit(message).await?;
                std::mem::forget(pending);
                Ok(receipt)
            })
        }
        fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
            let (pending, receipt) = self.0.try_admit(message)?;
            std::mem::forget(pending);
            Ok(receipt)
        }
        fn state(&self) -> BrokerState {
            BrokerState::Ready
        }
        fn shutdown(&self, _deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
            Box::pin(async { ShutdownReport::default() })
        }
    }
    let deadline = Duration::from_secs(30);
    let mediator = Mediator::builder()
        .handle::<Announce, _>(Announcer)
        .unit_of_work(Store::new(&Log::default(), Fault::None))
        .broker(Stuck(Intake::new(Window::new(1, 1 << 20), deadline)))
        .build()
        .unwrap();
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let start = tokio::time::Instant::now();
    let events = undelivered(mediator.send(good(&keys)).await);
    assert_eq!(events.len(), keys.len());
    assert!(start.elapsed() <= deadline * 2, "{:?}", start.elapsed());
}

#[tokio::test]
async fn events_of_a_send_that_was_dropped_are_counted() {
    let mut committed = 0;
    for polls in 1.. {
        let broker = Moody::default();
        let (mediator, store) = mediator(&broker);
        if poll_times(mediator.send(good(&["refused"])), polls).await.is_some() {
            break;
        }
        let left = mediator.shutdown(Duration::from_secs(5)).await;
        assert_eq!((left.unfinished, left.undelivered), (0, store.visible().len()));
        committed += store.visible().len();
    }
    assert!(committed > 0, "some cancel must strike after the commit began");
}

#[test]
fn without_a_runtime_nothing_is_done() {
    let broker = Moody::default();
    let (mediator, store) = mediator(&broker);
    // Not a tokio runtime: nothing here needs one before the commit.
    struct Plain;
    impl RequestHandler<Announce> for Plain {
        async fn handle(
            &self,
            _command: Announce,
            scope: &mut Scope,
        ) -> Result<&'static str, Infallible> {
            scope.emit(News { key: "a", body: Body::Good });
            Ok("done")
        }
    }
    drop(mediator);
    let mediator =
        Mediator::builder().handle::<Announce, _>(Plain).broker(broker.clone()).build().unwrap();
    let sent = futures_util::FutureExt::now_or_never(mediator.send(good(&[]))).unwrap();
    assert!(matches!(sent, Err(SendError::NoRuntime)), "{sent:?}");
    assert!(store.visible().is_empty() && broker.log.lines().is_empty());
}

#[tokio::test]
async fn an_event_whose_own_code_panics_is_an_error_value() {
    #[derive(Serialize)]
    struct Rude;
    impl cqrs_core::Event for Rude {
        const NAME: &'static str = "Rude";
        const ROUTE: cqrs_core::event::EventRoute = cqrs_core::event::EventRoute::Notification;
        fn into_emission(self) -> cqrs_core::event::Emission {
            cqrs_core::event::Emission::notification(self)
        }
    }
    impl Notification for Rude {
        type Serializer = cqrs_core::codec::JsonSerializer;
        fn topic() -> std::borrow::Cow<'static, str> {
            panic!("no topic")
        }
    }
    let consumer = EventMediator::builder().build().unwrap();
    let error = consumer.send(Rude).await.unwrap_err();
    assert!(matches!(&error, SendError::Panicked(text) if text == "no topic"), "{error:?}");
    let emitter = Mediator::builder().build().unwrap().emitter();
    assert!(matches!(emitter.emit(Rude).await, Err(SendError::Panicked(_))));
}
