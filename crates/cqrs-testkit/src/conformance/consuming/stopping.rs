//! Cases of a source's bounds: deliveries in flight, a stop, the time of a close.

use std::time::Duration;

use crate::conformance::fixture::{Fixture, QUIET};
use crate::conformance::harness::{Fault, Harness};
use crate::source::{ack, text};

/// The time that a close may take beyond its deadline on a busy machine; less than the detection of a
/// hanging server takes.
const SLACK: Duration = Duration::from_secs(15);

pub(crate) async fn in_flight_stays_within_the_cap<H: Harness>(harness: &H) {
    const CAP: usize = 3;
    const COUNT: usize = 8;
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open_with(|request| request.max_unsettled = Some(CAP)).await;
    let message = |number: usize| fixture.message_of(&format!("key-{number}"), number);
    fixture.publish_all((0..COUNT).map(message)).await;
    let mut out = Vec::new();
    while out.len() < CAP {
        // More room than the cap leaves.
        out.extend(source.fetch(COUNT).await);
    }
    assert_eq!(out.len(), CAP);
    source.nothing_within(QUIET).await;
    let mut done = Vec::new();
    while done.len() < COUNT {
        if out.is_empty() {
            out.push(source.next().await);
        }
        let delivery = out.remove(0);
        done.push(text(&delivery));
        assert!(ack(delivery).await);
        // Each partition may have only a share of the cap.
        out.extend(source.next_within(QUIET).await);
        if out.len() == CAP {
            source.nothing_within(QUIET / 6).await;
        }
    }
    done.sort();
    assert_eq!(done, (0..COUNT).map(|number| number.to_string()).collect::<Vec<_>>());
    source.close().await;
}

pub(crate) async fn stopped_source_delivers_nothing<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    fixture.publish_all(["a", "b", "c"].map(|key| fixture.message_of(key, key))).await;
    let held = source.next().await;
    let mut others = vec!["a", "b", "c"];
    others.retain(|other| *other != text(&held));
    source.stop().await;
    source.nothing_after_stop(QUIET).await;
    fixture.publish(fixture.message_of("d", "d")).await;
    others.push("d");
    source.nothing_after_stop(QUIET).await;
    assert!(ack(held).await, "a delivery in flight can be settled until the close");
    source.close().await;
    let mut unsettled = fixture.unsettled().await;
    unsettled.sort();
    assert_eq!(unsettled, others);
}

pub(crate) async fn close_ends_in_time<H: Harness>(harness: &H) {
    const DEADLINE: Duration = Duration::from_secs(20);
    let fixture = Fixture::new(harness).await;
    let mut source = fixture.open().await;
    fixture.publish(fixture.message("1")).await;
    let held = source.next().await;
    source.stop().await;
    let (took, closed) = source.close_within(DEADLINE).await;
    closed.expect("the server answers");
    assert!(took <= DEADLINE + SLACK, "took {took:?}");
    drop(held);
}

pub(crate) async fn close_ends_in_time_when_the_server_hangs<H: Harness>(harness: &H) {
    const DEADLINE: Duration = Duration::from_secs(1);
    if !harness.capabilities().hang {
        return;
    }
    let fixture = Fixture::with_faults(harness).await;
    let mut source = fixture.open().await;
    fixture.publish(fixture.message("1")).await;
    let held = source.next().await;
    fixture.inject(Fault::Hang).await;
    let (took, _failed) = source.close_within(DEADLINE).await;
    fixture.inject(Fault::Respond).await;
    assert!(took <= DEADLINE + SLACK, "took {took:?}");
    drop(held);
}
