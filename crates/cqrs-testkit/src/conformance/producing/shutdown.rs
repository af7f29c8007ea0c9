//! Cases of a shutdown: refuse new messages, flush until a deadline, report undelivered ones.

use std::time::{Duration, Instant};

use cqrs_core::PublishErrorKind;
use cqrs_core::broker::BrokerState;

use super::fixture::{ProducingFixture, assert_kind, numbers};
use crate::conformance::harness::{Harness, Setup};

pub(crate) async fn shutdown_flushes_then_refuses<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let mut receipts = Vec::new();
    for number in 0..100 {
        receipts.push(fixture.enqueue(fixture.numbered(number).with_key("k")).await);
    }
    let timeout = fixture.can.timeout;
    let report = fixture.within("shutdown", fixture.broker.shutdown(timeout)).await;
    assert_eq!(report.undelivered, 0);
    fixture.all_confirmed(receipts).await;
    let mut arrived = numbers(&fixture.receive_all(100).await);
    arrived.sort_unstable();
    assert_eq!(arrived, (0..100).collect::<Vec<_>>());

    assert_eq!(fixture.broker.state(), BrokerState::Closed);
    let closed = [PublishErrorKind::Closed];
    let error = fixture.broker.try_enqueue(fixture.numbered(100)).expect_err("it is shut down");
    assert_kind(&error, &closed);
    let enqueued = fixture.within("enqueue", fixture.broker.enqueue(fixture.numbered(101))).await;
    assert_kind(&enqueued.expect_err("it is shut down"), &closed);
    assert_kind(&fixture.refused(fixture.numbered(102)).await, &closed);
    let again = fixture.within("a second shutdown", fixture.broker.shutdown(timeout)).await;
    assert_eq!(again, report, "a second shutdown reports the same");
    fixture.receive_all(0).await;
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
    let fixture = ProducingFixture::stalled(harness, setup).await;
    let mut receipts = Vec::new();
    for number in 0..COUNT {
        receipts.push(fixture.enqueue(fixture.numbered(number)).await);
    }
    let started = Instant::now();
    let report = fixture.within("shutdown", fixture.broker.shutdown(DEADLINE)).await;
    let elapsed = started.elapsed();
    assert!(elapsed <= DEADLINE + Duration::from_secs(20), "took {elapsed:?}");
    let mut failed = 0;
    for receipt in receipts {
        // After the shutdown there is nothing to wait for.
        if let Err(error) = fixture.within("the end of a receipt", receipt).await {
            let kinds =
                [PublishErrorKind::Closed, PublishErrorKind::NotSent, PublishErrorKind::Unknown];
            assert_kind(&error, &kinds);
            failed += 1;
        }
    }
    assert!(failed > 0, "nothing can have been confirmed");
    assert_eq!(report.undelivered, failed, "the report and the receipts");
    fixture.resume().await;
}
