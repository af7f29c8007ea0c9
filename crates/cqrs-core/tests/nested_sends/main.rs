//! Tests of handlers that send requests: the limit on nesting, and which of their errors are retryable.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod limit;
#[path = "../support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cqrs_core::consume::{DeadLetter, DeadLetterReason};
use cqrs_core::middleware::Failure;
use cqrs_core::service::Target;
use cqrs_core::{
    Delivery, EventHandler, EventMediator, HandlerError, HandlerResultExt, Invocation, Mediator,
    MemoryBroker, Message, MessageBrokerExt, Middleware, Next, NotificationEvent, Outcome,
    Received, RequestHandler, Retry, Scope, SendError, Service, Subscription, batch, each, manual,
};
use cqrs_macros::{Command, DomainEvent, Notification};
use serde::{Deserialize, Serialize};
use support::{Fault, Log, RecordingBroker, Store, Transaction};

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = (), error = Infallible)]
struct Charge;

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "Charged", topic = "refused")]
struct Charged;

/// The broker refuses its event.
struct Charger(Log);

impl RequestHandler<Charge> for Charger {
    async fn handle(&self, _: Charge, scope: &mut Scope) -> Result<(), Infallible> {
        self.0.add("charged");
        scope.emit(Charged);
        Ok(())
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "Ordered", topic = "orders")]
struct Ordered;

#[derive(Debug, Clone, DomainEvent)]
#[cqrs(crate = "cqrs_core")]
struct Audited;

/// Fails permanently.
struct Refusing(Log);

impl EventHandler<Audited> for Refusing {
    async fn handle(&self, _: &Audited, _: &mut Scope) -> Result<(), HandlerError> {
        self.0.add("refused");
        Err("no such account").permanent()
    }
}

/// An application's own error around the mediator's.
#[derive(Debug, thiserror::Error)]
#[error("the payment failed")]
struct PaymentFailed(#[from] SendError<(), Infallible>);

fn charging(log: &Log) -> Mediator {
    let charger = Charger(log.clone());
    let broker = RecordingBroker::default();
    Mediator::builder().handle::<Charge, _>(charger).broker(broker).build().unwrap()
}

struct Passing;

impl Middleware for Passing {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        next.run(call).await
    }
}

fn on_orders() -> Subscription {
    let retry = Retry::none().immediate([Duration::from_millis(1); 2]);
    Subscription::to("orders").group("g").json::<Ordered>().retry(retry)
}

/// Consumes one event, handled with `mediator`; its dead letter.
async fn consume<M, F, Fut>(mediator: M, handle: F) -> DeadLetter
where
    M: Clone + Send + Sync + 'static,
    F: Fn(M) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    let target = each(move |_: NotificationEvent<Ordered>, _: Received| handle(mediator.clone()));
    consume_by(on_orders(), target).await
}

async fn consume_by(subscription: Subscription, target: impl Target) -> DeadLetter {
    let broker = MemoryBroker::new();
    let service = Service::builder(broker.clone()).subscribe(subscription, target).build().unwrap();
    let body = serde_json::to_vec(&NotificationEvent::new(Ordered)).unwrap();
    broker.publish(Message::new("orders", body)).await.unwrap();
    let dead = async {
        while broker.messages("orders.g.dead").is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let dead = tokio::time::timeout(Duration::from_secs(600), dead);
    drop(service.run_until(dead).await.unwrap());
    DeadLetter::from_headers(&broker.messages("orders.g.dead")[0].headers).unwrap()
}

#[tokio::test(start_paused = true)]
async fn undelivered_event_of_nested_command_is_permanent() {
    let log = Log::default();
    let letter =
        consume(charging(&log), |mediator| async move { Ok(mediator.send(Charge).await?) }).await;
    assert_eq!(log.lines(), ["charged"], "committed once, not again");
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
    assert!(letter.error.contains("done and committed"), "{}", letter.error);
    assert!(letter.error.contains("refused by the broker"), "{}", letter.error);
}

#[tokio::test(start_paused = true)]
async fn undelivered_event_within_an_own_error_is_permanent() {
    let log = Log::default();
    let letter = consume(charging(&log), |mediator| async move {
        Ok(mediator.send(Charge).await.map_err(PaymentFailed)?)
    })
    .await;
    assert_eq!((log.lines().len(), letter.reason), (1, DeadLetterReason::Permanent));
}

#[tokio::test(start_paused = true)]
async fn undelivered_event_is_retried_where_user_says_so() {
    let log = Log::default();
    let letter = consume(charging(&log), |mediator| async move {
        mediator.send(Charge).await.map_err(HandlerError::retryable)
    })
    .await;
    assert_eq!((log.lines().len(), letter.reason), (3, DeadLetterReason::Exhausted));
}

struct ChargeOnAudited(Mediator);

impl EventHandler<Audited> for ChargeOnAudited {
    async fn handle(&self, _: &Audited, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(self.0.send(Charge).await?)
    }
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = (), error = Infallible)]
struct Audit;

struct Auditor;

