//! Cases of handlers that settle by themselves.

use std::time::Duration;

use cqrs_core::consume::DeadLetterReason;
use cqrs_core::{Delivery, HandlerError, NotificationEvent, Retry, manual};

use super::service::Log;
use crate::conformance::fixture::{Counted, Fixture};
use crate::conformance::harness::Harness;

const DELAY: Duration = Duration::from_millis(200);

pub(crate) async fn manual_handlers_settle_by_themselves<H: Harness>(harness: &H) {
    let (fixture, log) = (Fixture::new(harness).await, Log::default());
    let target = manual({
        let log = log.clone();
        move |event: NotificationEvent<Counted>, delivery: Delivery| {
            let log = log.clone();
            async move {
                let attempt = delivery.attempt();
                log.add(&event.payload, attempt);
                let settled = match (event.payload.number, attempt) {
                    (1, _) => delivery.dead_letter(HandlerError::permanent("no")).await,
                    (2, 1) => {
                        drop(delivery);
                        Ok(())
                    }
                    (3, 1) => delivery.retry_later(DELAY).await,
                    _ => delivery.ack().await,
                };
                settled.expect("the broker confirms it");
            }
        }
    });
    // RabbitMQ supports only the delays of the schedule.
    let retry = Retry::none().delayed([DELAY]);
    let running = fixture.run(fixture.subscription().retry(retry), target).await;
    fixture.publish_events(4).await;
    fixture.until("three are acked", || running.counts().handled == 3).await;
    let counts = running.end().await.counts;
    let mut runs = log.attempts();
    runs.sort();
    assert_eq!(runs, ["1#1", "2#1", "2#2", "3#1", "3#2", "4#1"]);
    assert_eq!(counts.dead_lettered, 1);
    let (_, letter) = fixture.dead_letter(&mut fixture.dead_letters().await).await;
    assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Permanent, 1));
    fixture.assert_all_settled().await;
}
