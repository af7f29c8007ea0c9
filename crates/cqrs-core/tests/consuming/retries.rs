//! Tests of retries and dead letters.

use super::*;

/// Publishes two messages that fail, revokes them while they wait for an attempt, and expects them to be
/// counted as revoked soon.
async fn revoked_while_it_waits(retry: Retry, target: impl Target, revoked: u64) {
    let broker = MemoryBroker::new();
    publish(&broker, "ada", 1).await;
    publish(&broker, "ada", 2).await;
    let running = run(&broker, users().retry(retry), target);
    let counts = || running.health.subscriptions()[0].counts;
    until("an attempt failed", || counts().failed_attempts > 0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    broker.faults().revoke("users", "mailer");
    let start = Instant::now();
    until("it is let go", || counts().revoked == revoked).await;
    assert!(start.elapsed() < Duration::from_secs(5), "after {:?}", start.elapsed());
    running.stop.stop_now();
    drop(running.end().await);
}

fn failing_batch() -> impl Target {
    batch(2, Duration::from_secs(1), |_: Vec<(NotificationEvent<UserCreated>, Received)>| async {
        Err(HandlerError::retryable("no"))
    })
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(start_paused = true)]
async fn batch_lets_go_of_revoked_message_that_waits() {
    revoked_while_it_waits(Retry::none().delayed([HOUR]), failing_batch(), 2).await;
}

#[tokio::test(start_paused = true)]
async fn batch_lets_go_of_revoked_messages_between_tries() {
    revoked_while_it_waits(Retry::none().immediate([HOUR]), failing_batch(), 2).await;
}

#[tokio::test(start_paused = true)]
async fn revoked_message_is_dropped_between_attempts() {
    let seen = Records::default();
    let target = noting(&seen, |_, _| Err(HandlerError::retryable("no")));
    revoked_while_it_waits(Retry::none().immediate([HOUR]), target, 2).await;
    assert_eq!(records(&seen), ["ada:1#1"], "revoked, so not tried again here");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_retried_by_the_schedule_and_then_dead() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let started = Instant::now();
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let target = noting(&seen, {
        let times = Arc::clone(&times);
        move |_, _| {
            times.lock().unwrap().push(started.elapsed());
            Err(HandlerError::retryable("no such host"))
        }
    });
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), target);
    until("a dead letter", || dead_letters(&broker).len() == 1).await;
    let report = running.end().await;
    let attempts: Vec<_> = (1..=7).map(|attempt| format!("ada:1#{attempt}")).collect();
    assert_eq!(records(&seen), attempts);
    let times = times.lock().unwrap().clone();
    let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let schedule = [50, 100, 250, 10_000, 60_000, 300_000].map(Duration::from_millis);
    for (wait, expected) in waits.iter().zip(schedule) {
        let late = wait.saturating_sub(expected);
        assert!(*wait >= expected && late < Duration::from_millis(50), "{waits:?}");
    }
    let (message, letter) = dead_letters(&broker).remove(0);
    assert_eq!(message.key.as_deref(), Some(b"ada".as_slice()));
    assert_eq!(message.body, broker.messages("users")[0].body, "byte for byte");
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Exhausted, 7));
    assert_eq!((&*letter.topic, &*letter.group), ("users", "mailer"));
    assert_eq!((letter.offset, &*letter.error), (Some(0), "no such host"));
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.dead_lettered, counts.failed_attempts, counts.handled), (1, 7, 0));
}

#[tokio::test(start_paused = true)]
async fn permanent_failure_is_dead_lettered_panic_retried() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = noting(&seen, |event, _| match event.step {
        1 => Err("gone").permanent(),
        2 => panic!("index out of bounds"),
        _ => Ok(()),
    });
    for step in 1..=3 {
        publish(&broker, "ada", step).await;
    }
    let retry = Retry::none().immediate([Duration::from_millis(50)]);
    let running = run(&broker, users().retry(retry), target);
    until("the last one", || records(&seen).contains(&"ada:3#1".to_owned())).await;
    let report = running.end().await;
    assert_eq!(records(&seen), ["ada:1#1", "ada:2#1", "ada:2#2", "ada:3#1"]);
    let letters: Vec<_> = dead_letters(&broker).into_iter().map(|(_, letter)| letter).collect();
    assert_eq!(letters[0].reason, DeadLetterReason::Permanent);
    assert_eq!((letters[0].attempts, &*letters[0].error), (1, "gone"));
    assert_eq!(letters[1].reason, DeadLetterReason::Panic);
    assert_eq!((letters[1].attempts, &*letters[1].error), (2, "panicked: index out of bounds"));
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered, counts.panics), (1, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_a_failure_worth_a_retry() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = {
        let seen = seen.clone();
        each(move |_: NotificationEvent<UserCreated>, received: Received| {
            record(&seen, format!("#{}", received.attempt()));
            async move {
                if received.attempt() == 1 {
                    std::future::pending::<()>().await;
                }
                Ok::<(), HandlerError>(())
            }
        })
    };
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users().timeout(Duration::from_secs(1)), target);
    until("a second attempt", || records(&seen).len() == 2).await;
    assert_eq!(running.end().await.subscriptions[0].counts.handled, 1);
}

