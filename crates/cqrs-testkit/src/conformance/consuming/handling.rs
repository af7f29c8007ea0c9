//! Cases of handling: acks after the handler, keys in parallel, each in order.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;

use cqrs_core::consume::TopicSet;
use cqrs_core::service::SubscriptionState;
use cqrs_core::{EventHandler, EventMediator, HandlerError, NotificationEvent, Scope};

use super::service::Log;
use crate::conformance::fixture::{Counted, Fixture, KEY};
use crate::conformance::harness::Harness;

pub(crate) async fn handled_messages_are_not_redelivered<H: Harness>(harness: &H) {
    const COUNT: u32 = 20;
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let running = fixture.run(fixture.subscription(), log.each(|_| Ok(()))).await;
    fixture.publish_events(COUNT).await;
    fixture.until("all are handled", || running.counts().handled == u64::from(COUNT)).await;
    let report = running.end().await;
    assert_eq!(log.numbers(KEY), (1..=COUNT).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(
        (report.counts.received, report.counts.handled),
        (u64::from(COUNT), u64::from(COUNT))
    );
    fixture.assert_all_settled().await;
}

pub(crate) async fn message_of_unfinished_handler_is_redelivered<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let never = log.each_async(|_| std::future::pending());
    let running = fixture.run(fixture.subscription(), never).await;
    fixture.publish_events(2).await;
    fixture.until("the first one runs", || log.len() == 1).await;
    running.crash().await;
    let running = fixture.run(fixture.subscription(), log.each(|_| Ok(()))).await;
    fixture.until("both are handled", || running.counts().handled == 2).await;
    running.end().await;
    assert_eq!(log.numbers(KEY), [1, 1, 2]);
    fixture.assert_all_settled().await;
}

pub(crate) async fn keys_run_in_parallel_and_each_in_order<H: Harness>(harness: &H) {
    const KEYS: u32 = 8;
    const EACH: u32 = 10;
    const AT_ONCE: usize = 4;
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let now: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let (most, overlap) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(false)));
    let handler = {
        let (now, most, overlap) = (now.clone(), most.clone(), overlap.clone());
        log.each_async(move |run| {
            let (now, most, overlap) = (now.clone(), most.clone(), overlap.clone());
            async move {
                {
                    let mut now = now.lock().expect("no panic");
                    *overlap.lock().expect("no panic") |= !now.insert(run.key.clone());
                    let mut most = most.lock().expect("no panic");
                    *most = now.len().max(*most);
                }
                tokio::time::sleep(Duration::from_millis(u64::from(run.number % 5) * 3)).await;
                now.lock().expect("no panic").remove(&run.key);
                Ok(())
            }
        })
    };
    fixture.make_group().await;
    // Two messages of a key are consecutive.
    let key = |number: u32| format!("key-{}", number / 2 % KEYS);
    fixture.publish_all((0..KEYS * EACH).map(|number| fixture.event(&key(number), number))).await;
    let running = fixture.run(fixture.subscription().concurrency(AT_ONCE), handler).await;
    let all = u64::from(KEYS * EACH);
    fixture.until("all are handled", || running.counts().handled == all).await;
    running.end().await;
    for first in (0..2 * KEYS).step_by(2).map(key) {
        let sent: Vec<_> = (0..KEYS * EACH).filter(|number| key(*number) == first).collect();
        assert_eq!(log.numbers(&first), sent, "{first}");
    }
    assert!(!*overlap.lock().expect("no panic"), "two of one key at once");
    let most = *most.lock().expect("no panic");
    assert!((2..=AT_ONCE).contains(&most), "{most} at once, of {AT_ONCE}");
    fixture.assert_all_settled().await;
}

pub(crate) async fn a_busy_key_does_not_stall_the_others<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let gate = Arc::new(Semaphore::new(0));
    let handler = {
        let gate = Arc::clone(&gate);
        log.each_async(move |run| {
            let gate = Arc::clone(&gate);
            async move {
                if run.key == KEY {
                    gate.acquire().await.expect("never closed").forget();
                }
                Ok(())
            }
        })
    };
    let running = fixture.run(fixture.subscription().concurrency(2), handler).await;
    fixture.publish_events(2).await;
    fixture.until("the key is busy", || log.len() == 1).await;
    let other = |number: u32| fixture.event(&format!("other-{number}"), number);
    fixture.publish_all((0..10).map(other)).await;
    fixture.until("the others are handled", || running.counts().handled == 10).await;
    assert_eq!(log.numbers(KEY), [1], "the second of the key waits");
    gate.add_permits(2);
    fixture.until("all are handled", || running.counts().handled == 12).await;
    running.end().await;
    fixture.assert_all_settled().await;
}

/// Emits the event that it gets to another topic.
struct Forward {
    log: Log,
    to: String,
}

impl EventHandler<Counted> for Forward {
    async fn handle(&self, event: &Counted, scope: &mut Scope) -> Result<(), HandlerError> {
        self.log.add(event, 1);
        scope.emit(NotificationEvent::new(event.clone()).with_topic(self.to.clone()));
        Ok(())
    }
}

pub(crate) async fn event_is_published_before_its_cause_is_acked<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let to = harness.fresh_topic().await;
    let events = EventMediator::builder()
        .event::<Counted, _>(Forward { log: log.clone(), to: to.clone() })
        .broker(Arc::clone(&fixture.broker))
        .build()
        .expect("a handler");
    let running = fixture.run(fixture.subscription(), events).await;
    fixture.publish_events(1).await;
    if fixture.can.unroutable {
        let is_held = || matches!(running.state(), SubscriptionState::Stuck { .. });
        fixture.until("the message is held, as its event is unroutable", is_held).await;
        let counts = running.counts();
        assert_eq!((counts.handled, counts.dead_lettered), (0, 0), "not settled before");
    } else {
        fixture.until("it is acked", || running.counts().handled == 1).await;
    }
    let to_topic = |topics: &mut TopicSet| *topics = TopicSet::Named(vec![to.as_str().into()]);
    let mut receiver = fixture.open_with(|request| to_topic(&mut request.topics)).await;
    if fixture.can.unroutable || fixture.can.history {
        let event = receiver.ack_next_unrevoked().await;
        assert!(event.contains("Counted"), "the event: {event}");
    }
    receiver.close().await;
    fixture.until("it is acked", || running.counts().handled == 1).await;
    assert_eq!(running.end().await.counts.failed_attempts, 0);
    assert_eq!(log.attempts(), ["1#1"], "committed work is not repeated");
    fixture.assert_all_settled().await;
}
