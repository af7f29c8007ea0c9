//! Tests of order and concurrency.

use super::*;

#[tokio::test(start_paused = true)]
async fn keys_run_in_parallel_and_each_in_order() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let running_now: Arc<Mutex<Vec<String>>> = Arc::default();
    let (most, overlaps) = (Arc::new(Mutex::new(0)), Records::default());
    let target = {
        let (seen, now, most) = (seen.clone(), running_now.clone(), most.clone());
        let overlaps = overlaps.clone();
        each(move |event: NotificationEvent<UserCreated>, _: Received| {
            let (seen, now, most) = (seen.clone(), now.clone(), most.clone());
            let overlaps = overlaps.clone();
            async move {
                let UserCreated { user_id, step } = event.payload;
                {
                    let mut now = now.lock().unwrap();
                    // A panic here would be a failed attempt, and retried.
                    if now.contains(&user_id) {
                        record(&overlaps, user_id.clone());
                    }
                    now.push(user_id.clone());
                    let mut most = most.lock().unwrap();
                    *most = now.len().max(*most);
                }
                tokio::time::sleep(Duration::from_millis(u64::from(5 - step % 3))).await;
                record(&seen, format!("{user_id}:{step}"));
                let mut now = now.lock().unwrap();
                let mine = now.iter().position(|running| *running == user_id).unwrap();
                now.remove(mine);
                Ok::<(), HandlerError>(())
            }
        })
    };
    // Three messages of a key in a row, the earlier ones slower.
    for step in 0..300_u32 {
        publish(&broker, &format!("u{}", step / 3 % 10), step).await;
    }
    let running = run(&broker, users().concurrency(4), target);
    until("all of them", || records(&seen).len() == 300).await;
    let report = running.end().await;
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.failed_attempts), (300, 0));
    assert!(records(&overlaps).is_empty(), "two of one key at once: {:?}", records(&overlaps));
    assert_eq!(*most.lock().unwrap(), 4, "as many as allowed, never more");
    for user in 0..10 {
        let prefix = format!("u{user}:");
        let steps: Vec<u32> = records(&seen)
            .iter()
            .filter_map(|text| text.strip_prefix(&prefix)?.parse().ok())
            .collect();
        assert!(steps.is_sorted() && steps.len() == 30, "{steps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poison_key_waits_alone() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = noting(&seen, |event, _| match &*event.user_id {
        "poison" => Err(HandlerError::retryable("no")),
        _ => Ok(()),
    });
    publish(&broker, "poison", 1).await;
    publish(&broker, "poison", 2).await;
    for step in 0..50 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let retry = Retry::none().delayed([Duration::from_secs(60)]);
    let started = Instant::now();
    let running = run(&broker, users().concurrency(2).retry(retry), target);
    until("the others", || records(&seen).len() == 51).await;
    assert!(started.elapsed() < Duration::from_secs(1), "nobody waited for the poison key");
    assert!(!records(&seen).contains(&"poison:2#1".to_owned()), "its own key waits");
    until("both are dead", || dead_letters(&broker).len() == 2).await;
    let mine: Vec<_> = records(&seen).into_iter().filter(|t| t.starts_with("poison")).collect();
    assert_eq!(mine, ["poison:1#1", "poison:1#2", "poison:2#1", "poison:2#2"]);
    drop(running.end().await);
}

#[tokio::test(start_paused = true)]
async fn strict_order_is_the_default_whatever_the_key() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = noting(&seen, |event, attempt| match (event.step, attempt) {
        (1, 1..=2) => Err(HandlerError::retryable("not yet")),
        _ => Ok(()),
    });
    for step in 0..4 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let retry = Retry::none().delayed([Duration::from_secs(10), Duration::from_secs(60)]);
    let running = run(&broker, users().retry(retry), target);
    until("all of them", || records(&seen).len() == 6).await;
    assert_eq!(records(&seen), ["u0:0#1", "u1:1#1", "u1:1#2", "u1:1#3", "u2:2#1", "u3:3#1"]);
    drop(running.end().await);
}

/// Handlers that wait for each other hang when a worker sleeps through a job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_run_as_may_however_the_messages_come() {
    const AT_ONCE: usize = 8;
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let together = Arc::new(tokio::sync::Barrier::new(AT_ONCE));
    let target = {
        let (seen, together) = (seen.clone(), together.clone());
        each(move |event: NotificationEvent<UserCreated>, _: Received| {
            let (seen, together) = (seen.clone(), together.clone());
            async move {
                together.wait().await;
                record(&seen, format!("{}", event.payload.step));
                Ok::<(), HandlerError>(())
            }
        })
    };
    let running = run(&broker, users().concurrency(AT_ONCE), target);
    let rounds = 300;
    for round in 0..rounds {
        for step in 0..AT_ONCE as u32 {
            publish(&broker, &format!("u{round}-{step}"), step).await;
            if (round + step) % 5 == 0 {
                tokio::task::yield_now().await;
            }
        }
        if round % 3 == 0 {
            let so_far = (round as usize + 1) * AT_ONCE;
            let all = async {
                while records(&seen).len() < so_far {
                    tokio::task::yield_now().await;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(20), all).await;
            assert!(in_time.is_ok(), "{} of {so_far}: a worker sleeps", records(&seen).len());
        }
    }
    let all = rounds as u64 * AT_ONCE as u64;
    let handled = async {
        while running.health.subscriptions()[0].counts.handled < all {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), handled).await.expect("all of them");
    drop(running.end().await);
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_pause_run_with_full_concurrency() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = {
        let seen = seen.clone();
        each(move |event: NotificationEvent<UserCreated>, _: Received| {
            let seen = seen.clone();
            async move {
                if event.payload.step == 0 {
                    return Err(HandlerError::permanent("no"));
                }
                record(&seen, format!("{}", event.payload.step));
                std::future::pending().await
            }
        })
    };
    broker.faults().fail_dead_letters(usize::MAX);
    publish(&broker, "poison", 0).await;
    let running = run(&broker, users().concurrency(4), target);
    until("it is paused", || {
        matches!(running.health.subscriptions()[0].state, SubscriptionState::Paused { .. })
    })
    .await;
    for step in 1..=4 {
        publish(&broker, &format!("u{step}"), step).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    broker.faults().clear();
    until("the dead letter", || dead_letters(&broker).len() == 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(records(&seen).len(), 4, "all four may run at once: {:?}", records(&seen));
    running.stop.stop_now();
    drop(running.end().await);
}