/// A broker whose topic of dead letters is full and has no reader.
async fn with_full_dead_letter_topic() -> MemoryBroker {
    let broker =
        MemoryBroker::builder().capacity(2).publish_timeout(Duration::from_secs(1)).build();
    broker.create_group("users.mailer.dead", "nobody", cqrs_core::StartAt::Earliest);
    for n in 0..2 {
        broker.publish(Message::new("users.mailer.dead", format!("old {n}"))).await.unwrap();
    }
    broker
}

fn is_paused(health: &ServiceHealth) -> bool {
    matches!(health.subscriptions().remove(0).state, SubscriptionState::Paused { .. })
}

#[tokio::test(start_paused = true)]
async fn unconfirmed_dead_letter_blocks_the_ack() {
    let broker = with_full_dead_letter_topic().await;
    let seen = Records::default();
    let target = noting(&seen, |_, _| Err("never").permanent());
    publish(&broker, "ada", 1).await;
    publish(&broker, "bob", 2).await;
    let running = run(&broker, users().concurrency(2), target);
    until("it is paused", || is_paused(&running.health)).await;
    assert!(!running.health.is_ready() && running.health.is_live());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let counts = running.health.subscriptions()[0].counts;
    assert_eq!((counts.dead_lettered, counts.handled), (0, 0), "nothing is settled");
    let reader = broker.subscriber("users.mailer.dead", "nobody");
    while let Some(old) = reader.try_recv() {
        old.ack();
    }
    until("both dead letters", || broker.messages("users.mailer.dead").len() == 2).await;
    until("settled", || running.health.subscriptions()[0].counts.dead_lettered == 2).await;
    until("ready again", || running.health.is_ready()).await;
    drop(running.end().await);
    assert!(broker.subscriber("users", "mailer").try_recv().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pause_lasts_until_the_dead_letter_is_confirmed() {
    let broker = with_full_dead_letter_topic().await;
    let seen = Records::default();
    let target = noting(&seen, |event, _| match event.step {
        1 => Err("never").permanent(),
        _ => Ok(()),
    });
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users().concurrency(2), target);
    until("it is paused", || is_paused(&running.health)).await;
    publish(&broker, "bob", 2).await;
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!running.health.is_ready(), "it is tried again, not confirmed");
    }
    assert_eq!(records(&seen), ["ada:1#1"], "nothing starts meanwhile");
    let reader = broker.subscriber("users.mailer.dead", "nobody");
    while let Some(old) = reader.try_recv() {
        old.ack();
    }
    until("the other one", || records(&seen).len() == 2).await;
    assert!(running.health.is_ready());
    drop(running.end().await);
}

#[tokio::test(start_paused = true)]
async fn a_delay_without_an_end_is_no_overflow() {
    for manually in [false, true] {
        let (broker, seen) = (MemoryBroker::new(), Records::default());
        publish(&broker, "ada", 1).await;
        publish(&broker, "bob", 2).await;
        let subscription = users().concurrency(2).retry(Retry::none().delayed([Duration::MAX]));
        let running = match manually {
            false => {
                let target = noting(&seen, |event, _| match event.step {
                    1 => Err(HandlerError::retryable("not yet")),
                    _ => Ok(()),
                });
                run(&broker, subscription, target)
            }
            true => {
                let seen = seen.clone();
                let target = move |event: NotificationEvent<UserCreated>, delivery: Delivery| {
                    record(&seen, event.payload.user_id);
                    async move {
                        match event.payload.step {
                            1 => delivery.retry_later(Duration::MAX).await.unwrap(),
                            _ => delivery.ack().await.unwrap(),
                        }
                    }
                };
                run(&broker, subscription, manual(target))
            }
        };
        until("both", || records(&seen).len() == 2 || running.task.is_finished()).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let counts = running.end().await.subscriptions[0].counts;
        assert_eq!((counts.handled, counts.given_back), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn timeout_applies_to_decoders_and_undecodable_fn() {
    for in_batches in [false, true] {
        let (broker, seen) = (MemoryBroker::new(), Records::default());
        publish_raw(&broker, "garbage").await;
        publish(&broker, "ada", 1).await;
        publish(&broker, "bob", 2).await;
        let subscription = users()
            .timeout(Duration::from_secs(1))
            .retry(Retry::none())
            .decoder(|message: cqrs_core::consume::Incoming| async move {
                if message.offset == Some(1) {
                    std::future::pending::<()>().await;
                }
                Ok(Some(message))
            })
            .on_decode_error(OnDecodeError::Handle)
            .undecodable(|_: cqrs_core::service::Undecodable, _: Received| std::future::pending());
        let running = match in_batches {
            false => run(&broker, subscription, noting(&seen, |_, _| Ok(()))),
            true => {
                let seen = seen.clone();
                let target = move |events: Vec<(NotificationEvent<UserCreated>, Received)>| {
                    events.iter().for_each(|(event, _)| record(&seen, &*event.payload.user_id));
                    async { Ok(()) }
                };
                run(&broker, subscription, batch(3, Duration::from_secs(1), target))
            }
        };
        until("the good one", || records(&seen).len() == 1).await;
        until("both others are dead", || dead_letters(&broker).len() == 2).await;
        drop(running.end().await);
        for (_, letter) in dead_letters(&broker) {
            assert_eq!((&*letter.error_type, letter.attempts), ("Timeout", 1));
        }
    }
}
