//! Tests of work that was committed: it is not done again.

use super::*;

#[tokio::test(start_paused = true)]
async fn unpublished_events_do_not_repeat_committed_work() {
    struct Ship(Log);
    impl EventHandler<Ordered> for Ship {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            self.0.add("handled");
            // The broker refuses it every time.
            scope.emit(NotificationEvent::new(Shipped { number: 1 }).with_topic("refused"));
            scope.emit(Shipped { number: 2 });
            Ok(())
        }
    }
    let broker = Scribe::new(Script::default());
    let events = EventMediator::builder()
        .event::<Ordered, _>(Ship(broker.log.clone()))
        .broker(broker.clone())
        .build()
        .unwrap();
    let service = Service::builder(broker.clone())
        .subscribe(Subscription::to("paid").group("g").json::<Ordered>(), events)
        .drain_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let report = service.run_until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!(broker.log.count("handled"), 1, "never again in this process");
    assert_eq!(broker.log.count("ack"), 0, "and not acked before its events are out");
    assert_eq!(report.subscriptions[0].cancelled, 1);
}

#[tokio::test(start_paused = true)]
async fn timeout_does_not_repeat_committed_work() {
    struct Ship(Log);
    impl EventHandler<Ordered> for Ship {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            self.0.add("handled");
            scope.unit_of_work::<Transaction>().await?.write("shipment");
            scope.emit(NotificationEvent::new(Shipped { number: 1 }).with_topic("refused"));
            Ok(())
        }
    }
    let broker = Scribe::new(Script::default());
    let events = EventMediator::builder()
        .event::<Ordered, _>(Ship(broker.log.clone()))
        .unit_of_work(Store::new(&broker.log, Fault::None))
        .broker(broker.clone())
        .build()
        .unwrap();
    let subscription = Subscription::to("paid").group("g").json::<Ordered>();
    let service = Service::builder(broker.clone())
        .subscribe(subscription.timeout(Duration::from_secs(1)), events)
        .drain_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let report = service.run_until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!((broker.log.count("handled"), broker.log.count("commit")), (1, 1));
    assert_eq!(broker.log.count("ack"), 0, "its event is not out");
    let counts = report.subscriptions[0].counts;
    assert_eq!((counts.failed_attempts, counts.given_back), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_before_the_commit_rolls_back_and_counts() {
    struct Slow;
    impl EventHandler<Ordered> for Slow {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            scope.unit_of_work::<Transaction>().await?.write("shipment");
            std::future::pending().await
        }
    }
    let broker = Scribe::new(Script::default());
    let events = EventMediator::builder()
        .event::<Ordered, _>(Slow)
        .unit_of_work(Store::new(&broker.log, Fault::None))
        .build()
        .unwrap();
    let subscription = Subscription::to("paid").group("g").json::<Ordered>();
    let service = Service::builder(broker.clone())
        .subscribe(subscription.timeout(Duration::from_secs(1)).retry(Retry::none()), events)
        .build()
        .unwrap();
    let _ = service.run_until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!((broker.log.count("rollback"), broker.log.count("commit")), (1, 0));
    assert_eq!(broker.log.count("dead exhausted 1"), 1);
}

#[tokio::test(start_paused = true)]
async fn broker_panic_does_not_repeat_committed_work() {
    /// Refuses the first message, panics on the second, and confirms the others.
    #[derive(Debug)]
    struct Fragile(RecordingBroker, Mutex<u32>);
    impl MessageBroker for Fragile {
        fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
            let mut calls = self.1.lock().unwrap();
            *calls += 1;
            let calls = *calls;
            Box::pin(async move {
                match calls {
                    1 => {
                        let kind = cqrs_core::PublishErrorKind::NotSent;
                        Err(PublishError::new(kind, message, "not now"))
                    }
                    2 => panic!("a broker that panics"),
                    _ => self.0.enqueue(message).await,
                }
            })
        }
        fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
            self.0.try_enqueue(message)
        }
        fn state(&self) -> BrokerState {
            BrokerState::Ready
        }
        fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
            self.0.shutdown(deadline)
        }
    }
    struct Ship(Log);
    impl EventHandler<Ordered> for Ship {
        async fn handle(&self, _: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            self.0.add("handled");
            scope.emit(Shipped { number: 1 });
            Ok(())
        }
    }
    let broker = Scribe::new(Script::default());
    let events = EventMediator::builder()
        .event::<Ordered, _>(Ship(broker.log.clone()))
        .broker(Fragile(broker.inner.clone(), Mutex::default()))
        .build()
        .unwrap();
    let (log, _) = run(&broker, Retry::default(), events, "ack").await;
    assert_eq!(log, ["handled", "publish Shipped", "ack", "closed"]);
}
