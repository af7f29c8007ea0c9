//! Cases of the window and of the deadline of a publish.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::broker::Receipt;
use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishErrorKind};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::fixture::{ProducingFixture, SLACK, WAITS, assert_kind, numbers};
use crate::conformance::harness::{Harness, Setup};
use crate::error_chain;

const WINDOW: usize = 8;

/// Enqueues until an `enqueue` waits, and cancels that one.
async fn fill(
    broker: &dyn MessageBroker,
    limit: usize,
    message: impl Fn(usize) -> Message,
) -> Vec<Receipt> {
    let mut taken = Vec::new();
    loop {
        match timeout(WAITS, broker.enqueue(message(taken.len()))).await {
            Ok(enqueued) => {
                taken.push(enqueued.unwrap_or_else(|error| panic!("{}", error_chain(&error))));
            }
            Err(_waits) => return taken,
        }
        let taken = taken.len();
        assert!(taken <= limit, "the window is ignored: {taken} in flight without a confirm");
    }
}

/// Messages of `body` bytes, of which `fits` fit into the window.
async fn full_window<H: Harness>(harness: &H, setup: Setup, body: usize, fits: usize) {
    if !harness.capabilities().stall {
        return;
    }
    let mut fixture = ProducingFixture::stalled(harness, setup).await;
    let topic = fixture.topic.clone();
    let message = |number: usize| {
        // A number with leading zeros, as long as asked.
        Message::new(topic.as_str(), format!("{number:0body$}")).with_key("k")
    };
    let receipts = fill(&*fixture.broker, fits + SLACK, message).await;
    let taken = receipts.len();
    assert!(taken >= fits, "enqueue waits with {taken} of {fits} in flight");
    let full = fixture.broker.try_enqueue(message(taken)).expect_err("the window is full");
    assert_kind(&full, &[PublishErrorKind::Full]);

    let broker = Arc::clone(&fixture.broker);
    let last = message(taken);
    let waiting = tokio::spawn(async move { broker.publish(last).await });
    fixture.resume().await;
    let received = fixture.receive_all(taken + 1).await;
    assert_eq!(numbers(&received), (0..=taken).collect::<Vec<_>>());
    fixture.all_confirmed(receipts).await;
    let last = fixture.within("the publish that waited", waiting).await.expect("no panic");
    last.unwrap_or_else(|error| panic!("the publish that waited: {}", error_chain(&error)));
    let next = fixture.broker.try_enqueue(message(taken + 1)).expect("the window is free again");
    fixture.confirmed(next).await;
}

pub(crate) async fn a_full_window_makes_enqueue_wait<H: Harness>(harness: &H) {
    let setup = Setup { window_messages: WINDOW, ..Setup::default() };
    full_window(harness, setup, 1, WINDOW).await;
}

pub(crate) async fn a_full_byte_window_makes_enqueue_wait<H: Harness>(harness: &H) {
    // A message counts a little more than its body.
    let setup = Setup { window_bytes: 4 * 1_024 + 512, ..Setup::default() };
    full_window(harness, setup, 1_024, 4).await;
}

pub(crate) async fn a_message_larger_than_the_byte_window_goes_alone<H: Harness>(harness: &H) {
    let setup = Setup { window_bytes: 4 * 1_024, ..Setup::default() };
    let mut fixture = ProducingFixture::with(harness, setup).await;
    let mut receipts = Vec::new();
    for number in 0..10 {
        let body = format!("{number:020000}");
        let message = Message::new(fixture.topic.as_str(), body).with_key("k");
        receipts.push(fixture.enqueue(message).await);
    }
    fixture.all_confirmed(receipts).await;
    assert_eq!(numbers(&fixture.receive_all(10).await), (0..10).collect::<Vec<_>>());
}

