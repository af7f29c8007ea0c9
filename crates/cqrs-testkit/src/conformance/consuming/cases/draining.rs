//! A stop finishes what runs, and gives the rest back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::super::ConsumingHarness;
use super::super::service::Log;
use super::super::stage::Stage;

pub(crate) async fn a_stop_finishes_what_runs_and_gives_back_the_rest<H: ConsumingHarness>(
    harness: &H,
) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
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
    let running = stage.run(stage.subscription(), handler).await;
    // Of a key each: a broker may hand out one of a key at a time.
    stage.publish_all((1..=4).map(|number| stage.event(&format!("key-{number}"), number))).await;
    stage.until("one of them runs", || log.len() == 1).await;
    stage.until("the others wait for it", || running.counts().received == 4).await;
    running.stop();
    stage.until("it is not ready any more", || !running.is_ready()).await;
    gate.add_permits(4);
    let report = running.end().await;
    assert_eq!((report.counts.handled, report.cancelled), (1, 0));
    assert_eq!(log.len(), 1, "nothing was begun after the stop");

    let running = stage.run(stage.subscription(), log.each(|_| Ok(()))).await;
    stage.until("the rest is handled", || running.counts().handled == 3).await;
    running.end().await;
    let mut runs = log.runs();
    runs.sort();
    assert_eq!(runs, ["1#1", "2#1", "3#1", "4#1"], "each once");
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_stop_waits_no_longer_than_its_drain<H: ConsumingHarness>(harness: &H) {
    const DRAIN: Duration = Duration::from_millis(300);
    /// What stopping and closing the source may take beside it.
    const CLOSING: Duration = Duration::from_secs(12);
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let never = log.each_async(|_| std::future::pending());
    let running = stage.run_draining(stage.subscription(), never, DRAIN).await;
    stage.publish_events(1).await;
    stage.until("it runs", || log.len() == 1).await;
    let started = Instant::now();
    let report = running.end().await;
    let took = started.elapsed();
    assert!((DRAIN..=DRAIN + CLOSING).contains(&took), "took {took:?}");
    assert_eq!((report.cancelled, report.counts.handled), (1, 0));
    assert_eq!(stage.left().await.len(), 1, "it was given back");
}
