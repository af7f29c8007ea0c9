//! Tests of the order of commits, copies and settlements, on a broker that records all calls.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::{
    DeadLetter, Delayed, Fetch, Incoming, RetryState, Settle, SettleError, Source, SourceDelivery,
    SourceError, SourceStatus, SubscribeError, SubscribeRequest,
};
use cqrs_core::service::{ServiceError, ServiceReport, SubscriptionState, Target};
use cqrs_core::{
    Delivery, EventHandler, EventMediator, HandlerError, HandlerResultExt, Message, MessageBroker,
    NotificationEvent, PublishError, Received, Retry, Scope, Service, Subscribe, Subscription,
    batch, each, manual,
};
use cqrs_macros::Notification;
use serde::{Deserialize, Serialize};
use support::{Fault, Lines, Log, RecordingBroker, Store, Transaction};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "paid")]
struct Ordered {
    number: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "shipped")]
struct Shipped {
    number: u32,
}

/// The behaviour of the broker.
#[derive(Debug, Clone, Copy, Default)]
struct Script {
    /// The broker schedules retry copies.
    scheduled: bool,
    /// The first retry copies and dead letters, as many as given, are not confirmed.
    copies_fail: usize,
    /// The copies of the first message are refused permanently, as often as given.
    refusals: usize,
    acks_fail: bool,
    /// Revoked before the handler starts.
    revoked: bool,
    /// Revoked while it is held.
    revoked_when_held: bool,
    /// Records `begin` and `postpone`, too.
    writes_starts: bool,
    /// Records the drop of an acked settlement, too.
    writes_drops: bool,
    /// The first message is revoked after the given time.
    first_revoked_after: Option<Duration>,
    crashes: u32,
}

/// Delivers messages and records their settlements.
#[derive(Debug, Clone)]
struct Scribe {
    inner: RecordingBroker,
    log: Log,
    script: Script,
    messages: Arc<Mutex<VecDeque<Incoming>>>,
}

impl Scribe {
    fn new(script: Script) -> Self {
        let log = Log::default();
        let body = serde_json::to_vec(&NotificationEvent::new(Ordered { number: 1 })).unwrap();
        let messages = VecDeque::from([Incoming::new("paid", body)]);
        let inner = RecordingBroker::with_log(&log);
        Self { inner, log, script, messages: Arc::new(Mutex::new(messages)) }
    }

    fn delivery(&self, message: Incoming) -> SourceDelivery {
        let settle = Written {
            log: self.log.clone(),
            number: message.key.as_ref().map_or(1, |key| u32::from(key[0])),
            script: self.script,
            failed: 0,
            held: false,
            settled: false,
            handed_out: tokio::time::Instant::now(),
        };
        let mut delivery = SourceDelivery::new(message, settle);
        delivery.retry.crashes = self.script.crashes;
        delivery
    }
}

impl MessageBroker for Scribe {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        self.inner.enqueue(message)
    }
    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.inner.try_enqueue(message)
    }
    fn state(&self) -> BrokerState {
        BrokerState::Ready
    }
    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.inner.shutdown(deadline)
    }
}

impl Subscribe for Scribe {
    fn check(&self, _: &[SubscribeRequest]) -> Vec<SubscribeError> {
        Vec::new()
    }
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        request.status.report(SourceStatus::Consuming);
        let source = self.clone();
        Box::pin(async move { Ok(Box::new(source) as Box<dyn Source>) })
    }
}

impl Source for Scribe {
    fn poll_fetch(
        &mut self,
        _: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        fetch.poll_fill(|_| match self.messages.lock().unwrap().pop_front() {
            Some(message) => Poll::Ready(Some(Ok(self.delivery(message)))),
            None => Poll::Pending,
        })
    }
    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn close(self: Box<Self>, _: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        self.log.add("closed");
        Box::pin(async { Ok(()) })
    }
}

struct Written {
    log: Log,
    number: u32,
    script: Script,
    failed: usize,
    held: bool,
    settled: bool,
    handed_out: tokio::time::Instant,
}

impl Written {
    fn copy(&mut self, what: String) -> Result<(), SettleError> {
        if self.number == 1 && self.failed < self.script.refusals {
            self.failed += 1;
            self.log.add(format!("{what} refused"));
            return Err(SettleError::new("too large").permanent());
        }
        if self.failed < self.script.copies_fail {
            self.failed += 1;
            self.log.add(format!("{what} not confirmed"));
            return Err(SettleError::new("no confirm"));
        }
        self.log.add(what);
        Ok(())
    }
}

