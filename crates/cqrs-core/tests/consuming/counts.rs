//! Tests that every received message is counted exactly once.

use cqrs_core::consume::DeadLetterTarget;
use cqrs_core::memory::{MemoryRetry, MemorySubscription};
use cqrs_core::service::SubscriptionCounts;

use super::*;

/// The sum in the documentation of [`SubscriptionCounts`].
fn sum(counts: SubscriptionCounts) -> u64 {
    let settled = counts.handled + counts.skipped + counts.dead_lettered + counts.discarded;
    settled + counts.rescheduled + counts.given_back + counts.revoked + counts.unacked
}

fn ended(broker: &MemoryBroker, running: &Running) -> bool {
    let received = running.health.subscriptions().remove(0).counts.received;
    received > 0 && broker.unsettled("users", "mailer") == 0
}

#[tokio::test(start_paused = true)]
async fn stop_now_counts_no_idle_worker_as_cancelled() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    for step in 1..=3 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let running = run(&broker, users().concurrency(3), noting(&seen, |_, _| Ok(())));
    until("all handled", || running.health.subscriptions()[0].counts.handled == 3).await;
    running.stop.stop_now();
    let report = running.end().await;
    let [mine] = &*report.subscriptions else { panic!("one subscription") };
    assert_eq!((mine.cancelled, mine.counts.given_back), (0, 0));
    assert_eq!(sum(mine.counts), mine.counts.received);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_cancelled_is_given_back_as_a_whole() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = batch(3, Duration::from_secs(1), {
        let seen = seen.clone();
        move |_: Vec<(NotificationEvent<UserCreated>, Received)>| {
            record(&seen, "start");
            std::future::pending::<Result<(), HandlerError>>()
        }
    });
    for step in 1..=5 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let running = run(&broker, users(), target);
    until("it runs", || !records(&seen).is_empty()).await;
    running.stop.stop_now();
    let report = running.end().await;
    let [mine] = &*report.subscriptions else { panic!("one subscription") };
    assert_eq!(mine.cancelled, 1, "one handler ran");
    assert_eq!((mine.counts.received, mine.counts.given_back), (5, 5));
}

#[tokio::test(start_paused = true)]
async fn manual_settlements_are_counted_as_others() {
    for (to, discarded) in [(DeadLetterTarget::Default, 0), (DeadLetterTarget::Discard, 1)] {
        let broker = MemoryBroker::new();
        let target = manual(|_: NotificationEvent<UserCreated>, delivery: Delivery| async {
            delivery.dead_letter(HandlerError::permanent("no")).await.unwrap();
        });
        publish(&broker, "ada", 1).await;
        let running = run(&broker, users().dead_letter(to), target);
        until("it ended", || ended(&broker, &running)).await;
        let counts = running.end().await.subscriptions[0].counts;
        assert_eq!((counts.discarded, counts.dead_lettered), (discarded, 1 - discarded));
    }
}

#[tokio::test(start_paused = true)]
async fn copy_without_acked_original_counts_as_unacked() {
    let broker = MemoryBroker::new();
    broker.faults().fail_acks(1);
    let target = manual(|_: NotificationEvent<UserCreated>, delivery: Delivery| async {
        match delivery.attempt() {
            1 => delivery.retry_later(Duration::from_secs(1)).await.unwrap(),
            _ => delivery.ack().await.unwrap(),
        }
    });
    publish(&broker, "ada", 1).await;
    let subscription =
        users().option(MemorySubscription::default().with_retry(MemoryRetry::Scheduled));
    let running = run(&broker, subscription, target);
    until("all ended", || ended(&broker, &running)).await;
    let counts = running.end().await.subscriptions[0].counts;
    assert_eq!((counts.unacked, sum(counts)), (1, counts.received));
}

#[tokio::test(start_paused = true)]
async fn retried_dead_letter_counts_no_attempt() {
    let broker = MemoryBroker::new();
    broker.faults().fail_dead_letters(3);
    let target = manual(|_: NotificationEvent<UserCreated>, mut delivery: Delivery| async {
        while let Err(not) = delivery.dead_letter(HandlerError::permanent("no")).await {
            delivery = not.delivery;
        }
    });
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), target);
    until("the dead letter", || dead_letters(&broker).len() == 1).await;
    drop(running.end().await);
    assert_eq!(dead_letters(&broker)[0].1.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn delivery_kept_by_handler_is_counted_on_drop() {
    let (broker, kept) = (MemoryBroker::new(), Arc::new(Mutex::new(None)));
    let target = {
        let kept = Arc::clone(&kept);
        manual(move |_: NotificationEvent<UserCreated>, delivery: Delivery| {
            *kept.lock().unwrap() = Some(delivery);
            async {}
        })
    };
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), target);
    until("it is kept", || kept.lock().unwrap().is_some()).await;
    let health = running.health.clone();
    running.stop.stop_now();
    let report = running.end().await;
    assert_eq!((report.subscriptions[0].cancelled, sum(report.subscriptions[0].counts)), (1, 0));
    drop(kept.lock().unwrap().take());
    assert_eq!(health.subscriptions()[0].counts.given_back, 1);
}
