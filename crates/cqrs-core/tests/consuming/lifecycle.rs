//! Tests of start, stop, drain and failure.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[tokio::test(start_paused = true)]
async fn mediator_handles_events_and_they_are_acked() {
    struct Welcome(Records);
    impl EventHandler<UserCreated> for Welcome {
        async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
            let received = scope.get::<Received>().unwrap();
            record(&self.0, format!("{} in {}", event.user_id, received.group()));
            Ok(())
        }
    }
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let events =
        EventMediator::builder().event::<UserCreated, _>(Welcome(seen.clone())).build().unwrap();
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), events);
    until("the handler ran", || records(&seen).len() == 1).await;
    until("ready", || running.health.is_ready()).await;
    let report = running.end().await;
    assert_eq!(records(&seen), ["ada in mailer"]);
    assert_eq!(report.subscriptions[0].counts.handled, 1);
    assert!(broker.subscriber("users", "mailer").try_recv().is_none(), "it was acked");
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_what_runs_and_gives_the_rest_back() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let target = {
        let seen = seen.clone();
        each(move |event: NotificationEvent<UserCreated>, _: Received| {
            let seen = seen.clone();
            async move {
                record(&seen, format!("start {}", event.payload.step));
                tokio::time::sleep(Duration::from_secs(10)).await;
                record(&seen, format!("end {}", event.payload.step));
                Ok::<(), HandlerError>(())
            }
        })
    };
    for step in 1..=5 {
        publish(&broker, &format!("u{step}"), step).await;
    }
    let running = run(&broker, users().concurrency(2), target);
    until("two run", || records(&seen).len() == 2).await;
    let started = Instant::now();
    let report = running.end().await;
    assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
    assert_eq!(records(&seen), ["start 1", "start 2", "end 1", "end 2"]);
    let [mine] = &*report.subscriptions else { panic!("one subscription") };
    assert_eq!((mine.counts.handled, mine.counts.given_back, mine.cancelled), (2, 3, 0));
    let again = broker.subscriber("users", "mailer");
    assert_eq!(std::iter::from_fn(|| again.try_recv().map(|d| d.ack())).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn drain_ends_at_deadline_and_on_second_stop() {
    for now in [false, true] {
        let (broker, seen) = (MemoryBroker::new(), Records::default());
        let target = {
            let seen = seen.clone();
            each(move |_: NotificationEvent<UserCreated>, _: Received| {
                record(&seen, "start");
                std::future::pending::<Result<(), HandlerError>>()
            })
        };
        publish(&broker, "ada", 1).await;
        let service = Service::builder(broker.clone()).subscribe(users(), target).build().unwrap();
        let (stop, started) = (service.stop_handle(), Instant::now());
        let task = tokio::spawn(service.run_until(std::future::pending::<()>()));
        until("it runs", || !records(&seen).is_empty()).await;
        stop.stop();
        if now {
            stop.stop_now();
        }
        let report = task.await.unwrap().unwrap();
        let expected = if now { 0 } else { 30 };
        assert_eq!(started.elapsed().as_secs(), expected);
        assert_eq!(report.subscriptions[0].cancelled, 1);
        assert!(broker.subscriber("users", "mailer").try_recv().is_some(), "it was given back");
    }
}

#[tokio::test]
async fn wiring_mistakes_are_named_all_at_once() {
    let error = Service::builder(MemoryBroker::new())
        .subscribe(
            Subscription::to("users").json::<UserDeleted>().concurrency(0),
            noting(&Records::default(), |_, _| Ok(())),
        )
        .subscribe(
            users().name("twice").on_empty(OnDecodeError::Handle),
            EventMediator::builder().build().unwrap(),
        )
        .subscribe(
            Subscription::to("").group("g").name("twice"),
            noting(&Records::default(), |_, _| Ok(())),
        )
        .build()
        .unwrap_err();
    let text = error.to_string();
    for part in [
        "users: it has no group",
        "users: nothing handles consuming::UserDeleted",
        "users: a concurrency of 0",
        "twice: nothing handles consuming::UserCreated",
        "twice: a policy is OnDecodeError::Handle",
        "twice: a topic's name is missing",
        "twice: it takes no type of event",
        "two subscriptions are named twice",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    let error = Service::builder(MemoryBroker::new())
        .subscribe(
            Subscription::pattern("users.*").group("g").json::<UserCreated>(),
            noting(&Records::default(), |_, _| Ok(())),
        )
        .build()
        .unwrap_err();
    assert!(error.to_string().contains("the memory broker has no patterns"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_mediator_that_is_shut_down_fails_nothing() {
    struct Never;
    impl EventHandler<UserCreated> for Never {
        async fn handle(&self, _: &UserCreated, _: &mut Scope) -> Result<(), HandlerError> {
            panic!("it ran")
        }
    }
    let broker = MemoryBroker::new();
    let events = EventMediator::builder().event::<UserCreated, _>(Never).build().unwrap();
    let _ = events.shutdown(Duration::from_secs(1)).await;
    publish(&broker, "ada", 1).await;
    let running = run(&broker, users(), events);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let report = running.end().await;
    assert_eq!(report.subscriptions[0].counts.failed_attempts, 0);
    assert!(dead_letters(&broker).is_empty());
    assert!(broker.subscriber("users", "mailer").try_recv().is_some(), "it was given back");
}

#[tokio::test]
async fn options_that_would_do_nothing_are_named() {
    let fine = || each(|_: NotificationEvent<UserCreated>, _: Received| async { Ok(()) });
    let many = |size| {
        batch(
            size,
            Duration::from_secs(1),
            |_: Vec<(NotificationEvent<UserCreated>, Received)>| async { Ok(()) },
        )
    };
    let error = Service::builder(MemoryBroker::new())
        .subscribe(
            users()
                .name("a")
                .undecodable(|_: cqrs_core::service::Undecodable, _: Received| async { Ok(()) }),
            fine(),
        )
        .subscribe(
            users().name("b").dead_letter(cqrs_core::consume::DeadLetterTarget::Named("".into())),
            fine(),
        )
        .subscribe(users().name("c").max_unsettled(10), many(20))
        .subscribe(users().name("d").timeout(Duration::ZERO), fine())
        .build()
        .unwrap_err();
    let text = error.to_string();
    for part in [
        "subscription a: a function is given with `undecodable`, but no policy",
        "subscription b: the name of its dead letters is empty",
        "subscription c: a batch can never be full",
        "subscription d: a timeout of 0",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_after_stop() {
    // In one lane, and in separate lanes.
    for concurrency in [1, 2] {
        let (broker, seen) = (MemoryBroker::new(), Records::default());
        let stop: Arc<std::sync::OnceLock<StopHandle>> = Arc::default();
        // Handlers that never wait, so that a worker has several messages at the time of the stop.
        let target = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            each(move |event: NotificationEvent<UserCreated>, _: Received| {
                record(&seen, format!("{}", event.payload.step));
                if event.payload.step == 20 {
                    stop.get().unwrap().stop();
                }
                async { Ok::<(), HandlerError>(()) }
            })
        };
        for step in 0..120 {
            publish(&broker, &format!("u{step}"), step).await;
        }
        let subscription = users().concurrency(concurrency).max_unsettled(200);
        let service =
            Service::builder(broker.clone()).subscribe(subscription, target).build().unwrap();
        stop.get_or_init(|| service.stop_handle());
        let report = service.run_until(std::future::pending::<()>()).await.unwrap();
        let counts = report.subscriptions[0].counts;
        assert_eq!(records(&seen).last().unwrap(), "20", "with {concurrency}");
        assert_eq!((counts.handled, counts.received - counts.given_back), (21, 21));
    }
}

#[tokio::test]
async fn stop_while_worker_yields_starts_no_job() {
    const MESSAGES: usize = 2_000;
    let (broker, handled) = (MemoryBroker::new(), Arc::new(AtomicUsize::new(0)));
    for step in 0..2_000 {
        publish(&broker, "ada", step).await;
    }
    let target = {
        let handled = Arc::clone(&handled);
        each(move |_: NotificationEvent<UserCreated>, _: Received| {
            handled.fetch_add(1, Ordering::Relaxed);
            async { Ok::<(), HandlerError>(()) }
        })
    };
    let subscription = users().max_unsettled(MESSAGES);
    let service = Service::builder(broker).subscribe(subscription, target).build().unwrap();
    // A handler that never waits lets this task run only when its worker yields. After it fetched, it yields with
    // one job done, and has the others.
    let mut at_stop = 0;
    let stopped = async {
        let mut before = 0;
        while at_stop != MESSAGES && (before == 0 || at_stop != before + 1) {
            tokio::task::yield_now().await;
            (before, at_stop) = (at_stop, handled.load(Ordering::Relaxed));
        }
    };
    let report = service.run_until(stopped).await.unwrap();
    assert_eq!(handled.load(Ordering::Relaxed), at_stop);
    assert_eq!(report.subscriptions[0].counts.handled, at_stop as u64);
}
