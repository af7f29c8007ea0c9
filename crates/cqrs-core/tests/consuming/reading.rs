//! Tests of decoding and its policies.

use super::*;

#[tokio::test(start_paused = true)]
async fn undecodable_message_follows_its_policy() {
    let deleted = r#"{"event_name":"UserDeleted","payload":{"user_id":"x"}}"#;
    let bodies = ["garbage", deleted, "", "[]", r#"{"event_name":"UserCreated","payload":{}}"#];
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    for body in bodies {
        publish_raw(&broker, body).await;
    }
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), noting(&seen, |_, _| Ok(())));
    until("the good one", || records(&seen).len() == 1).await;
    let report = running.end().await;
    let letters: Vec<_> = dead_letters(&broker)
        .into_iter()
        .map(|(message, letter)| (message.body, letter.reason, letter.attempts))
        .collect();
    let dead = |body: &'static str, reason| (body.into(), reason, 0);
    assert_eq!(
        letters,
        [
            dead("garbage", DeadLetterReason::Decode),
            dead(deleted, DeadLetterReason::UnknownType),
            dead("[]", DeadLetterReason::Decode),
            dead(bodies[4], DeadLetterReason::Decode),
        ]
    );
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.skipped, counts.handled, counts.failed_attempts), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn undecodable_messages_can_be_handed_over_as_values() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    publish_raw(&broker, "garbage").await;
    publish_raw(&broker, "").await;
    publish(&broker, "ada", 1).await;
    let subscription = users()
        .on_decode_error(OnDecodeError::Handle)
        .on_empty(OnDecodeError::Handle)
        .undecodable({
            let seen = seen.clone();
            move |case: cqrs_core::service::Undecodable, received: Received| {
                record(&seen, format!("{case} at {:?}", received.offset));
                if let cqrs_core::service::Undecodable::Malformed(error) = &case {
                    assert_eq!(error.bytes(), "garbage", "the raw bytes");
                }
                async { Ok(()) }
            }
        });
    let running = run(&broker, subscription, noting(&seen, |_, _| Ok(())));
    until("the good one", || records(&seen).len() == 3).await;
    drop(running.end().await);
    let seen = records(&seen);
    assert!(
        seen[0].starts_with("malformed message: ") && seen[0].ends_with("at Some(0)"),
        "{seen:?}"
    );
    assert_eq!(seen[1..], ["the message is empty at Some(1)", "ada:1#1"]);
    assert!(dead_letters(&broker).is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_policy_ends_service_and_loses_nothing() {
    let broker = MemoryBroker::new();
    publish_raw(&broker, "garbage").await;
    let service = Service::builder(broker.clone())
        .subscribe(
            users().on_decode_error(OnDecodeError::Stop),
            noting(&Records::default(), |_, _| Ok(())),
        )
        .build()
        .unwrap();
    let health = service.health();
    let error = service.run_until(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.subscription, "mailer@users");
    assert!(error.detail.contains("offset Some(0)"), "{error}");
    assert!(!health.is_ready() && !health.is_live());
    assert!(matches!(health.subscriptions()[0].state, SubscriptionState::Failed { .. }));
    let left = broker.subscriber("users", "mailer").try_recv().expect("it was given back");
    assert_eq!(left.message().body, "garbage");
}

#[tokio::test(start_paused = true)]
async fn decoders_can_skip_change_and_refuse() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    publish_raw(&broker, "skip me").await;
    publish_raw(&broker, "xxx").await;
    publish_raw(&broker, r#"v1:{"event_name":"UserCreated","payload":{"user_id":"ada","step":1}}"#)
        .await;
    let subscription = users().decoder(|mut message: cqrs_core::consume::Incoming| async move {
        let body = message.bytes();
        if &*body == b"skip me" {
            return Ok(None);
        }
        match body.strip_prefix(b"v1:") {
            None => Err(cqrs_core::service::DecodeError::malformed("no version")),
            Some(body) => {
                message.body = Some(body.to_vec().into());
                Ok(Some(message))
            }
        }
    });
    let running = run(&broker, subscription, noting(&seen, |_, _| Ok(())));
    until("the good one", || records(&seen).len() == 1).await;
    let report = running.end().await;
    assert_eq!(report.subscriptions[0].counts.skipped, 1);
    let (message, letter) = dead_letters(&broker).remove(0);
    assert_eq!(
        (&*message.body, &*letter.error),
        (b"xxx".as_slice(), "malformed message: no version")
    );
}

#[tokio::test(start_paused = true)]
async fn several_types_of_one_topic_are_routed_by_name() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    publish(&broker, "ada", 1).await;
    publish_raw(&broker, r#"{"eventName":"UserDeleted","payload":{"user_id":"bob"}}"#).await;
    publish_raw(&broker, r#"{"event_name":"UserMoved","payload":{"user_id":"bob"}}"#).await;
    // The frame's name is used only if it is known.
    let moved =
        Message::new("users", r#"{"event_name":"UserDeleted","payload":{"user_id":"eve"}}"#);
    broker.publish(moved.with_name("application/x")).await.unwrap();
    let running = run(&broker, users().json::<UserDeleted>(), noting_names(&seen));
    until("three", || records(&seen).len() == 3).await;
    drop(running.end().await);
    assert_eq!(records(&seen), ["created ada", "deleted bob", "deleted eve"]);
    assert_eq!(dead_letters(&broker)[0].1.reason, DeadLetterReason::UnknownType);
}

/// Returns `not_now` for messages of `user` until `away` has passed; counts the calls.
fn away_for(user: &'static str, away: Duration, rounds: &Arc<Mutex<u32>>) -> Subscription {
    let (rounds, back) = (Arc::clone(rounds), Instant::now() + away);
    users().concurrency(2).decoder(move |message: cqrs_core::consume::Incoming| {
        let rounds = Arc::clone(&rounds);
        async move {
            if message.key.as_deref() == Some(user.as_bytes()) && Instant::now() < back {
                *rounds.lock().unwrap() += 1;
                let error = HandlerError::permanent("the key server is away");
                return Err(cqrs_core::service::DecodeError::not_now(error));
            }
            Ok(Some(message))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn not_now_keeps_position_and_counts_no_attempt() {
    let (broker, seen, rounds) = (MemoryBroker::new(), Records::default(), Arc::default());
    for (user, step) in [("ada", 1), ("ada", 2), ("bob", 1)] {
        publish(&broker, user, step).await;
    }
    // The default schedule ends after about six minutes.
    let away = Duration::from_secs(1_800);
    let running = run(
        &broker,
        away_for("ada", away, &rounds),
        noting(&seen, |_, attempt| match attempt {
            1 => Err(HandlerError::retryable("a first attempt")),
            _ => Ok(()),
        }),
    );
    tokio::time::sleep(away).await;
    until("all of them", || records(&seen).len() == 6).await;
    let counts = running.end().await.subscriptions[0].counts;
    let expected = ["bob:1#1", "bob:1#2", "ada:1#1", "ada:1#2", "ada:2#1", "ada:2#2"];
    assert_eq!(records(&seen), expected, "the other key does not wait");
    assert!(dead_letters(&broker).is_empty());
    assert_eq!((counts.handled, counts.failed_attempts), (3, 3));
    let rounds = *rounds.lock().unwrap();
    assert!((180..=190).contains(&rounds), "a pause of at most 10 s between: {rounds}");
}

#[tokio::test(start_paused = true)]
async fn batch_and_manual_wait_until_decoding_is_possible() {
    let away = Duration::from_secs(1_800);
    for is_batch in [true, false] {
        let (broker, seen, rounds) = (MemoryBroker::new(), Records::default(), Arc::default());
        for (user, step) in [("bob", 1), ("ada", 2), ("ada", 3)] {
            publish(&broker, user, step).await;
        }
        let subscription = away_for("ada", away, &rounds).concurrency(1);
        let noting = seen.clone();
        let running = match is_batch {
            true => run(&broker, subscription, {
                batch(
                    3,
                    Duration::from_secs(1),
                    move |events: Vec<(NotificationEvent<UserCreated>, Received)>| {
                        for (event, received) in events {
                            let step = event.payload.step;
                            record(&noting, format!("{step}#{}", received.attempt()));
                        }
                        async { Ok(()) }
                    },
                )
            }),
            false => run(&broker, subscription, {
                manual(move |event: NotificationEvent<UserCreated>, delivery: Delivery| {
                    let noting = noting.clone();
                    async move {
                        record(&noting, format!("{}#{}", event.payload.step, delivery.attempt()));
                        delivery.ack().await.unwrap();
                    }
                })
            }),
        };
        tokio::time::sleep(away).await;
        until("all of them", || records(&seen).len() == 3).await;
        let counts = running.end().await.subscriptions[0].counts;
        assert_eq!(records(&seen), ["1#1", "2#1", "3#1"]);
        assert_eq!((counts.handled, counts.failed_attempts, counts.dead_lettered), (3, 0, 0));
        let rounds = *rounds.lock().unwrap();
        assert!((180..=400).contains(&rounds), "a pause between: {rounds}");
    }
}

#[tokio::test(start_paused = true)]
async fn stop_ends_wait_while_decoding_is_not_possible() {
    for wait in [1, 60_000] {
        let (broker, rounds) = (MemoryBroker::new(), Arc::default());
        publish(&broker, "ada", 1).await;
        let subscription = away_for("ada", Duration::from_secs(86_400), &rounds);
        let running = run(&broker, subscription, noting(&Records::default(), |_, _| Ok(())));
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let stopped = Instant::now();
        let counts = running.end().await.subscriptions[0].counts;
        assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
        assert_eq!((counts.given_back, counts.dead_lettered), (1, 0));
        let left = broker.subscriber("users", "mailer").try_recv().expect("it was given back");
        assert_eq!(left.message().key.as_deref(), Some(b"ada".as_slice()));
    }
}
