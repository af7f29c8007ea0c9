//! Test of the bound on unsettled records: a partition with waiting records leaves room for the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cqrs_core::service::SubscriptionState;
use cqrs_core::{HandlerError, NotificationEvent, Received, Retry, Service, Subscription, each};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_macros::Notification;
use integration_tests::consuming::TIMEOUT;
use integration_tests::consuming::fixture::until;
use integration_tests::kafka::{Raw, create_topic, fresh_topic, write};
use integration_tests::{log, servers};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "orders")]
struct Ordered {
    key: String,
    number: u32,
}

fn record(partition: i32, key: &str, number: u32) -> Raw {
    let event = NotificationEvent::new(Ordered { key: key.into(), number });
    let mut raw = Raw::new(key, &serde_json::to_string(&event).unwrap());
    raw.partition = partition;
    raw
}

/// FAULTS.md, 13: one key is stuck. The other keys of its partition go on as far as the bound allows, the other
/// partition at full speed; nothing is skipped.
#[tokio::test]
async fn stuck_key_leaves_room_for_other_partitions() {
    log::show_warnings();
    const BEHIND: u32 = 2_500;
    let topic = fresh_topic("bound");
    create_topic(&topic, 2, &[]).await;
    let mut records = vec![record(0, "stuck", 0)];
    records.extend((0..50).map(|number| record(0, &format!("near-{number}"), number)));
    records.extend((1..=BEHIND).map(|number| record(0, "stuck", number)));
    write(&topic, records).await;
    let late = (0..1_000).map(|number| record(1, &format!("key-{}", number % 50), number));
    let late: Vec<_> = late.collect();
    let handled: Arc<Mutex<HashMap<String, Vec<u32>>>> = Arc::default();
    let stuck = Arc::new(Mutex::new(true));
    let (seen, is_stuck) = (Arc::clone(&handled), Arc::clone(&stuck));
    let handler = each(move |event: NotificationEvent<Ordered>, _: Received| {
        let (seen, is_stuck) = (Arc::clone(&seen), Arc::clone(&is_stuck));
        async move {
            let Ordered { key, number } = event.payload;
            if key == "stuck" && *is_stuck.lock().unwrap() {
                return Err(HandlerError::retryable("stuck"));
            }
            seen.lock().unwrap().entry(key).or_default().push(number);
            Ok(())
        }
    });
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka()])).unwrap();
    let subscription = Subscription::to(&*topic)
        .group("g")
        .json::<Ordered>()
        .concurrency(8)
        .max_unsettled(1_000)
        .retry(Retry::none().delayed([Duration::from_millis(500); 1_000]));
    let service = Service::builder(broker).subscribe(subscription, handler).build().unwrap();
    let health = service.health();
    let counts = Arc::clone(&handled);
    let done = async move {
        let end = Instant::now() + TIMEOUT;
        let count = |prefix: &str| -> usize {
            let all = counts.lock().unwrap();
            all.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, seen)| seen.len()).sum()
        };
        loop {
            let state = health.subscriptions().remove(0).state;
            if let SubscriptionState::Full { reason } = &state
                && count("near") == 50
            {
                assert!(reason.contains(&format!("{topic} [0]")), "{reason}");
                assert!(health.is_ready());
                break;
            }
            assert!(Instant::now() < end, "{} handled, {state:?}", count("near"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        write(&topic, late).await;
        until("the other partition to be handled", async || count("key") >= 1_000).await;
        assert_eq!(count("stuck"), 0);
        *stuck.lock().unwrap() = false;
        until("the stuck key to be handled", async || count("stuck") > BEHIND as usize).await;
    };
    service.run_until(done).await.unwrap();
    for (key, seen) in handled.lock().unwrap().iter() {
        assert!(seen.is_sorted_by(|one, next| one < next), "{key}: {seen:?}");
    }
}
