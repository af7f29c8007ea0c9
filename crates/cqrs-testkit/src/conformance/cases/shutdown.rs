//! Refuse new work, flush to a deadline, report what was not delivered.

use std::time::{Duration, Instant};

use cqrs_core::PublishErrorKind;
use cqrs_core::broker::BrokerState;

use super::super::stage::{Stage, assert_kind, numbers};
use super::super::{Harness, Setup};

pub(crate) async fn shutdown_flushes_then_refuses<H: Harness>(harness: &H) {
    let mut stage = Stage::new(harness).await;
    let mut receipts = Vec::new();
    for number in 0..100 {
        receipts.push(stage.enqueue(stage.message(number).with_key("k")).await);
    }
    let patience = stage.can.patience;
    let report = stage.within("shutdown", stage.broker.shutdown(patience)).await;
    assert_eq!(report.undelivered, 0);
    stage.all_confirmed(receipts).await;
    let mut arrived = numbers(&stage.receive_all(100).await);
    arrived.sort_unstable();
    assert_eq!(arrived, (0..100).collect::<Vec<_>>());

    assert_eq!(stage.broker.state(), BrokerState::Closed);
    let closed = [PublishErrorKind::Closed];
    let error = stage.broker.try_enqueue(stage.message(100)).expect_err("it is shut down");
    assert_kind(&error, &closed);
    let enqueued = stage.within("enqueue", stage.broker.enqueue(stage.message(101))).await;
    assert_kind(&enqueued.expect_err("it is shut down"), &closed);
    assert_kind(&stage.refused(stage.message(102)).await, &closed);
    let again = stage.within("a second shutdown", stage.broker.shutdown(patience)).await;
    assert_eq!(again, report, "a second shutdown tells of the same end");
    stage.receive_all(0).await;
}

pub(crate) async fn shutdown_reports_what_was_not_delivered<H: Harness>(harness: &H) {
    const COUNT: usize = 20;
    const DEADLINE: Duration = Duration::from_secs(1);
    if !harness.capabilities().stall {
        return;
    }
    // The shutdown does not wait for the deadline of a publish.
    let publish_timeout = Duration::from_secs(90);
    let setup = Setup { window_messages: 2 * COUNT, publish_timeout, ..Setup::default() };
    let stage = Stage::stalled(harness, setup).await;
    let mut receipts = Vec::new();
    for number in 0..COUNT {
        receipts.push(stage.enqueue(stage.message(number)).await);
    }
    let started = Instant::now();
    let report = stage.within("shutdown", stage.broker.shutdown(DEADLINE)).await;
    let elapsed = started.elapsed();
    assert!(elapsed <= DEADLINE + Duration::from_secs(20), "took {elapsed:?}");
    let mut failed = 0;
    for receipt in receipts {
        // After the shutdown there is nothing to wait for.
        if let Err(error) = stage.within("the end of a receipt", receipt).await {
            let kinds =
                [PublishErrorKind::Closed, PublishErrorKind::NotSent, PublishErrorKind::Unknown];
            assert_kind(&error, &kinds);
            failed += 1;
        }
    }
    assert!(failed > 0, "nothing can have been confirmed");
    assert_eq!(report.undelivered, failed, "the report and the receipts");
    stage.resume().await;
}