impl RequestHandler<Audit> for Auditor {
    async fn handle(&self, _: Audit, scope: &mut Scope) -> Result<(), Infallible> {
        scope.emit(Audited);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn undelivered_below_domain_event_is_permanent() {
    let log = Log::default();
    let mediator = Mediator::builder()
        .handle::<Audit, _>(Auditor)
        .event::<Audited, _>(ChargeOnAudited(charging(&log)))
        .build()
        .unwrap();
    let letter = consume(mediator, |mediator| async move { Ok(mediator.send(Audit).await?) }).await;
    assert_eq!((log.lines().len(), letter.reason), (1, DeadLetterReason::Permanent));
}

#[tokio::test(start_paused = true)]
async fn permanent_error_of_nested_mediator_is_permanent() {
    let log = Log::default();
    let events =
        EventMediator::builder().event::<Audited, _>(Refusing(log.clone())).build().unwrap();
    let letter = consume(events, |events| async move { Ok(events.send(Audited).await?) }).await;
    assert_eq!((log.lines().len(), letter.reason), (1, DeadLetterReason::Permanent));
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = (), error = PaymentFailed)]
struct Checkout;

/// Sends `Charge`; its own error has no source.
struct Cashier(Mediator);

impl RequestHandler<Checkout> for Cashier {
    async fn handle(&self, _: Checkout, _: &mut Scope) -> Result<(), PaymentFailed> {
        Ok(self.0.send(Charge).await?)
    }
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core", response = (), error = String)]
struct Shop;

/// Sends `Checkout`; its own error is only a text.
struct Shopper(Mediator);

impl RequestHandler<Shop> for Shopper {
    async fn handle(&self, _: Shop, _: &mut Scope) -> Result<(), String> {
        self.0.send(Checkout).await.map_err(|error| error.to_string())
    }
}

fn checkout(log: &Log) -> Mediator {
    Mediator::builder().handle::<Checkout, _>(Cashier(charging(log))).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn undelivered_below_commands_own_error_is_permanent() {
    for middlewares in [0, 1] {
        let log = Log::default();
        let mut outer = Mediator::builder().handle::<Shop, _>(Shopper(checkout(&log)));
        for _ in 0..middlewares {
            outer = outer.middleware(Passing);
        }
        let outer = outer.build().unwrap();
        let letter = consume(outer, |outer| async move { Ok(outer.send(Shop).await?) }).await;
        assert_eq!(log.lines(), ["charged"], "committed once, not again");
        assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
        assert!(letter.error.contains("the payment failed"), "{}", letter.error);
    }
}

/// Sends `Charge`, and passes its error on.
struct ChargeFirst(Mediator);

impl Middleware for ChargeFirst {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        self.0.send(Charge).await.map_err(Failure::rejected)?;
        next.run(call).await
    }
}

#[tokio::test(start_paused = true)]
async fn undelivered_of_a_middleware_is_permanent() {
    for of_mediator in [true, false] {
        let (log, mut subscription) = (Log::default(), on_orders());
        let mut events = EventMediator::builder().event::<Ordered, _>(Ignoring);
        match of_mediator {
            true => events = events.middleware(ChargeFirst(charging(&log))),
            false => subscription = subscription.middleware(ChargeFirst(charging(&log))),
        }
        let letter = consume_by(subscription, events.build().unwrap()).await;
        assert_eq!(log.lines(), ["charged"], "of the mediator: {of_mediator}");
        assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
    }
}

struct Ignoring;

impl EventHandler<Ordered> for Ignoring {
    async fn handle(&self, _: &Ordered, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(())
    }
}

#[tokio::test]
async fn error_after_a_nested_commit_is_not_rolled_back() {
    let log = Log::default();
    let error = checkout(&log).send(Checkout).await.unwrap_err();
    assert!(!error.is_rolled_back(), "{error:?}");
    assert!(matches!(error.into_handler(), Ok(PaymentFailed(SendError::Undelivered(_)))));
}

/// Sends `Charge`, ignores its error, and fails later if `fails`.
struct Lenient {
    mediator: Mediator,
    fails: bool,
}

impl RequestHandler<Shop> for Lenient {
    async fn handle(&self, _: Shop, _: &mut Scope) -> Result<(), String> {
        let sent = self.mediator.send(Charge).await;
        assert!(matches!(sent, Err(SendError::Undelivered(_))), "{sent:?}");
        tokio::task::yield_now().await;
        match self.fails {
            true => Err("out of stock".to_owned()),
            false => Ok(()),
        }
    }
}

#[tokio::test]
async fn undelivered_marks_only_the_run_it_ended_in() {
    let log = Log::default();
    let lenient = |fails| {
        let handler = Lenient { mediator: charging(&log), fails };
        Mediator::builder().handle::<Shop, _>(handler).build().unwrap()
    };
    let (failing, passing, audit) = (lenient(true), lenient(false), failing_audit());
    let (failed, passed, other) =
        tokio::join!(failing.send(Shop), passing.send(Shop), audit.send(Shop));
    assert!(matches!(failed, Err(SendError::HandlerAfterCommit(_))), "{failed:?}");
    assert!(passed.is_ok(), "{passed:?}");
    assert!(matches!(other, Err(SendError::Handler(_))), "{other:?}");
}

/// Its handler fails without a nested send, after a few polls.
fn failing_audit() -> Mediator {
    struct Failing;
    impl RequestHandler<Shop> for Failing {
        async fn handle(&self, _: Shop, _: &mut Scope) -> Result<(), String> {
            support::steps(5).await;
            Err("closed".to_owned())
        }
    }
    Mediator::builder().handle::<Shop, _>(Failing).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn permanent_error_of_a_domain_event_stays_permanent() {
    let log = Log::default();
    let mediator = Mediator::builder()
        .handle::<Audit, _>(Auditor)
        .event::<Audited, _>(Refusing(log.clone()))
        .build()
        .unwrap();
    let letter = consume(mediator, |mediator| async move { Ok(mediator.send(Audit).await?) }).await;
    assert_eq!((log.lines().len(), letter.reason), (1, DeadLetterReason::Permanent));
    assert_eq!(letter.error.matches("no such account").count(), 1, "{}", letter.error);
}

/// Sends `Charge`, and turns its error into a panic, or into work that cannot be committed.
struct Abrupt {
    mediator: Mediator,
    panics: bool,
}

impl RequestHandler<Shop> for Abrupt {
    async fn handle(&self, _: Shop, scope: &mut Scope) -> Result<(), String> {
        let sent = self.mediator.send(Charge).await;
        assert!(!self.panics, "{}", sent.unwrap_err());
        scope.unit_of_work::<Transaction>().await.unwrap().write("shop");
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn undelivered_below_panic_or_failed_commit_is_final() {
    for (panics, middlewares, expected) in [
        (true, 0, "panicked: "),
        (true, 1, "panicked: "),
        (false, 0, "serialization failure"),
        (false, 1, "serialization failure"),
    ] {
        let log = Log::default();
        let store = Store::new(&Log::default(), Fault::Commit);
        let mut outer = Mediator::builder()
            .handle::<Shop, _>(Abrupt { mediator: charging(&log), panics })
            .unit_of_work(store);
        for _ in 0..middlewares {
            outer = outer.middleware(Passing);
        }
        let outer = outer.build().unwrap();
        let error = outer.send(Shop).await.unwrap_err();
        assert!(!error.is_rolled_back(), "{error:?}");
        assert_eq!(log.lines(), ["charged"]);
        let letter = consume(outer, |outer| async move { Ok(outer.send(Shop).await?) }).await;
        assert_eq!(log.lines(), ["charged"; 2], "committed once by the consumer, not again");
        assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
        assert!(letter.error.contains(expected), "{}", letter.error);
        assert!(letter.error.contains("is committed"), "{}", letter.error);
    }
}

/// Sends `Charge`, and panics because of its error.
struct UnwrapCharge(Mediator);

impl EventHandler<Ordered> for UnwrapCharge {
    async fn handle(&self, _: &Ordered, _: &mut Scope) -> Result<(), HandlerError> {
        self.0.send(Charge).await.unwrap();
        Ok(())
    }
}

impl Middleware for UnwrapCharge {
    async fn handle(&self, _: &mut Invocation<'_>, _: Next<'_>) -> Outcome {
        self.0.send(Charge).await.unwrap();
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn panic_after_own_undelivered_send_is_permanent() {
    for case in ["mediator", "its middleware", "each", "middleware", "manual", "batch"] {
        let (log, mut subscription) = (Log::default(), on_orders());
        let mediator = charging(&log);
        let unwrapping = UnwrapCharge(mediator.clone());
        let events = EventMediator::builder();
        let charge = move || {
            let mediator = mediator.clone();
            async move { mediator.send(Charge).await.unwrap() }
        };
        let letter = match case {
            "mediator" => {
                let events = events.event::<Ordered, _>(unwrapping).build().unwrap();
                consume_by(subscription, events).await
            }
            "its middleware" => {
                let events = events.event::<Ordered, _>(Ignoring).middleware(unwrapping);
                consume_by(subscription, events.build().unwrap()).await
            }
            "each" => {
                let charge = |mediator: Mediator| async move {
                    mediator.send(Charge).await.unwrap();
                    Ok(())
                };
                consume(unwrapping.0, charge).await
            }
            "middleware" => {
                subscription = subscription.middleware(unwrapping);
                consume_by(subscription, events.event::<Ordered, _>(Ignoring).build().unwrap())
                    .await
            }
            "manual" => {
                let target = manual(move |_: NotificationEvent<Ordered>, delivery: Delivery| {
                    let charged = charge();
                    async move {
                        charged.await;
                        drop(delivery);
                    }
                });
                consume_by(subscription, target).await
            }
            _ => {
                let target = batch(1, Duration::from_millis(1), {
                    move |_: Vec<(NotificationEvent<Ordered>, Received)>| {
                        let charged = charge();
                        async move {
                            charged.await;
                            Ok(())
                        }
                    }
                });
                consume_by(subscription, target).await
            }
        };
        assert_eq!(log.lines(), ["charged"], "{case}");
        assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1), "{case}");
        assert!(letter.error.contains("panicked: "), "{case}: {}", letter.error);
    }
}
