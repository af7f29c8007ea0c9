//! Tests of `Unconfirmed` with real receipts and a simulated server.

mod returns;

use std::time::Duration;

use cqrs_core::broker::{Confirmation, Intake, PendingConfirm, Receipt, Window};
use cqrs_core::{Message, PublishError, PublishErrorKind};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::unconfirmed::Unconfirmed;
use crate::connect::Returned;
use crate::error::{AmqpError, channel_close};

const TIMEOUT: Duration = Duration::from_secs(30);

fn intake() -> Intake {
    Intake::new(Window::new(1_000, 1 << 20), TIMEOUT)
}

fn admit(intake: &Intake, message: Message) -> (PendingConfirm, Receipt) {
    intake.try_admit(message).unwrap()
}

/// Enqueues a message with `body`.
fn push(unconfirmed: &mut Unconfirmed, intake: &Intake, body: &str) -> Receipt {
    let (pending, receipt) = admit(intake, Message::new("t", body.to_owned()));
    unconfirmed.push(pending);
    receipt
}

/// Writes what may be written; delivery tags and bodies in order.
fn write(unconfirmed: &mut Unconfirmed) -> Vec<(u64, String)> {
    let mut written = Vec::new();
    while let Some(message) = unconfirmed.next() {
        let body = String::from_utf8(message.body.to_vec()).unwrap();
        let tag = unconfirmed.next_tag();
        if unconfirmed.send_next() {
            written.push((tag, body));
        }
    }
    written
}

fn bodies(written: &[(u64, String)]) -> Vec<&str> {
    written.iter().map(|(_, body)| body.as_str()).collect()
}

fn ack(unconfirmed: &mut Unconfirmed, tag: u64) {
    unconfirmed.answered(tag, false, true);
}

fn outcome(receipt: &mut Receipt) -> Option<Result<Confirmation, PublishError>> {
    receipt.now_or_never()
}

fn kind(receipt: &mut Receipt) -> Option<PublishErrorKind> {
    outcome(receipt).map(|outcome| outcome.unwrap_err().kind())
}

fn returned(message: &Message) -> Returned {
    Returned {
        id: Some(message.id),
        topic: message.topic.to_string(),
        reason: "the server says 312: NO_ROUTE".into(),
    }
}

fn too_large() -> AmqpError {
    channel_close(406, "too large")
}

#[tokio::test]
async fn ack_confirms_and_nack_refuses() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut first = push(&mut unconfirmed, &intake, "1");
    let mut second = push(&mut unconfirmed, &intake, "2");
    let written = write(&mut unconfirmed);
    assert_eq!(bodies(&written), ["1", "2"]);
    unconfirmed.answered(written[1].0, false, false);
    assert!(outcome(&mut first).is_none());
    unconfirmed.answered(written[0].0, false, true);
    outcome(&mut first).unwrap().unwrap();
    assert_eq!(kind(&mut second), Some(PublishErrorKind::Refused));
    assert!(unconfirmed.is_empty());
    assert_eq!(intake.in_flight(), 0);
}

#[tokio::test]
async fn unconfirmed_are_resent_first_and_in_order() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut receipts: Vec<_> =
        ["1", "2", "3", "4"].iter().map(|body| push(&mut unconfirmed, &intake, body)).collect();
    let written = write(&mut unconfirmed);
    ack(&mut unconfirmed, written[1].0);
    receipts.push(push(&mut unconfirmed, &intake, "5"));
    unconfirmed.channel_lost(false);
    assert_eq!(bodies(&write(&mut unconfirmed)), ["1", "3", "4", "5"]);
    assert!(outcome(&mut receipts[1]).unwrap().is_ok());
    assert!(outcome(&mut receipts[0]).is_none());
    // Tags count anew on each channel.
    ack(&mut unconfirmed, 2);
    assert!(outcome(&mut receipts[0]).is_none());
    assert!(outcome(&mut receipts[2]).unwrap().is_ok());
    assert_eq!(intake.in_flight(), 3);
}

#[tokio::test]
async fn multiple_ack_confirms_all_up_to_its_tag() {
    for (tag, confirmed) in [(1, 1), (3, 3), (4, 4), (9, 4), (0, 4)] {
        let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
        let mut lost = push(&mut unconfirmed, &intake, "lost");
        write(&mut unconfirmed);
        unconfirmed.channel_lost(false);
        let mut receipts: Vec<_> =
            ["2", "3", "4"].iter().map(|body| push(&mut unconfirmed, &intake, body)).collect();
        receipts.insert(0, lost);
        assert_eq!(bodies(&write(&mut unconfirmed)), ["lost", "2", "3", "4"]);
        ack(&mut unconfirmed, 2);
        assert!(outcome(&mut receipts[1]).unwrap().is_ok());
        unconfirmed.answered(tag, true, true);
        for (index, receipt) in receipts.iter_mut().enumerate().filter(|(index, _)| *index != 1) {
            assert_eq!(outcome(receipt).is_some(), index < confirmed, "{tag}: {index}");
        }
        // A later tag counts on.
        lost = push(&mut unconfirmed, &intake, "5");
        write(&mut unconfirmed);
        ack(&mut unconfirmed, 5);
        outcome(&mut lost).unwrap().unwrap();
        let unconfirmed = (1..=4).filter(|number| *number != 2 && *number > confirmed).count();
        assert_eq!(intake.in_flight(), unconfirmed);
    }
}

