use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_no_event_goes_by_its_policy() {
    let deleted = r#"{"event_name":"UserDeleted","payload":{"user_id":"x"}}"#;
    let bodies = ["garbage", deleted, "", "[]", r#"{"event_name":"UserCreated","payload":{}}"#];
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    for body in bodies {
        publish_raw(&broker, body).await;
    }
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), noting(&seen, |_, _| Ok(())));
    until("the good one", || noted(&seen).len() == 1).await;
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
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    publish_raw(&broker, "garbage").await;
    publish_raw(&broker, "").await;
    publish(&broker, "ada", 1).await;
    let subscription = users()
        .on_decode_error(OnDecodeError::Handle)
        .on_empty(OnDecodeError::Handle)
        .undecodable({
            let seen = seen.clone();
            move |case: cqrs_core::Undecodable, received: Received| {
                note(&seen, format!("{case} at {:?}", received.offset));
                if let cqrs_core::Undecodable::Malformed(error) = &case {
                    assert_eq!(error.bytes(), "garbage", "the raw bytes");
                }
                async { Ok(()) }
            }
        });
    let running = run(&broker, subscription, noting(&seen, |_, _| Ok(())));
    until("the good one", || noted(&seen).len() == 3).await;
    drop(running.end().await);
    let seen = noted(&seen);
    assert!(
        seen[0].starts_with("malformed message: ") && seen[0].ends_with("at Some(0)"),
        "{seen:?}"
    );
    assert_eq!(seen[1..], ["the message is empty at Some(1)", "ada:1#1"]);
    assert!(dead_letters(&broker).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_stop_policy_ends_the_service_with_an_error_and_loses_nothing() {
    let broker = MemoryBroker::new();
    publish_raw(&broker, "garbage").await;
    let service = Service::builder(broker.clone())
        .subscribe(
            users().on_decode_error(OnDecodeError::Stop),
            noting(&Seen::default(), |_, _| Ok(())),
        )
        .build()
        .unwrap();
    let health = service.health();
    let error = service.run_until(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.subscription, "mailer@users");
    assert!(error.detail.contains("offset Some(0)"), "{error}");
    assert!(!health.is_ready() && !health.is_live());
    assert!(matches!(health.subscriptions()[0].state, SubscriptionState::Failed { .. }));
    let left = broker.subscribe("users", "mailer").try_recv().expect("it was given back");
    assert_eq!(left.message().body, "garbage");
}

#[tokio::test(start_paused = true)]
async fn decoders_can_skip_change_and_refuse() {
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    publish_raw(&broker, "skip me").await;
    publish_raw(&broker, "xxx").await;
    publish_raw(&broker, r#"v1:{"event_name":"UserCreated","payload":{"user_id":"ada","step":1}}"#)
        .await;
    let subscription = users().decoder(|mut message: cqrs_core::Incoming| async move {
        let body = message.bytes();
        if &*body == b"skip me" {
            return Ok(None);
        }
        match body.strip_prefix(b"v1:") {
            None => Err(cqrs_core::DecodeError::malformed("no version")),
            Some(body) => {
                message.body = Some(body.to_vec().into());
                Ok(Some(message))
            }
        }
    });
    let running = run(&broker, subscription, noting(&seen, |_, _| Ok(())));
    until("the good one", || noted(&seen).len() == 1).await;
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
    struct Both(Seen);
    impl EventHandler<UserCreated> for Both {
        async fn handle(&self, event: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
            note(&self.0, format!("created {}", event.user_id));
            Ok(())
        }
    }
    impl EventHandler<UserDeleted> for Both {
        async fn handle(&self, event: &UserDeleted, _: &mut Scope) -> Result<(), HandlerError> {
            note(&self.0, format!("deleted {}", event.user_id));
            Ok(())
        }
    }
    let (broker, seen) = (MemoryBroker::new(), Seen::default());
    let events = EventMediator::builder()
        .event::<UserCreated, _>(Both(seen.clone()))
        .event::<UserDeleted, _>(Both(seen.clone()))
        .build()
        .unwrap();
    publish(&broker, "ada", 1).await;
    publish_raw(&broker, r#"{"eventName":"UserDeleted","payload":{"user_id":"bob"}}"#).await;
    publish_raw(&broker, r#"{"event_name":"UserMoved","payload":{"user_id":"bob"}}"#).await;
    // The frame's name is believed only where it is known.
    let moved =
        Message::new("users", r#"{"event_name":"UserDeleted","payload":{"user_id":"eve"}}"#);
    broker.publish(moved.with_name("application/x")).await.unwrap();
    let running = run(&broker, users().json::<UserDeleted>(), events);
    until("three", || noted(&seen).len() == 3).await;
    drop(running.end().await);
    assert_eq!(noted(&seen), ["created ada", "deleted bob", "deleted eve"]);
    assert_eq!(dead_letters(&broker)[0].1.reason, DeadLetterReason::UnknownType);
}
