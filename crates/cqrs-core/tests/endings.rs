//! Tests of services that end because of a faulty source, or whose future is dropped.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::{
    DeadLetter, Delayed, Fetch, Incoming, RetryState, Settle, SettleError, Source, SourceDelivery,
    SourceError, SourceStatus, SubscribeError, SubscribeRequest,
};
use cqrs_core::service::{ServiceBuilder, SubscriptionState, Target};
use cqrs_core::{
    HandlerError, MemoryBroker, Message, MessageBroker, NotificationEvent, PublishError, Received,
    Service, Subscribe, Subscription, each,
};
use cqrs_macros::Notification;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "paid")]
struct Ordered {
    number: u32,
}

/// The fault of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    PanicsAtOnce,
    /// Takes messages from the memory broker, and panics on a message that requests it.
    PanicsLater,
    NeverStops,
    NeverCloses,
    /// Adds a message, and is pending.
    PendsWithDelivery,
    /// Adds a message, and fails.
    FailsWithDelivery,
    /// Is ready without a message, for a time that a spinning worker does not survive.
    ReadyWithNothing,
}

/// Its sources deliver nothing; those of the topic `bad` have a fault.
#[derive(Debug, Clone)]
struct Broken(Fault, MemoryBroker);

impl Broken {
    fn with(fault: Fault) -> Self {
        Self(fault, MemoryBroker::new())
    }
}

impl MessageBroker for Broken {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        self.1.enqueue(message)
    }
    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.1.try_enqueue(message)
    }
    fn state(&self) -> BrokerState {
        BrokerState::Ready
    }
    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.1.shutdown(deadline)
    }
}

impl Subscribe for Broken {
    fn check(&self, _: &[SubscribeRequest]) -> Vec<SubscribeError> {
        Vec::new()
    }
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        if self.0 == Fault::PanicsLater {
            let inner = self.1.clone();
            return Box::pin(async move {
                let source = Subscribe::subscribe(&inner, request).await?;
                Ok(Box::new(Late { source, panicked: false }) as Box<dyn Source>)
            });
        }
        request.status.report(SourceStatus::Consuming);
        let fault = if request.topics.to_string() == "bad" { self.0 } else { Fault::None };
        Box::pin(async move { Ok(Box::new(Faulty(fault, 0)) as Box<dyn Source>) })
    }
}

/// A fault, and the number of polls.
#[derive(Debug)]
struct Faulty(Fault, u32);

impl Source for Faulty {
    fn poll_fetch(
        &mut self,
        _: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        assert_ne!(self.0, Fault::PanicsAtOnce, "a source that panics");
        self.1 += 1;
        match self.0 {
            Fault::PendsWithDelivery | Fault::FailsWithDelivery if self.1 == 1 => {
                for number in [1, 2] {
                    fetch.push(SourceDelivery::new(ordered(number), Settled));
                }
                match self.0 {
                    Fault::FailsWithDelivery => {
                        Poll::Ready(Some(Err(SourceError::new("it fails"))))
                    }
                    _ => Poll::Pending,
                }
            }
            Fault::ReadyWithNothing => {
                assert!(self.1 < 10_000, "it is polled without a pause");
                Poll::Ready(Some(Ok(())))
            }
            _ => Poll::Pending,
        }
    }
    fn stop(&mut self) -> BoxFuture<'_, ()> {
        match self.0 {
            Fault::NeverStops => Box::pin(std::future::pending()),
            _ => Box::pin(async {}),
        }
    }
    fn close(self: Box<Self>, _: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        match self.0 {
            Fault::NeverCloses => Box::pin(std::future::pending()),
            _ => Box::pin(async { Ok(()) }),
        }
    }
}

fn ordered(number: u32) -> Incoming {
    let event = NotificationEvent::new(Ordered { number });
    let body = serde_json::to_vec(&event).unwrap();
    let mut message = Incoming::new("bad", body);
    message.offset = Some(number.into());
    message
}

/// Settles nothing.
struct Settled;

impl Settle for Settled {
    fn begin(&mut self) -> bool {
        true
    }
    fn postpone(&mut self) {}
    fn note_attempt(&mut self, _: &RetryState) {}
    fn is_revoked(&self) -> bool {
        false
    }
    fn poll_ack(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        Poll::Ready(Ok(()))
    }
    fn retry_later(
        &mut self,
        _: Duration,
        _: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        Box::pin(async { Ok(Delayed::Hold) })
    }
    fn dead_letter(&mut self, _: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Set if a [`Late`] source was polled after its panic.
static POLLED_AGAIN: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Late {
    source: Box<dyn Source>,
    panicked: bool,
}

impl Source for Late {
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        if self.panicked {
            POLLED_AGAIN.store(true, Ordering::SeqCst);
        }
        fetch.poll_fill(|_| {
            let polled = self.source.poll_next(cx);
            if let Poll::Ready(Some(Ok(delivery))) = &polled
                && delivery.message.bytes() == "panic"
            {
                self.panicked = true;
                panic!("a source that panics late");
            }
            polled
        })
    }
    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.source.stop()
    }
    fn close(self: Box<Self>, deadline: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        self.source.close(deadline)
    }
}

fn to(topic: &'static str) -> (Subscription, impl Target) {
    let target = each(|_: NotificationEvent<Ordered>, _: Received| async { Ok(()) });
    (Subscription::to(topic).group("g").json::<Ordered>(), target)
}

