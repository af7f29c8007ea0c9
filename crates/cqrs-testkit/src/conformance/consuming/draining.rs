//! Cases of a service's stop: running handlers finish, the rest is requeued.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::service::Log;
use crate::conformance::fixture::Fixture;
use crate::conformance::harness::Harness;

pub(crate) async fn stop_finishes_running_and_returns_the_rest<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let gate = Arc::new(Semaphore::new(0));
    let handler = {
        let gate = Arc::clone(&gate);
        log.each_async(move |_| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.expect("never closed").forget();
                Ok(())
            }
        })
    };
    let running = fixture.run(fixture.subscription(), handler).await;
    // One event per key: a broker may deliver one message of a key at a time.
    fixture
        .publish_all((1..=4).map(|number| fixture.event(&format!("key-{number}"), number)))
        .await;
    fixture.until("one of them runs", || log.len() == 1).await;
    fixture.until("the others wait for it", || running.counts().received == 4).await;
    running.stop();
    fixture.until("it is not ready any more", || !running.is_ready()).await;
    gate.add_permits(4);
    let report = running.end().await;
    assert_eq!((report.counts.handled, report.cancelled), (1, 0));
    assert_eq!(log.len(), 1, "no handler started after the stop");

    let running = fixture.run(fixture.subscription(), log.each(|_| Ok(()))).await;
    fixture.until("the rest is handled", || running.counts().handled == 3).await;
    running.end().await;
    let mut runs = log.attempts();
    runs.sort();
    assert_eq!(runs, ["1#1", "2#1", "3#1", "4#1"], "each once");
    fixture.assert_all_settled().await;
}

pub(crate) async fn stop_waits_no_longer_than_its_drain<H: Harness>(harness: &H) {
    const DRAIN: Duration = Duration::from_millis(300);
    /// The time that stopping and closing the source may take in addition.
    const CLOSING: Duration = Duration::from_secs(12);
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let never = log.each_async(|_| std::future::pending());
    let running = fixture.run_draining(fixture.subscription(), never, DRAIN).await;
    fixture.publish_events(1).await;
    fixture.until("it runs", || log.len() == 1).await;
    let started = Instant::now();
    let report = running.end().await;
    let took = started.elapsed();
    assert!((DRAIN..=DRAIN + CLOSING).contains(&took), "took {took:?}");
    assert_eq!((report.cancelled, report.counts.handled), (1, 0));
    assert_eq!(fixture.unsettled().await.len(), 1, "it was requeued");
}
