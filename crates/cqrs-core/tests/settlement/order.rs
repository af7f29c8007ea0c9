//! Tests of the order of a commit, the copies and the ack of one message.

use super::*;

#[tokio::test(start_paused = true)]
async fn commit_then_publish_then_ack() {
    struct Ship;
    impl EventHandler<Ordered> for Ship {
        async fn handle(&self, event: &Ordered, scope: &mut Scope) -> Result<(), HandlerError> {
            scope.unit_of_work::<Transaction>().await?.write("shipment");
            scope.emit(Shipped { number: event.number });
            Ok(())
        }
    }
    for (fault, expected) in [
        (Fault::None, vec!["begin", "commit", "publish Shipped", "ack", "closed"]),
        (Fault::Commit, vec!["begin", "commit failed", "dead exhausted 1", "ack", "closed"]),
    ] {
        let broker = Scribe::new(Script::default());
        let events = EventMediator::builder()
            .event::<Ordered, _>(Ship)
            .unit_of_work(Store::new(&broker.log, fault))
            .broker(broker.clone())
            .build()
            .unwrap();
        let (log, _) = run(&broker, Retry::none(), events, "ack").await;
        assert_eq!(log, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_confirmed_before_the_original_is_acked() {
    let broker = Scribe::new(Script { scheduled: true, copies_fail: 2, ..Script::default() });
    let (log, _) = run(&broker, delayed(10), failing(), "ack").await;
    let not = "copy 1 in 10s not confirmed";
    assert_eq!(log, [not, not, "copy 1 in 10s", "ack", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn dead_letter_is_confirmed_before_the_ack() {
    let broker = Scribe::new(Script { copies_fail: 3, ..Script::default() });
    let permanent =
        each(|_: NotificationEvent<Ordered>, _: Received| async { Err("never").permanent() });
    let (log, _) = run(&broker, Retry::default(), permanent, "ack").await;
    let not = "dead permanent 1 not confirmed";
    assert_eq!(log, [not, not, not, "dead permanent 1", "ack", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn acked_settlement_is_dropped_before_the_next_handler_ends() {
    let broker = three(Script { writes_drops: true, ..Script::default() });
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let waits = {
        let gate = Arc::clone(&gate);
        each(move |event: NotificationEvent<Ordered>, _: Received| {
            let gate = Arc::clone(&gate);
            async move {
                if event.payload.number == 3 {
                    let _open = gate.acquire().await;
                }
                Ok(())
            }
        })
    };
    let subscription = paid(Retry::none()).concurrency(1);
    let service = Service::builder(broker.clone()).subscribe(subscription, waits).build().unwrap();
    let log = broker.log.clone();
    let seen = async move {
        // The second and the third are one run of the worker.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(log.lines(), ["ack", "drop 1", "ack", "drop 2"]);
        gate.close();
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    drop(service.run_until(seen).await.unwrap());
    assert_eq!(broker.log.lines()[4..], ["ack", "drop 3", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn an_ack_that_fails_is_counted_and_settles_nothing() {
    let broker = Scribe::new(Script { acks_fail: true, ..Script::default() });
    let fine = each(|_: NotificationEvent<Ordered>, _: Received| async { Ok(()) });
    let (log, report) = run(&broker, Retry::none(), fine, "given back").await;
    assert_eq!(log, ["ack failed", "given back", "closed"]);
    let counts = report.unwrap().subscriptions[0].counts;
    assert_eq!((counts.handled, counts.unacked), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn max_crashes_dead_letters_without_another_start() {
    let handled = vec!["ack", "closed"];
    let dead = vec!["dead exhausted 0", "ack", "closed"];
    for (max_crashes, crashes, expected) in
        [(3, 2, &handled), (3, 3, &dead), (1, 1, &dead), (0, 1, &handled), (0, 9, &handled)]
    {
        let broker = Scribe::new(Script { crashes, ..Script::default() });
        let fine = each(|_: NotificationEvent<Ordered>, _: Received| async { Ok(()) });
        let subscription = paid(Retry::none()).max_crashes(max_crashes);
        let (log, _) = run_with(&broker, subscription, fine, "ack").await;
        assert_eq!(log, *expected, "{crashes} of {max_crashes}");
    }
}
