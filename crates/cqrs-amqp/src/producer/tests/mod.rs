//! The ledger under attack, with real receipts and a pretended server and lapin.

mod returns;

use std::time::Duration;

use cqrs_core::broker::{Confirmation, Intake, PendingConfirm, Receipt, Window};
use cqrs_core::{Message, PublishError, PublishErrorKind};
use futures_util::FutureExt;
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPSoftError};
use tokio::time::Instant;

use super::ledger::{Ledger, Returned};
use crate::{AmqpError, ErrorKind};

const TIMEOUT: Duration = Duration::from_secs(30);

fn intake() -> Intake {
    Intake::new(Window::new(1_000, 1 << 20), TIMEOUT)
}

fn admit(intake: &Intake, message: Message) -> (PendingConfirm, Receipt) {
    intake.try_admit(message).unwrap()
}

/// Enqueues a message with `body`.
fn push(ledger: &mut Ledger, intake: &Intake, body: &str) -> Receipt {
    let (pending, receipt) = admit(intake, Message::new("t", body.to_owned()));
    ledger.push(pending);
    receipt
}

/// Writes what may be written; numbers and bodies in order.
fn write(ledger: &mut Ledger) -> Vec<(u64, String)> {
    let mut written = Vec::new();
    while let Some(message) = ledger.next() {
        let body = String::from_utf8(message.body.to_vec()).unwrap();
        if let Some(number) = ledger.write_next() {
            written.push((number, body));
        }
    }
    written
}

fn bodies(written: &[(u64, String)]) -> Vec<&str> {
    written.iter().map(|(_, body)| body.as_str()).collect()
}

fn ack(ledger: &mut Ledger, number: u64) {
    ledger.answered(number, true, None);
    ledger.cut();
}

fn verdict(receipt: &mut Receipt) -> Option<Result<Confirmation, PublishError>> {
    receipt.now_or_never()
}

fn kind(receipt: &mut Receipt) -> Option<PublishErrorKind> {
    verdict(receipt).map(|verdict| verdict.unwrap_err().kind())
}

fn returned(message: &Message) -> Returned {
    Returned {
        id: Some(message.id),
        topic: message.topic.to_string(),
        reason: "the server says 312: NO_ROUTE".into(),
    }
}

fn too_large() -> AmqpError {
    let kind = AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED);
    let error = lapin::ErrorKind::ProtocolError(AMQPError::new(kind, "too large".into()));
    AmqpError::from_lapin(ErrorKind::ChannelClosed, "the server closed the channel", &error.into())
}

#[tokio::test]
async fn an_ack_confirms_and_a_nack_refuses() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut first = push(&mut ledger, &intake, "1");
    let mut second = push(&mut ledger, &intake, "2");
    let written = write(&mut ledger);
    assert_eq!(bodies(&written), ["1", "2"]);
    ledger.answered(written[1].0, false, None);
    ledger.answered(written[0].0, true, None);
    assert!(verdict(&mut first).is_none(), "not before the cut");
    ledger.cut();
    verdict(&mut first).unwrap().unwrap();
    assert_eq!(kind(&mut second), Some(PublishErrorKind::Refused));
    assert!(ledger.is_empty());
    assert_eq!(intake.in_flight(), 0);
}

#[tokio::test]
async fn after_a_loss_the_unconfirmed_go_first_and_in_order() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut receipts: Vec<_> =
        ["1", "2", "3", "4"].iter().map(|body| push(&mut ledger, &intake, body)).collect();
    let written = write(&mut ledger);
    ack(&mut ledger, written[1].0);
    receipts.push(push(&mut ledger, &intake, "5"));
    ledger.lost();
    assert_eq!(bodies(&write(&mut ledger)), ["1", "3", "4", "5"]);
    assert!(verdict(&mut receipts[1]).unwrap().is_ok());
    assert!(verdict(&mut receipts[0]).is_none());
    // Answers of the old channel are nothing.
    ack(&mut ledger, written[0].0);
    assert!(verdict(&mut receipts[0]).is_none());
    assert_eq!(intake.in_flight(), 4);
}

#[tokio::test]
async fn an_ack_that_came_with_the_loss_counts() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut receipt = push(&mut ledger, &intake, "1");
    let written = write(&mut ledger);
    ledger.answered(written[0].0, true, None);
    ledger.lost();
    verdict(&mut receipt).unwrap().unwrap();
    assert!(ledger.is_empty());
}

#[tokio::test]
async fn one_alone_on_a_closed_channel_is_the_culprit() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut receipt = push(&mut ledger, &intake, "1");
    write(&mut ledger);
    let mut innocent = push(&mut ledger, &intake, "2");
    ledger.closed(&too_large());
    let error = verdict(&mut receipt).unwrap().unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Invalid);
    assert!(error.detail().contains("406: too large"), "{error}");
    let written = write(&mut ledger);
    assert_eq!(bodies(&written), ["2"]);
    ack(&mut ledger, written[0].0);
    verdict(&mut innocent).unwrap().unwrap();
}