pub(crate) async fn a_cancelled_enqueue_sends_nothing<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    drop(fixture.broker.enqueue(fixture.numbered(0)));
    fixture.publish(fixture.numbered(1)).await;
    assert_eq!(numbers(&fixture.receive_all(1).await), [1], "a future that was never polled");
    if !fixture.can.stall {
        return;
    }
    let setup = Setup { window_messages: WINDOW, ..Setup::default() };
    let mut fixture = ProducingFixture::stalled(harness, setup).await;
    let topic = fixture.topic.clone();
    let limit = WINDOW + SLACK;
    // The cancelled messages begin with the number of those taken.
    let message = |number: usize| Message::new(topic.as_str(), number.to_string()).with_key("k");
    let receipts = fill(&*fixture.broker, limit, message).await;
    let taken = receipts.len();
    for number in taken..taken + 3 {
        let waiting = timeout(Duration::from_millis(20), fixture.broker.enqueue(message(number)));
        assert!(waiting.await.is_err(), "the window is full");
    }
    fixture.resume().await;
    let received = fixture.receive(taken).await;
    fixture.all_confirmed(receipts).await;
    assert_eq!(numbers(&received), (0..taken).collect::<Vec<_>>());
    fixture.publish(message(1_000)).await;
    assert_eq!(numbers(&fixture.receive_all(1).await), [1_000], "a cancelled one arrived");
}

pub(crate) async fn no_publish_outlives_its_deadline<H: Harness>(harness: &H) {
    const COUNT: usize = 48;
    const DEADLINE: Duration = Duration::from_secs(2);
    const GRACE: Duration = Duration::from_secs(10);
    if !harness.capabilities().stall {
        return;
    }
    let setup = Setup { window_messages: WINDOW, publish_timeout: DEADLINE, ..Setup::default() };
    let mut fixture = ProducingFixture::stalled(harness, setup).await;
    let mut publishes = JoinSet::new();
    for number in 0..COUNT {
        let (broker, message) = (Arc::clone(&fixture.broker), fixture.numbered(number));
        publishes.spawn(async move {
            let started = Instant::now();
            let ended = timeout(DEADLINE + GRACE, broker.publish(message)).await;
            (number, ended, started.elapsed())
        });
    }
    let (mut not_sent, mut unknown) = (Vec::new(), 0);
    while let Some(publish) = publishes.join_next().await {
        let (number, ended, elapsed) = publish.expect("no panic");
        match ended {
            Err(_hangs) => panic!("a publish with a deadline of {DEADLINE:?} hangs"),
            Ok(Ok(_confirmed)) => {}
            Ok(Err(error)) => {
                let kinds = [PublishErrorKind::NotSent, PublishErrorKind::Unknown];
                assert_kind(&error, &kinds);
                assert!(
                    elapsed >= DEADLINE / 2,
                    "gave up after {elapsed:?}: {}",
                    error_chain(&error)
                );
                match error.kind() {
                    PublishErrorKind::NotSent => not_sent.push(number),
                    _ => unknown += 1,
                }
            }
        }
    }
    assert!(not_sent.len() >= COUNT - WINDOW - SLACK, "most never had room in the window");
    println!("{COUNT} publishes: {} not sent, {unknown} unknown", not_sent.len());

    // Publishing works again, and messages reported as not sent did not arrive.
    fixture.resume().await;
    let end = Instant::now() + fixture.can.timeout;
    let (broker, after) = (Arc::clone(&fixture.broker), fixture.numbered(1_000));
    let goes_on = async {
        while let Err(error) = broker.publish(after.clone()).await {
            assert!(Instant::now() < end, "still stalled: {}", error_chain(&error));
        }
    };
    let read = async {
        let mut arrived = Vec::new();
        while arrived.last() != Some(&1_000) {
            let next = fixture.probe.next(fixture.can.timeout).await;
            arrived.extend(numbers(&[next.expect("lost: the message after the stall")]));
        }
        arrived
    };
    let (arrived, ()) = tokio::join!(read, goes_on);
    for number in not_sent {
        assert!(!arrived.contains(&number), "{number} was said not to be sent, and arrived");
    }
}
