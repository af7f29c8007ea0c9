//! Every other outcome is an error that says what is known and gives the message back.

use std::time::Duration;

use cqrs_core::broker::BrokerState;
use cqrs_core::{Message, MessageBrokerExt, PublishError, PublishErrorKind};

use tokio::time::timeout;

use super::super::stage::{SLACK, Stage, assert_kind, chain};
use super::super::{Harness, Setup};

pub(crate) async fn an_unroutable_message_is_an_error_and_the_opt_out_is_not<H: Harness>(
    harness: &H,
) {
    let mut stage = Stage::new(harness).await;
    let nobody = harness.fresh_topic().await;
    let mandatory = Message::new(nobody.as_str(), "mandatory");
    if stage.can.unroutable {
        // Among others: no verdict may reach the neighbour's receipt.
        let mut lost = Vec::new();
        let mut kept = Vec::new();
        for number in 0..50 {
            lost.push(stage.enqueue(Message::new(nobody.as_str(), "mandatory")).await);
            kept.push(stage.enqueue(stage.message(number)).await);
        }
        stage.all_confirmed(kept).await;
        for receipt in lost {
            let error = stage.within("verdict", receipt).await.expect_err("nobody receives it");
            assert_kind(&error, &[PublishErrorKind::Unroutable]);
        }
        stage.receive_all(50).await;
    } else {
        stage.publish(mandatory.clone()).await;
    }
    stage.publish(mandatory.with_mandatory(false)).await;
}

pub(crate) async fn an_invalid_topic_is_refused<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let error = stage.refused(invalid()).await;
    assert_kind(&error, &[PublishErrorKind::Invalid]);
    let error = stage.broker.try_enqueue(invalid()).expect_err("it is invalid");
    assert_kind(&error, &[PublishErrorKind::Invalid]);
    stage.publish(stage.message(0)).await;
}

/// No broker's wire takes this.
fn invalid() -> Message {
    Message::new("t".repeat(300), "body").with_key("k")
}

#[track_caller]
fn assert_given_back(error: PublishError, sent: &Message) {
    let words = chain(&error);
    assert!(*error.message() == *sent, "lost the message: {words}");
    assert!(error.into_message() == *sent, "lost the message: {words}");
}

/// Which errors there are is for the other cases to check; here, that whatever comes has the message.
pub(crate) async fn every_error_gives_the_message_back<H: Harness>(harness: &H) {
    let can = harness.capabilities();
    let mut sent = Message::new("", "body").with_key("k").with_name("N");
    sent.headers.insert("a", "b").expect("a valid header");
    let to = |topic: &str| {
        let mut message = sent.clone();
        message.topic = topic.into();
        message
    };

    let stage = Stage::new(harness).await;
    let mut faulty = vec![invalid()];
    if can.unroutable {
        faulty.push(to(&harness.fresh_topic().await));
    }
    if let Some(max) = can.max_message_bytes {
        faulty.push(Message::new(stage.topic.as_str(), vec![0; max + 1]));
    }
    for message in faulty {
        if let Err(error) = stage.within("publish", stage.broker.publish(message.clone())).await {
            assert_given_back(error, &message);
        }
    }
    let _report = stage.broker.shutdown(Duration::from_secs(5)).await;
    let message = to(&stage.topic);
    if let Err(error) = stage.broker.try_enqueue(message.clone()) {
        assert_given_back(error, &message);
    }
    if let Err(error) = stage.within("publish", stage.broker.publish(message.clone())).await {
        assert_given_back(error, &message);
    }

    if can.stall {
        let deadline = Duration::from_secs(1);
        let setup = Setup { window_messages: 2, publish_timeout: deadline, ..Setup::default() };
        let stage = Stage::stalled(harness, setup).await;
        let message = to(&stage.topic);
        let mut receipts = Vec::new();
        for _ in 0..SLACK {
            match stage.broker.try_enqueue(message.clone()) {
                Ok(receipt) => receipts.push(receipt),
                Err(error) => assert_given_back(error, &message),
            }
        }
        // Queued in the window or before it: not sent, or unknown.
        match timeout(2 * deadline, stage.broker.enqueue(message.clone())).await {
            Ok(Ok(receipt)) => receipts.push(receipt),
            Ok(Err(error)) => assert_given_back(error, &message),
            Err(_outlives_its_deadline) => {}
        }
        for receipt in receipts {
            // One that outlives its deadline is another case's.
            if let Ok(Err(error)) = timeout(2 * deadline, receipt).await {
                assert_given_back(error, &message);
            }
        }
        stage.resume().await;
    }
}

pub(crate) async fn the_state_becomes_ready<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage
        .within("ready", async {
            while !stage.broker.state().is_ready() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    stage.publish(stage.message(0)).await;
    assert_eq!(stage.broker.state(), BrokerState::Ready, "after a publish");
}
