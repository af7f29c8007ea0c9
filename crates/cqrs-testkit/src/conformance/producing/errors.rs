//! Cases of failed publishes: the error says what is known and returns the message.

use std::time::Duration;

use cqrs_core::broker::BrokerState;
use cqrs_core::{Message, MessageBrokerExt, PublishError, PublishErrorKind};

use tokio::time::timeout;

use super::fixture::{ProducingFixture, SLACK, assert_kind};
use crate::conformance::harness::{Harness, Setup};
use crate::error_chain;

pub(crate) async fn unroutable_message_is_an_error_unless_opted_out<H: Harness>(harness: &H) {
    let mut fixture = ProducingFixture::new(harness).await;
    let unbound = harness.fresh_topic().await;
    let mandatory = Message::new(unbound.as_str(), "mandatory");
    if fixture.can.unroutable {
        // Interleaved with routable messages: each receipt must get the result of its own message.
        let mut unroutable = Vec::new();
        let mut routable = Vec::new();
        for number in 0..50 {
            unroutable.push(fixture.enqueue(Message::new(unbound.as_str(), "mandatory")).await);
            routable.push(fixture.enqueue(fixture.numbered(number)).await);
        }
        fixture.all_confirmed(routable).await;
        for receipt in unroutable {
            let error = fixture.within("result", receipt).await.expect_err("it is unroutable");
            assert_kind(&error, &[PublishErrorKind::Unroutable]);
        }
        fixture.receive_all(50).await;
    } else {
        fixture.publish(mandatory.clone()).await;
    }
    fixture.publish(mandatory.with_mandatory(false)).await;
}

pub(crate) async fn an_invalid_topic_is_refused<H: Harness>(harness: &H) {
    let fixture = ProducingFixture::new(harness).await;
    let error = fixture.refused(invalid()).await;
    assert_kind(&error, &[PublishErrorKind::Invalid]);
    let error = fixture.broker.try_enqueue(invalid()).expect_err("it is invalid");
    assert_kind(&error, &[PublishErrorKind::Invalid]);
    fixture.publish(fixture.numbered(0)).await;
}

/// A message for a topic of 300 bytes: Kafka allows 249, AMQP 255.
fn invalid() -> Message {
    Message::new("t".repeat(300), "body").with_key("k")
}

#[track_caller]
fn assert_given_back(error: PublishError, sent: &Message) {
    let words = error_chain(&error);
    assert!(*error.message() == *sent, "lost the message: {words}");
    assert!(error.into_message() == *sent, "lost the message: {words}");
}

/// The other cases check the kinds of errors; this one checks that each error holds the message.
pub(crate) async fn every_error_gives_the_message_back<H: Harness>(harness: &H) {
    let can = harness.capabilities();
    let mut sent = Message::new("", "body").with_key("k").with_name("N");
    sent.headers.insert("a", "b").expect("a valid header");
    let to = |topic: &str| {
        let mut message = sent.clone();
        message.topic = topic.into();
        message
    };

    let fixture = ProducingFixture::new(harness).await;
    let mut faulty = vec![invalid()];
    if can.unroutable {
        faulty.push(to(&harness.fresh_topic().await));
    }
    if let Some(max) = can.max_message_size {
        faulty.push(Message::new(fixture.topic.as_str(), vec![0; max + 1]));
    }
    for message in faulty {
        if let Err(error) = fixture.within("publish", fixture.broker.publish(message.clone())).await
        {
            assert_given_back(error, &message);
        }
    }
    let _report = fixture.broker.shutdown(Duration::from_secs(5)).await;
    let message = to(&fixture.topic);
    if let Err(error) = fixture.broker.try_enqueue(message.clone()) {
        assert_given_back(error, &message);
    }
    if let Err(error) = fixture.within("publish", fixture.broker.publish(message.clone())).await {
        assert_given_back(error, &message);
    }

    if can.stall {
        let deadline = Duration::from_secs(1);
        let setup = Setup { window_messages: 2, publish_timeout: deadline, ..Setup::default() };
        let fixture = ProducingFixture::stalled(harness, setup).await;
        let message = to(&fixture.topic);
        let mut receipts = Vec::new();
        for _ in 0..SLACK {
            match fixture.broker.try_enqueue(message.clone()) {
                Ok(receipt) => receipts.push(receipt),
                Err(error) => assert_given_back(error, &message),
            }
        }
        // Queued in the window or before it: not sent, or unknown.
        match timeout(2 * deadline, fixture.broker.enqueue(message.clone())).await {
            Ok(Ok(receipt)) => receipts.push(receipt),
            Ok(Err(error)) => assert_given_back(error, &message),
            Err(_outlives_its_deadline) => {}
        }
        for receipt in receipts {
            // Another case checks the deadline.
            if let Ok(Err(error)) = timeout(2 * deadline, receipt).await {
                assert_given_back(error, &message);
            }
        }
        fixture.resume().await;
    }
}

pub(crate) async fn the_state_becomes_ready<H: Harness>(harness: &H) {
    let fixture = ProducingFixture::new(harness).await;
    fixture
        .within("ready", async {
            while !fixture.broker.state().is_ready() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    fixture.publish(fixture.numbered(0)).await;
    assert_eq!(fixture.broker.state(), BrokerState::Ready, "after a publish");
}