#[tokio::test]
async fn ack_before_a_lost_channel_counts() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut receipt = push(&mut unconfirmed, &intake, "1");
    let written = write(&mut unconfirmed);
    ack(&mut unconfirmed, written[0].0);
    unconfirmed.channel_lost(false);
    outcome(&mut receipt).unwrap().unwrap();
    assert!(unconfirmed.is_empty());
}

#[tokio::test]
async fn only_message_on_a_closed_channel_is_rejected() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut receipt = push(&mut unconfirmed, &intake, "1");
    write(&mut unconfirmed);
    let mut other = push(&mut unconfirmed, &intake, "2");
    unconfirmed.channel_closed(&too_large());
    let error = outcome(&mut receipt).unwrap().unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Invalid);
    assert!(error.detail().contains("406: too large"), "{error}");
    let written = write(&mut unconfirmed);
    assert_eq!(bodies(&written), ["2"]);
    ack(&mut unconfirmed, written[0].0);
    outcome(&mut other).unwrap().unwrap();
}

#[tokio::test]
async fn closed_channel_isolates_messages_until_one_fails() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut receipts: Vec<_> =
        ["a", "b", "BAD", "d"].iter().map(|body| push(&mut unconfirmed, &intake, body)).collect();
    write(&mut unconfirmed);
    unconfirmed.channel_closed(&too_large());
    receipts.push(push(&mut unconfirmed, &intake, "new"));
    for other in ["a", "b"] {
        let written = write(&mut unconfirmed);
        assert_eq!(bodies(&written), [other], "alone");
        ack(&mut unconfirmed, written[0].0);
    }
    assert_eq!(bodies(&write(&mut unconfirmed)), ["BAD"]);
    // After a loss it is sent again, alone.
    unconfirmed.channel_lost(false);
    assert_eq!(bodies(&write(&mut unconfirmed)), ["BAD"]);
    unconfirmed.channel_closed(&too_large());
    assert_eq!(kind(&mut receipts[2]), Some(PublishErrorKind::Invalid));
    let written = write(&mut unconfirmed);
    assert_eq!(bodies(&written), ["d"], "still isolated");
    ack(&mut unconfirmed, written[0].0);
    let written = write(&mut unconfirmed);
    assert_eq!(bodies(&written), ["new"]);
    ack(&mut unconfirmed, written[0].0);
    for (index, receipt) in receipts.iter_mut().enumerate().filter(|(index, _)| *index != 2) {
        assert!(outcome(receipt).is_some_and(|outcome| outcome.is_ok()), "{index}");
    }
    assert_eq!(intake.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn deadline_expires_queued_and_sent_messages() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    assert_eq!(unconfirmed.next_deadline(), None);
    let mut sent = push(&mut unconfirmed, &intake, "sent");
    let written = write(&mut unconfirmed);
    let first = unconfirmed.next_deadline().unwrap();
    assert_eq!(first, Instant::now() + TIMEOUT);
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut waits = push(&mut unconfirmed, &intake, "waits");
    assert_eq!(unconfirmed.next_deadline(), Some(first));
    assert_eq!(unconfirmed.expire(first - Duration::from_millis(1)), 0);
    assert_eq!(unconfirmed.expire(first), 1);
    assert_eq!(kind(&mut sent), Some(PublishErrorKind::Unknown));
    assert_eq!(unconfirmed.next_deadline(), Some(first + Duration::from_secs(1)));
    assert_eq!((intake.in_flight(), unconfirmed.expired()), (1, 1));
    assert_eq!(unconfirmed.expire(first + Duration::from_secs(1)), 1);
    assert_eq!(kind(&mut waits), Some(PublishErrorKind::NotSent));
    assert!(unconfirmed.is_empty() && unconfirmed.next_deadline().is_none());
    // The late answer frees its memory.
    ack(&mut unconfirmed, written[0].0);
    assert_eq!((intake.in_flight(), unconfirmed.expired()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn message_of_an_expired_receipt_is_not_sent() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let receipt = push(&mut unconfirmed, &intake, "late");
    // The receipt's own timer fires before the publisher looks.
    assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::NotSent);
    assert!(unconfirmed.next().is_some());
    assert!(!unconfirmed.send_next());
    assert_eq!(intake.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn expired_message_is_not_resent() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut receipt = push(&mut unconfirmed, &intake, "1");
    write(&mut unconfirmed);
    unconfirmed.expire(Instant::now() + TIMEOUT);
    unconfirmed.channel_lost(false);
    assert!(write(&mut unconfirmed).is_empty());
    assert_eq!(kind(&mut receipt), Some(PublishErrorKind::Unknown));
}

#[tokio::test]
async fn shutdown_tells_sent_from_unsent() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut sent = push(&mut unconfirmed, &intake, "1");
    write(&mut unconfirmed);
    let mut waits = push(&mut unconfirmed, &intake, "2");
    assert_eq!(unconfirmed.abandon(), 2);
    assert_eq!(kind(&mut sent), Some(PublishErrorKind::Unknown));
    assert_eq!(kind(&mut waits), Some(PublishErrorKind::Closed));
    assert!(unconfirmed.is_empty());
    assert_eq!(intake.in_flight(), 0);
}

#[tokio::test]
async fn rejected_message_does_not_block_the_next() {
    let (intake, mut unconfirmed) = (intake(), Unconfirmed::default());
    let mut refused = push(&mut unconfirmed, &intake, "1");
    let _next = push(&mut unconfirmed, &intake, "2");
    unconfirmed.reject_next(PublishErrorKind::TooLarge, "headers".into(), None);
    assert_eq!(kind(&mut refused), Some(PublishErrorKind::TooLarge));
    assert_eq!(bodies(&write(&mut unconfirmed)), ["2"]);
}