#[tokio::test]
async fn suspects_go_one_by_one_until_the_culprit_is_found() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut receipts: Vec<_> =
        ["a", "b", "BAD", "d"].iter().map(|body| push(&mut ledger, &intake, body)).collect();
    write(&mut ledger);
    ledger.closed(&too_large());
    receipts.push(push(&mut ledger, &intake, "new"));
    for innocent in ["a", "b"] {
        let written = write(&mut ledger);
        assert_eq!(bodies(&written), [innocent], "alone");
        ack(&mut ledger, written[0].0);
    }
    assert_eq!(bodies(&write(&mut ledger)), ["BAD"]);
    // A loss in between changes nothing: it is written again, alone.
    ledger.lost();
    assert_eq!(bodies(&write(&mut ledger)), ["BAD"]);
    ledger.closed(&too_large());
    assert_eq!(kind(&mut receipts[2]), Some(PublishErrorKind::Invalid));
    let written = write(&mut ledger);
    assert_eq!(bodies(&written), ["d"], "still a suspect");
    ack(&mut ledger, written[0].0);
    let written = write(&mut ledger);
    assert_eq!(bodies(&written), ["new"]);
    ack(&mut ledger, written[0].0);
    for (index, receipt) in receipts.iter_mut().enumerate().filter(|(index, _)| *index != 2) {
        assert!(verdict(receipt).is_some_and(|verdict| verdict.is_ok()), "{index}");
    }
    assert_eq!(intake.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn deadlines_end_what_waits_and_what_is_in_the_air() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    assert_eq!(ledger.next_deadline(), None);
    let mut sent = push(&mut ledger, &intake, "sent");
    let written = write(&mut ledger);
    let first = ledger.next_deadline().unwrap();
    assert_eq!(first, Instant::now() + TIMEOUT);
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut waits = push(&mut ledger, &intake, "waits");
    assert_eq!(ledger.next_deadline(), Some(first));
    assert_eq!(ledger.expire(first - Duration::from_millis(1)), 0);
    assert_eq!(ledger.expire(first), 1);
    assert_eq!(kind(&mut sent), Some(PublishErrorKind::Unknown));
    assert_eq!(ledger.next_deadline(), Some(first + Duration::from_secs(1)));
    assert_eq!((intake.in_flight(), ledger.given_up()), (1, 1));
    assert_eq!(ledger.expire(first + Duration::from_secs(1)), 1);
    assert_eq!(kind(&mut waits), Some(PublishErrorKind::NotSent));
    assert!(ledger.is_empty() && ledger.next_deadline().is_none());
    // The late answer finds nobody, and its memory is freed.
    ack(&mut ledger, written[0].0);
    assert_eq!((intake.in_flight(), ledger.given_up()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_expired_with_its_receipt_is_never_written() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let receipt = push(&mut ledger, &intake, "late");
    // The receipt's own timer fires before the lane looks.
    assert_eq!(receipt.await.unwrap_err().kind(), PublishErrorKind::NotSent);
    assert!(ledger.next().is_some());
    assert_eq!(ledger.write_next(), None);
    assert_eq!(intake.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_is_not_written_again() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut receipt = push(&mut ledger, &intake, "1");
    write(&mut ledger);
    ledger.expire(Instant::now() + TIMEOUT);
    ledger.lost();
    assert!(write(&mut ledger).is_empty());
    assert_eq!(kind(&mut receipt), Some(PublishErrorKind::Unknown));
}

#[tokio::test]
async fn a_shutdown_says_what_is_known_of_each() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut sent = push(&mut ledger, &intake, "1");
    write(&mut ledger);
    let mut waits = push(&mut ledger, &intake, "2");
    assert_eq!(ledger.abandon(), 2);
    assert_eq!(kind(&mut sent), Some(PublishErrorKind::Unknown));
    assert_eq!(kind(&mut waits), Some(PublishErrorKind::Closed));
    assert!(ledger.is_empty());
    assert_eq!(intake.in_flight(), 0);
}

#[tokio::test]
async fn a_refused_message_lets_the_next_one_through() {
    let (intake, mut ledger) = (intake(), Ledger::new());
    let mut refused = push(&mut ledger, &intake, "1");
    let _next = push(&mut ledger, &intake, "2");
    ledger.refuse_next(PublishErrorKind::TooLarge, "headers".into(), None);
    assert_eq!(kind(&mut refused), Some(PublishErrorKind::TooLarge));
    assert_eq!(bodies(&write(&mut ledger)), ["2"]);
}
