//! Tests of messages whose retry copy or dead letter the broker does not confirm.

use super::*;

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