impl Settle for Written {
    fn begin(&mut self) -> bool {
        if self.script.writes_starts {
            self.log.add("begin");
        }
        !self.is_revoked()
    }
    fn postpone(&mut self) {
        if self.script.writes_starts {
            self.log.add("postpone");
        }
    }
    fn note_attempt(&mut self, _: &RetryState) {}
    fn is_revoked(&self) -> bool {
        let taken_away =
            self.script.first_revoked_after.is_some_and(|after| self.handed_out.elapsed() >= after);
        self.script.revoked
            || (self.held && self.script.revoked_when_held)
            || (self.number == 1 && taken_away)
    }
    fn poll_ack(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SettleError>> {
        self.settled = !self.script.acks_fail;
        self.log.add(if self.settled { "ack" } else { "ack failed" });
        Poll::Ready(if self.settled { Ok(()) } else { Err(SettleError::new("channel gone")) })
    }
    fn retry_later(
        &mut self,
        delay: Duration,
        state: &RetryState,
    ) -> BoxFuture<'_, Result<Delayed, SettleError>> {
        let copied = self.copy(format!("copy {} in {delay:?}", state.attempts));
        self.held = copied.is_ok();
        let delayed = if self.script.scheduled { Delayed::Scheduled } else { Delayed::Hold };
        Box::pin(async move { copied.map(|()| delayed) })
    }
    fn dead_letter(&mut self, letter: &DeadLetter) -> BoxFuture<'_, Result<(), SettleError>> {
        let copied = self.copy(format!("dead {} {}", letter.reason, letter.attempts));
        Box::pin(async move { copied })
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.settled {
            self.log.add("given back");
        } else if self.script.writes_drops {
            self.log.add(format!("drop {}", self.number));
        }
    }
}

/// Runs the service until the log has `last`, then stops it; returns the log.
async fn run(
    broker: &Scribe,
    retry: Retry,
    target: impl Target,
    last: &str,
) -> (Vec<String>, Result<ServiceReport, ServiceError>) {
    run_with(broker, paid(retry), target, last).await
}

fn paid(retry: Retry) -> Subscription {
    Subscription::to("paid").group("g").json::<Ordered>().retry(retry)
}