fn service(fault: Fault, topics: &[&'static str]) -> Service {
    let add = |builder: ServiceBuilder, topic: &&'static str| {
        let (subscription, target) = to(topic);
        builder.subscribe(subscription, target)
    };
    topics.iter().fold(Service::builder(Broken::with(fault)), add).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_fails_its_own_subscription() {
    let service = service(Fault::PanicsAtOnce, &["good", "bad"]);
    let health = service.health();
    let error = service.run_until(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.subscription, "g@bad");
    assert!(error.detail.contains("a source that panics"), "{error}");
    let states: Vec<_> = health.subscriptions().into_iter().map(|one| one.state).collect();
    assert_eq!(states[0], SubscriptionState::Stopped);
    assert!(matches!(states[1], SubscriptionState::Failed { .. }), "{states:?}");
    assert!(!health.is_ready() && !health.is_live());
}

#[tokio::test(start_paused = true)]
async fn panicked_source_is_not_polled_again() {
    let memory = MemoryBroker::new();
    let target = each(|_: NotificationEvent<Ordered>, _: Received| async {
        // Starts two workers, which are both idle afterwards.
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(())
    });
    let subscription = Subscription::to("late").group("g").json::<Ordered>().concurrency(2);
    let service = Service::builder(Broken(Fault::PanicsLater, memory.clone()))
        .subscribe(subscription, target)
        .build()
        .unwrap();
    let event = |number| {
        let body = serde_json::to_vec(&NotificationEvent::new(Ordered { number })).unwrap();
        Message::new("late", body).with_key(number.to_string())
    };
    for number in [1, 2] {
        memory.enqueue(event(number)).await.unwrap().await.unwrap();
    }
    let health = service.health();
    let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    while health.subscriptions()[0].counts.handled < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    memory.enqueue(Message::new("late", "panic")).await.unwrap().await.unwrap();
    let error = running.await.unwrap().unwrap_err();
    assert!(error.detail.contains("a source that panics late"), "{error}");
    assert!(!POLLED_AGAIN.load(Ordering::SeqCst), "nobody knows what state it is in");
}

#[tokio::test(start_paused = true)]
async fn deliveries_of_a_pending_source_are_handled() {
    let service = service(Fault::PendsWithDelivery, &["bad"]);
    let report = service.run_until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!(report.subscriptions[0].counts.handled, 2);
}

#[tokio::test(start_paused = true)]
async fn deliveries_before_an_error_are_received() {
    let service = service(Fault::FailsWithDelivery, &["bad"]);
    let health = service.health();
    let error = service.run_until(std::future::pending::<()>()).await.unwrap_err();
    assert!(error.detail.contains("it fails"), "{error}");
    assert_eq!(health.subscriptions()[0].counts.received, 2);
}

#[tokio::test]
async fn source_that_is_ready_with_nothing_does_not_block_its_thread() {
    let service = service(Fault::ReadyWithNothing, &["bad"]);
    let stops = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    drop(service.run_until(stops).await.unwrap());
}

#[tokio::test]
async fn next_delivery_is_the_first_of_a_faulty_source() {
    for fault in [Fault::PendsWithDelivery, Fault::FailsWithDelivery] {
        let mut source: Box<dyn Source> = Box::new(Faulty(fault, 0));
        let next = std::future::poll_fn(|cx| source.poll_next(cx));
        let next = tokio::time::timeout(Duration::from_secs(1), next).await;
        let delivery = next.expect("it is there").unwrap().unwrap();
        assert_eq!(delivery.message.offset, Some(1), "{fault:?}");
    }
    let mut source: Box<dyn Source> = Box::new(Faulty(Fault::ReadyWithNothing, 0));
    let mut polls = 0;
    let until_third = std::future::poll_fn(|cx| {
        polls += 1;
        assert!(source.poll_next(cx).is_pending());
        if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::time::timeout(Duration::from_secs(1), until_third).await.expect("it is woken");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_end_is_left_behind() {
    for fault in [Fault::NeverStops, Fault::NeverCloses] {
        for (now, at_most) in [(false, 10), (true, 2)] {
            let service = service(fault, &["bad"]);
            let stop = service.stop_handle();
            let started = Instant::now();
            let run = service.run_until(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if now {
                    stop.stop_now();
                }
            });
            let report = tokio::time::timeout(Duration::from_secs(60), run).await;
            let report = report.expect("it ends").unwrap();
            assert!(started.elapsed() < Duration::from_secs(at_most), "{:?}", started.elapsed());
            assert!(report.subscriptions[0].error.is_some(), "{fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_run_is_dropped_is_not_ready() {
    let service = service(Fault::None, &["good", "bad"]);
    let health = service.health();
    let run = service.run_until(std::future::pending::<()>());
    assert!(tokio::time::timeout(Duration::from_secs(1), run).await.is_err());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!health.is_ready(), "{health:?}");
    assert!(health.is_live());
    for one in health.subscriptions() {
        assert_eq!(one.state, SubscriptionState::Stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_run_gives_back_running_messages() {
    let broker = MemoryBroker::new();
    let event = NotificationEvent::new(Ordered { number: 1 });
    let body = serde_json::to_vec(&event).unwrap();
    cqrs_core::MessageBrokerExt::publish(&broker, Message::new("paid", body)).await.unwrap();
    let service = Service::builder(broker.clone())
        .subscribe(
            Subscription::to("paid").group("g").json::<Ordered>(),
            each(|_: NotificationEvent<Ordered>, _: Received| {
                std::future::pending::<Result<(), HandlerError>>()
            }),
        )
        .build()
        .unwrap();
    let health = service.health();
    let run = service.run_until(std::future::pending::<()>());
    assert!(tokio::time::timeout(Duration::from_secs(1), run).await.is_err());
    tokio::time::sleep(Duration::from_millis(1)).await;
    let counts = health.subscriptions()[0].counts;
    assert_eq!((counts.received, counts.given_back), (1, 1));
    assert!(broker.subscriber("paid", "g").try_recv().is_some());
}
