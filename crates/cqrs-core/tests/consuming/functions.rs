//! Tests of the functions `each`, `manual` and `batch`.

use super::*;

#[tokio::test(start_paused = true)]
async fn dropped_manual_delivery_is_redelivered_in_order() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = manual({
        let seen = seen.clone();
        move |event: NotificationEvent<UserCreated>, delivery: Delivery| {
            let seen = seen.clone();
            async move {
                let step = event.payload.step;
                record(&seen, format!("{step}#{}", delivery.attempt()));
                match (step, delivery.attempt()) {
                    (1, 1) => drop(delivery),
                    (1, 2) => delivery.give_back(),
                    (1, 3) => delivery.retry_later(Duration::from_secs(10)).await.unwrap(),
                    (2, _) => delivery.dead_letter(HandlerError::permanent("no")).await.unwrap(),
                    (3, 1) => panic!("the delivery goes down with it"),
                    (4, _) => {
                        // Settled later, in another task: the next message of the key waits.
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_secs(5)).await;
                            record(&seen, "late");
                            delivery.ack().await.unwrap();
                        });
                    }
                    _ => delivery.ack().await.unwrap(),
                }
            }
        }
    });
    for step in 1..=5 {
        publish(&broker, "ada", step).await;
    }
    let running = run(&broker, users().concurrency(4), target);
    until("the last one", || records(&seen).iter().any(|text| text == "5#1")).await;
    let report = running.end().await;
    assert_eq!(
        records(&seen),
        ["1#1", "1#2", "1#3", "1#4", "2#1", "3#1", "3#2", "4#1", "late", "5#1"]
    );
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.handled, counts.dead_lettered, counts.panics), (4, 1, 1));
    assert_eq!(dead_letters(&broker)[0].1.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn batch_fills_by_size_or_time_and_isolates_failure() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = batch(3, Duration::from_secs(1), {
        let seen = seen.clone();
        move |events: Vec<(NotificationEvent<UserCreated>, Received)>| {
            let steps: Vec<u32> = events.iter().map(|(event, _)| event.payload.step).collect();
            record(&seen, format!("{steps:?}"));
            let poisoned = steps.contains(&5);
            async move {
                match poisoned {
                    true => Err(HandlerError::retryable("poison")),
                    false => Ok(()),
                }
            }
        }
    });
    for step in 1..=7 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let retry = Retry::none().immediate([Duration::from_millis(50)]);
    let running = run(&broker, users().retry(retry), target);
    until("the last one", || records(&seen).iter().any(|text| text == "[7]")).await;
    let report = running.end().await;
    let expected = ["[1, 2, 3]", "[4, 5, 6]", "[4, 5, 6]", "[4]", "[5]", "[5]", "[6]", "[7]"];
    assert_eq!(records(&seen), expected);
    let (_, letter) = dead_letters(&broker).remove(0);
    assert_eq!((letter.attempts, letter.offset), (2, Some(4)));
    assert_eq!(report.subscriptions[0].counts.handled, 6);
}

#[tokio::test(start_paused = true)]
async fn batch_keeps_order_around_undecodable_message() {
    for delay in [Duration::from_millis(50), Duration::from_secs(10)] {
        let (broker, seen) = (MemoryBroker::new(), Records::default());
        let target = batch(4, Duration::from_secs(1), {
            let seen = seen.clone();
            move |events: Vec<(NotificationEvent<UserCreated>, Received)>| {
                let steps = events.iter().map(|(event, _)| event.payload.step.to_string());
                steps.for_each(|step| record(&seen, step));
                async { Ok(()) }
            }
        });
        for step in 1..=4 {
            publish(&broker, &format!("u{step}"), step).await;
        }
        let away = Arc::new(Mutex::new(2));
        let subscription = users().decoder(move |message: cqrs_core::consume::Incoming| {
            let away = Arc::clone(&away);
            async move {
                let mut away = away.lock().unwrap();
                if message.offset == Some(1) && *away > 0 {
                    *away -= 1;
                    let error = HandlerError::retryable("the key server is away");
                    return Err(cqrs_core::service::DecodeError::failed(error));
                }
                Ok(Some(message))
            }
        });
        let retry = match delay < Duration::from_secs(1) {
            true => Retry::none().immediate([delay; 3]),
            false => Retry::none().delayed([delay; 3]),
        };
        let running = run(&broker, subscription.retry(retry), target);
        until("all of them", || records(&seen).len() == 4).await;
        drop(running.end().await);
        assert_eq!(records(&seen), ["1", "2", "3", "4"]);
    }
}

#[tokio::test(start_paused = true)]
async fn batch_larger_than_default_fetch_is_filled() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = batch(400, Duration::from_secs(3600), {
        let seen = seen.clone();
        move |events: Vec<(NotificationEvent<UserCreated>, Received)>| {
            record(&seen, format!("{}", events.len()));
            async { Ok(()) }
        }
    });
    for step in 1..=400 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let started = Instant::now();
    let running = run(&broker, users(), target);
    until("a batch", || !records(&seen).is_empty()).await;
    drop(running.end().await);
    assert_eq!(records(&seen)[0], "400");
    assert!(started.elapsed() < Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn message_revoked_while_batch_waits_is_not_handled() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = batch(2, Duration::from_secs(1), {
        let seen = seen.clone();
        move |events: Vec<(NotificationEvent<UserCreated>, Received)>| {
            let steps: Vec<u32> = events.iter().map(|(event, _)| event.payload.step).collect();
            record(&seen, format!("{steps:?}"));
            async move {
                match steps.contains(&1) {
                    true => Err(HandlerError::retryable("not yet")),
                    false => Ok(()),
                }
            }
        }
    });
    publish(&broker, "ada", 1).await;
    publish(&broker, "bob", 2).await;
    let retry = Retry::none().delayed([Duration::from_secs(60)]);
    let running = run(&broker, users().retry(retry), target);
    until("the first waits alone", || records(&seen).len() == 2).await;
    // A member that never settles now has them.
    let other = broker.subscriber("users", "mailer");
    assert_eq!(broker.faults().revoke("users", "mailer"), 2);
    let _theirs = [other.try_recv().unwrap(), other.try_recv().unwrap()];
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(records(&seen), ["[1, 2]", "[1]"]);
    assert_eq!(running.end().await.subscriptions[0].counts.revoked, 2);
}