async fn run_with(
    broker: &Scribe,
    subscription: Subscription,
    target: impl Target,
    last: &str,
) -> (Vec<String>, Result<ServiceReport, ServiceError>) {
    let service = Service::builder(broker.clone()).subscribe(subscription, target).build().unwrap();
    let seen = async {
        while broker.log.count(last) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limited = tokio::time::timeout(Duration::from_secs(600), seen);
    let report = service.run_until(limited).await;
    (broker.log.lines(), report)
}

fn failing() -> impl Target {
    each(|_: NotificationEvent<Ordered>, _: Received| async {
        Err(HandlerError::retryable("not yet"))
    })
}

fn delayed(seconds: u64) -> Retry {
    Retry::none().delayed([Duration::from_secs(seconds)])
}

#[tokio::test(start_paused = true)]
async fn commit_then_publish_then_ack() {
    struct Ship;
    impl EventHandler<Ordered> for Ship {
        async fn handle(&self, event: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            scope.unit_of_work::<Transaction>().await?.write("shipment");
            scope.emit(Shipped { number: event.number });
            Ok(())
        }
    }
    for (fault, expected) in [
        (Fault::None, vec!["begin", "commit", "publish Shipped", "ack", "closed"]),
        (Fault::Commit, vec!["begin", "commit failed", "dead exhausted 1", "ack", "closed"]),
    ] {
        let broker = Scribe::new(Script::default());
        let events = EventMediator::builder()
            .event::<Ordered, _>(Ship)
            .unit_of_work(Store::new(&broker.log, fault))
            .broker(broker.clone())
            .build()
            .unwrap();
        let (log, _) = run(&broker, Retry::none(), events, "ack").await;
        assert_eq!(log, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_confirmed_before_the_original_is_acked() {
    let broker = Scribe::new(Script { scheduled: true, copies_fail: 2, ..Script::default() });
    let (log, _) = run(&broker, delayed(10), failing(), "ack").await;
    let not = "copy 1 in 10s not confirmed";
    assert_eq!(log, [not, not, "copy 1 in 10s", "ack", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn dead_letter_is_confirmed_before_the_ack() {
    let broker = Scribe::new(Script { copies_fail: 3, ..Script::default() });
    let permanent =
        each(|_: NotificationEvent<Ordered>, _: Received| async { Err("never").permanent() });
    let (log, _) = run(&broker, Retry::default(), permanent, "ack").await;
    let not = "dead permanent 1 not confirmed";
    assert_eq!(log, [not, not, not, "dead permanent 1", "ack", "closed"]);
}

/// Three messages of three keys.
fn three(script: Script) -> Scribe {
    let broker = Scribe::new(script);
    let message = |number: u8| {
        let event = NotificationEvent::new(Ordered { number: number.into() });
        let mut message = Incoming::new("paid", serde_json::to_vec(&event).unwrap());
        (message.key, message.partition) = (Some(vec![number].into()), Some(0));
        message.offset = Some(number.into());
        message
    };
    *broker.messages.lock().unwrap() = (1..=3).map(message).collect();
    broker
}

#[tokio::test(start_paused = true)]
async fn acked_settlement_is_dropped_before_the_next_handler_ends() {
    let broker = three(Script { writes_drops: true, ..Script::default() });
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let waits = {
        let gate = Arc::clone(&gate);
        each(move |event: NotificationEvent<Ordered>, _: Received| {
            let gate = Arc::clone(&gate);
            async move {
                if event.payload.number == 3 {
                    let _open = gate.acquire().await;
                }
                Ok(())
            }
        })
    };
    let subscription = paid(Retry::none()).concurrency(1);
    let service = Service::builder(broker.clone()).subscribe(subscription, waits).build().unwrap();
    let log = broker.log.clone();
    let seen = async move {
        // The second and the third are one run of the worker.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(log.lines(), ["ack", "drop 1", "ack", "drop 2"]);
        gate.close();
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    drop(service.run_until(seen).await.unwrap());
    assert_eq!(broker.log.lines()[4..], ["ack", "drop 3", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn refused_dead_letter_holds_only_its_message() {
    for (concurrency, size) in [(1, 1), (4, 1), (1, 2)] {
        let broker = three(Script { refusals: 3, ..Script::default() });
        let first_fails = |number: u32| match number {
            1 => Err("never").permanent(),
            _ => Ok(()),
        };
        let subscription =
            || Subscription::to("paid").group("g").json::<Ordered>().concurrency(concurrency);
        let builder = Service::builder(broker.clone());
        let builder = match size {
            1 => builder.subscribe(
                subscription(),
                each(move |event: NotificationEvent<Ordered>, _: Received| async move {
                    first_fails(event.payload.number)
                }),
            ),
            _ => builder.subscribe(
                subscription(),
                batch(
                    size,
                    Duration::from_millis(10),
                    move |events: Vec<(NotificationEvent<Ordered>, Received)>| async move {
                        events.iter().try_for_each(|(event, _)| first_fails(event.payload.number))
                    },
                ),
            ),
        };
        let service = builder.build().unwrap();
        let (health, log) = (service.health(), broker.log.clone());
        let seen = async move {
            while log.count("ack") < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(log.count("dead permanent 1 refused"), 1, "no worker waits for it");
            let state = health.subscriptions().remove(0).state;
            let SubscriptionState::Stuck { reason } = state else { panic!("{state:?}") };
            assert!(
                reason.contains("paid [0] at offset 1") && reason.contains("too large"),
                "{reason}"
            );
            assert!(health.is_ready(), "the others go on");
            while log.count("ack") < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(health.subscriptions()[0].state, SubscriptionState::Consuming);
        };
        let report = service.run_until(seen).await.unwrap();
        let counts = report.subscriptions[0].counts;
        assert_eq!((counts.handled, counts.dead_lettered), (2, 1), "batches of {size}");
        let lines = broker.log.lines();
        assert_eq!(lines.iter().filter(|line| line.ends_with("refused")).count(), 3, "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn error_lines_name_the_first_ten_held_messages() {
    let lines = Lines::default();
    let _guard = lines.record();
    let broker = Scribe::new(Script { refusals: usize::MAX, ..Script::default() });
    let body = broker.messages.lock().unwrap()[0].body.clone().unwrap();
    let message = |offset| {
        let mut message = Incoming::new("paid", body.clone());
        message.offset = Some(offset);
        message
    };
    *broker.messages.lock().unwrap() = (100..125).map(message).collect();
    let never = each(|_: NotificationEvent<Ordered>, _: Received| async { Err("no").permanent() });
    let subscription = paid(Retry::none()).concurrency(4);
    let service = Service::builder(broker.clone()).subscribe(subscription, never).build().unwrap();
    let all = async {
        while broker.log.count("dead permanent 1 refused") < 25 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    drop(service.run_until(all).await.unwrap());
    let refused = lines.with("the broker refuses the dead letter");
    assert_eq!(refused.len(), 10, "{refused:?}");
    assert!(refused.iter().all(|line| line.starts_with("ERROR ")), "{refused:?}");
    let named = (100..125)
        .filter(|offset| refused.iter().any(|line| line.contains(&format!("offset={offset} "))));
    assert_eq!(named.count(), 10, "each names another one: {refused:?}");
    let repeated = lines.with("copies that the broker refuses");
    assert!(repeated.len() == 1 && repeated[0].contains("repeats=15"), "{repeated:?}");
}

#[tokio::test(start_paused = true)]
async fn held_or_returned_delivery_is_postponed() {
    let script = Script { writes_starts: true, refusals: 1, ..Script::default() };
    let never = each(|_: NotificationEvent<Ordered>, _: Received| async { Err("no").permanent() });
    let (log, _) = run(&Scribe::new(script), Retry::none(), never, "ack").await;
    let refused = "dead permanent 1 refused";
    assert_eq!(log, ["begin", refused, "postpone", "begin", "dead permanent 1", "ack", "closed"]);

    let script = Script { writes_starts: true, ..Script::default() };
    let was_returned = AtomicBool::new(false);
    let returned_once = manual(move |_: NotificationEvent<Ordered>, delivery: Delivery| {
        let settles = was_returned.swap(true, Ordering::Relaxed);
        async move {
            match settles {
                true => delivery.ack().await.unwrap(),
                false => drop(delivery),
            }
        }
    });
    let (log, _) = run(&Scribe::new(script), Retry::none(), returned_once, "ack").await;
    assert_eq!(log, ["begin", "postpone", "begin", "ack", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn refused_retry_copy_is_tried_again_and_not_handled() {
    let broker = three(Script { scheduled: true, refusals: 2, ..Script::default() });
    let failing = each(|event: NotificationEvent<Ordered>, _: Received| async move {
        match event.payload.number {
            1 => Err(HandlerError::retryable("not yet")),
            _ => Ok(()),
        }
    });
    let (log, report) = run(&broker, delayed(10), failing, "copy 1 in 10s").await;
    let refused = "copy 1 in 10s refused";
    assert_eq!(log, [refused, "ack", "ack", refused, "copy 1 in 10s", "ack", "closed"]);
    let counts = report.unwrap().subscriptions[0].counts;
    assert_eq!((counts.handled, counts.rescheduled, counts.failed_attempts), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn stop_gives_back_message_with_refused_copy() {
    let broker = three(Script { refusals: usize::MAX, ..Script::default() });
    let permanent =
        each(|_: NotificationEvent<Ordered>, _: Received| async { Err("never").permanent() });
    let (log, report) = run(&broker, Retry::none(), permanent, "dead permanent 1").await;
    assert_eq!(log[log.len() - 2..], ["given back", "closed"], "{log:?}");
    assert_eq!(report.unwrap().subscriptions[0].counts.given_back, 1);
}

#[tokio::test(start_paused = true)]
async fn unreadable_or_oversized_message_is_not_decoded() {
    let event = serde_json::to_vec(&NotificationEvent::new(Ordered { number: 1 })).unwrap();
    let mut unreadable = Incoming::new("paid", event.clone());
    unreadable.unreadable = Some("too many headers".into());
    let mut oversized = event.clone();
    oversized.resize((8 << 20) + 1, b' ');
    let mut largest = event;
    largest.resize(8 << 20, b' ');
    for (message, first) in [
        (unreadable, "dead decode 0"),
        (Incoming::new("paid", oversized), "dead decode 0"),
        (Incoming::new("paid", largest), "ack"),
    ] {
        let broker = Scribe::new(Script::default());
        *broker.messages.lock().unwrap() = VecDeque::from([message]);
        let fine = each(|_: NotificationEvent<Ordered>, _: Received| async { Ok(()) });
        let (log, _) = run(&broker, Retry::none(), fine, "ack").await;
        assert_eq!(log[0], first, "{log:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn stop_with_unconfirmed_dead_letter_gives_back() {
    let broker = Scribe::new(Script { copies_fail: usize::MAX, ..Script::default() });
    let (log, report) =
        run(&broker, Retry::none(), failing(), "dead exhausted 1 not confirmed").await;
    assert_eq!(log[log.len() - 2..], ["given back", "closed"], "{log:?}");
    assert_eq!(log.iter().filter(|line| *line == "ack").count(), 0);
    assert_eq!(report.unwrap().subscriptions[0].counts.given_back, 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_taken_away_is_not_handled() {
    let broker = Scribe::new(Script { revoked: true, ..Script::default() });
    let never = each(|_: NotificationEvent<Ordered>, _: Received| async { panic!("it ran") });
    let (log, report) = run(&broker, Retry::none(), never, "given back").await;
    assert_eq!(log, ["given back", "closed"]);
    assert_eq!(report.unwrap().subscriptions[0].counts.revoked, 1);
}

#[tokio::test(start_paused = true)]
async fn revoked_held_message_frees_its_key() {
    let broker = Scribe::new(Script { revoked_when_held: true, ..Script::default() });
    let started = tokio::time::Instant::now();
    let (log, _) = run(&broker, delayed(300), failing(), "given back").await;
    assert_eq!(log, ["copy 1 in 300s", "given back", "closed"]);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn revoke_keeps_pause_of_the_rest_of_a_failed_batch() {
    let revoked = Some(Duration::from_secs(10));
    let broker = three(Script { first_revoked_after: revoked, ..Script::default() });
    let (log, started) = (broker.log.clone(), tokio::time::Instant::now());
    let target = batch(3, Duration::from_secs(1), {
        move |events: Vec<(NotificationEvent<Ordered>, Received)>| {
            let numbers: Vec<_> = events.iter().map(|(event, _)| event.payload.number).collect();
            log.add(format!("{numbers:?} after {} min", started.elapsed().as_secs() / 60));
            async { Err(HandlerError::retryable("not yet")) }
        }
    });
    let retry = Retry::none().immediate([Duration::from_secs(120)]);
    let (log, report) = run(&broker, retry, target, "[2, 3] after 2 min").await;
    assert_eq!(log[..3], ["[1, 2, 3] after 0 min", "given back", "[2, 3] after 2 min"]);
    assert_eq!(report.unwrap().subscriptions[0].counts.revoked, 1);
}

#[tokio::test(start_paused = true)]
async fn an_ack_that_fails_is_counted_and_settles_nothing() {
    let broker = Scribe::new(Script { acks_fail: true, ..Script::default() });
    let fine = each(|_: NotificationEvent<Ordered>, _: Received| async { Ok(()) });
    let (log, report) = run(&broker, Retry::none(), fine, "given back").await;
    assert_eq!(log, ["ack failed", "given back", "closed"]);
    let counts = report.unwrap().subscriptions[0].counts;
    assert_eq!((counts.handled, counts.unacked), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn max_crashes_dead_letters_without_another_start() {
    let handled = vec!["ack", "closed"];
    let dead = vec!["dead exhausted 0", "ack", "closed"];
    for (max_crashes, crashes, expected) in
        [(3, 2, &handled), (3, 3, &dead), (1, 1, &dead), (0, 1, &handled), (0, 9, &handled)]
    {
        let broker = Scribe::new(Script { crashes, ..Script::default() });
        let fine = each(|_: NotificationEvent<Ordered>, _: Received| async { Ok(()) });
        let subscription = paid(Retry::none()).max_crashes(max_crashes);
        let (log, _) = run_with(&broker, subscription, fine, "ack").await;
        assert_eq!(log, *expected, "{crashes} of {max_crashes}");
    }
}

#[tokio::test(start_paused = true)]
async fn unpublished_events_do_not_repeat_committed_work() {
    struct Ship(Log);
    impl EventHandler<Ordered> for Ship {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            self.0.add("handled");
            // The broker refuses it every time.
            scope.emit(NotificationEvent::new(Shipped { number: 1 }).with_topic("refused"));
            scope.emit(Shipped { number: 2 });
            Ok(())
        }
    }
    let broker = Scribe::new(Script::default());
    let events = EventMediator::builder()
        .event::<Ordered, _>(Ship(broker.log.clone()))
        .broker(broker.clone())
        .build()
        .unwrap();
    let service = Service::builder(broker.clone())
        .subscribe(Subscription::to("paid").group("g").json::<Ordered>(), events)
        .drain_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let report = service.run_until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!(broker.log.count("handled"), 1, "never again in this process");
    assert_eq!(broker.log.count("ack"), 0, "and not acked before its events are out");
    assert_eq!(report.subscriptions[0].cancelled, 1);
}

#[tokio::test(start_paused = true)]
async fn timeout_does_not_repeat_committed_work() {
    struct Ship(Log);
    impl EventHandler<Ordered> for Ship {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            self.0.add("handled");
            scope.unit_of_work::<Transaction>().await?.write("shipment");
            scope.emit(NotificationEvent::new(Shipped { number: 1 }).with_topic("refused"));
            Ok(())
        }
    }
    let broker = Scribe::new(Script::default());
    let events = EventMediator::builder()
        .event::<Ordered, _>(Ship(broker.log.clone()))
        .unit_of_work(Store::new(&broker.log, Fault::None))
        .broker(broker.clone())
        .build()
        .unwrap();
    let subscription = Subscription::to("paid").group("g").json::<Ordered>();
    let service = Service::builder(broker.clone())
        .subscribe(subscription.timeout(Duration::from_secs(1)), events)
        .drain_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let report = service.run_until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!((broker.log.count("handled"), broker.log.count("commit")), (1, 1));
    assert_eq!(broker.log.count("ack"), 0, "its event is not out");
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.failed_attempts, counts.given_back), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_before_the_commit_rolls_back_and_counts() {
    struct Slow;
    impl EventHandler<Ordered> for Slow {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            scope.unit_of_work::<Transaction>().await?.write("shipment");
            std::future::pending().await
        }
    }
    let broker = Scribe::new(Script::default());
    let events = EventMediator::builder()
        .event::<Ordered, _>(Slow)
        .unit_of_work(Store::new(&broker.log, Fault::None))
        .build()
        .unwrap();
    let subscription = Subscription::to("paid").group("g").json::<Ordered>();
    let service = Service::builder(broker.clone())
        .subscribe(subscription.timeout(Duration::from_secs(1)).retry(Retry::none()), events)
        .build()
        .unwrap();
    let _ = service.run_until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!((broker.log.count("rollback"), broker.log.count("commit")), (1, 0));
    assert_eq!(broker.log.count("dead exhausted 1"), 1);
}

#[tokio::test(start_paused = true)]
async fn broker_panic_does_not_repeat_committed_work() {
    /// Refuses the first message, panics on the second, and confirms the others.
    #[derive(Debug)]
    struct Fragile(RecordingBroker, Mutex<u32>);
    impl MessageBroker for Fragile {
        fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
            let mut calls = self.1.lock().unwrap();
            *calls += 1;
            let calls = *calls;
            Box::pin(async move {
                match calls {
                    1 => {
                        let kind = cqrs_core::PublishErrorKind::NotSent;
                        Err(PublishError::new(kind, message, "not now"))
                    }
                    2 => panic!("a broker that panics"),
                    _ => self.0.enqueue(message).await,
                }
            })
        }
        fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
            self.0.try_enqueue(message)
        }
        fn state(&self) -> BrokerState {
            BrokerState::Ready
        }
        fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
            self.0.shutdown(deadline)
        }
    }
    struct Ship(Log);
    impl EventHandler<Ordered> for Ship {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            self.0.add("handled");
            scope.emit(Shipped { number: 1 });
            Ok(())
        }
    }
    let broker = Scribe::new(Script::default());
    let events = EventMediator::builder()
        .event::<Ordered, _>(Ship(broker.log.clone()))
        .broker(Fragile(broker.inner.clone(), Mutex::default()))
        .build()
        .unwrap();
    let (log, _) = run(&broker, Retry::default(), events, "ack").await;
    assert_eq!(log, ["handled", "publish Shipped", "ack", "closed"]);
}
