//! Interop tests of keys and of groups shared with Python consumers.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use cqrs_core::{Message, MessageBroker, MessageBrokerExt, Notification, NotificationEvent};
use integration_tests::consuming::TIMEOUT;
use integration_tests::consuming::fixture::{Fixture, until, until_within};
use integration_tests::consuming::journal::Mark;
use integration_tests::consuming::outcomes::Outcomes;
use integration_tests::consuming::process::Worker;
use integration_tests::consuming::work::{Act, Id, Kind, Work, WorkerOptions};
use integration_tests::interop::{TestService, UserCreated, hex, users};
use integration_tests::kafka::{self, create_topic, fresh_topic, java_partition, read_all};
use integration_tests::peers::{Inbox, Peer, Python};
use integration_tests::servers;
use serde_json::json;

use super::kafka::{broker, subscription};

#[tokio::test]
async fn a_key_goes_to_aiokafkas_partition() {
    let topic = fresh_topic("partitions");
    create_topic(&topic, 7, &[]).await;
    let mut keys: Vec<String> = (0..200)
        .map(|n| match n % 4 {
            0 => n.to_string(),
            1 => format!("user-{n}"),
            2 => format!("\u{43a}\u{43b}\u{44e}\u{447}-\u{1f980}-{n}"),
            _ => "long".repeat(n) + &n.to_string(),
        })
        .collect();
    keys.push(String::new());
    let mut expected = HashMap::new();
    let broker = broker();
    for key in &keys {
        let receipt = broker.enqueue(Message::new(&*topic, "{}").with_key(key.clone())).await;
        let partition = receipt.unwrap().await.unwrap().partition.unwrap();
        assert_eq!(partition, java_partition(key.as_bytes(), 7), "{key:?}");
        expected.insert(key.clone().into_bytes(), partition);
    }
    let records: Vec<_> =
        keys.iter().map(|key| json!({ "key": hex(key.as_bytes()), "body": hex(b"{}") })).collect();
    for python in [Python::Cqrs5, Python::FastStream] {
        let arguments = json!({ "address": servers::kafka(), "topic": topic, "records": records });
        let partitions = Peer::shared(python).call("send_kafka", arguments).await;
        for (key, partition) in keys.iter().zip(partitions.as_array().unwrap()) {
            assert_eq!(*partition, expected[key.as_bytes()], "{python:?}: {key:?}");
        }
    }
    let written = read_all(&topic).await;
    assert_eq!(written.len(), 3 * keys.len());
    for record in written {
        assert_eq!(record.partition, expected[&record.key.unwrap()]);
    }
    assert_eq!(expected.values().collect::<HashSet<_>>().len(), 7);
    kafka::delete_topics(&topic).await;
}

/// A worker of ours and a member of aiokafka in one group.
struct Shared {
    fixture: Fixture,
    ours: Outcomes,
    theirs: HashSet<Id>,
    /// Partitions of the Python member, once it has been given some.
    assigned: Option<usize>,
    published: usize,
}

impl Shared {
    async fn new(test: &str) -> Self {
        let fixture = Fixture::new(Kind::Kafka, env!("CARGO_BIN_EXE_worker"), test, 4).await;
        let ours = fixture.outcomes();
        Self { fixture, ours, theirs: HashSet::new(), assigned: None, published: 0 }
    }

    /// Ours, which is the first member.
    async fn worker(&mut self) -> Worker {
        let options = WorkerOptions {
            session_timeout_ms: SESSION.as_millis() as u64,
            handler_ms: (0, 20),
            ..self.fixture.options()
        };
        self.fixture.start(&options, &mut self.ours).await
    }

    /// Theirs, whose handler takes so long; returns when each has half of the partitions.
    async fn joined<'p>(&mut self, peer: &'p Peer, take_ms: u64) -> Inbox<'p> {
        let arguments = json!({
            "address": servers::kafka(), "topic": self.fixture.topic, "group": self.fixture.group,
            "session_ms": SESSION.as_millis() as u64, "take_ms": take_ms,
        });
        let mut inbox = peer.subscribe("join_group", arguments).await;
        until("the partitions to be shared", async || {
            self.hear(&mut inbox);
            self.assigned == Some(2)
        })
        .await;
        inbox
    }

    async fn publish(&mut self, works: impl IntoIterator<Item = Work>) {
        self.published += self.fixture.publish(works).await.confirmed.len();
    }

    fn hear(&mut self, inbox: &mut Inbox<'_>) {
        for heard in inbox.drain() {
            if let Some(body) = heard["body"].as_str() {
                let event: NotificationEvent<Work> = serde_json::from_str(body).unwrap();
                self.theirs.insert(event.payload.id());
            } else if let Some(partitions) = heard["assigned"].as_array() {
                self.assigned = Some(partitions.len());
            }
        }
    }

    /// The messages that our handlers finished.
    fn ended(&mut self) -> HashSet<Id> {
        let ended = self.ours.refresh().lines().iter().filter(|line| line.mark == Mark::End);
        ended.map(|line| line.id.clone()).collect()
    }

    /// Waits until everything that was published is handled, here or there.
    async fn all_handled(&mut self, inbox: &mut Inbox<'_>) {
        until_within(2 * TIMEOUT, "all to be handled", async || {
            self.hear(inbox);
            self.ended().union(&self.theirs).count() == self.published
        })
        .await;
    }

    /// Waits until the group has committed metadata with this in it.
    async fn metadata(&self, part: &str) {
        until(part, async || {
            for partition in 0..4 {
                let (_, metadata) =
                    kafka::committed(&self.fixture.group, &self.fixture.topic, partition).await;
                if metadata.contains(part) {
                    return true;
                }
            }
            false
        })
        .await;
    }
}

/// The least that the broker takes (`group.min.session.timeout.ms`).
const SESSION: Duration = Duration::from_secs(6);

#[tokio::test]
async fn python_member_takes_over_when_ours_is_killed() {
    let mut shared = Shared::new("shared-python").await;
    let worker = shared.worker().await;
    let peer = Peer::start(Python::Cqrs5);
    let mut inbox = shared.joined(&peer, 1).await;
    shared.publish(Work::over(40, 400)).await;
    shared.all_handled(&mut inbox).await;
    assert!(!shared.ended().is_empty() && !shared.theirs.is_empty(), "both have some");
    // Ours keeps running some and finishes later ones, which its metadata records.
    let slow = (0..20).map(|n| Work::new(format!("slow{n}"), 0).act(Act::Take(120_000)));
    shared.publish(slow).await;
    shared.publish((0..400).map(|n| Work::new(format!("quick{n}"), 0))).await;
    shared.metadata(";d=").await;
    worker.kill().await;
    shared.all_handled(&mut inbox).await;
    assert_eq!(shared.assigned, Some(4));
    shared.fixture.until_settled(shared.published).await;
    inbox.stop().await;
    shared.fixture.clean().await;
}

#[tokio::test]
async fn ours_takes_over_when_a_python_member_is_killed() {
    let mut shared = Shared::new("shared-ours").await;
    let worker = shared.worker().await;
    let peer = Peer::start(Python::FastStream);
    // So slowly that it still has some of the second ones when all of them are published.
    let mut inbox = shared.joined(&peer, 30).await;
    shared.publish(Work::over(40, 400)).await;
    shared.all_handled(&mut inbox).await;
    assert!(!shared.ended().is_empty() && !shared.theirs.is_empty(), "both have some");
    shared.metadata("handled by Python").await;
    shared.publish((0..2_000).map(|n| Work::new(format!("more{n}"), 0))).await;
    peer.kill();
    shared.hear(&mut inbox);
    // About 200 of the first ones, and of its 1,000 some.
    assert!(shared.theirs.len() < 900, "{} handled: it was killed too late", shared.theirs.len());
    shared.all_handled(&mut inbox).await;
    shared.fixture.until_settled(shared.published).await;
    let partitions = shared.ours.lines().iter().filter_map(|line| Some(line.place?.0));
    assert_eq!(partitions.collect::<HashSet<_>>().len(), 4);
    worker.stop().await;
    shared.fixture.clean().await;
}

#[tokio::test]
async fn group_is_shared_with_faststream_by_default() {
    let (topic, group) = (fresh_topic("shared-stream"), fresh_topic("g"));
    create_topic(&topic, 4, &[]).await;
    let json = subscription(&topic, &group).json::<UserCreated>();
    let mut service = TestService::<UserCreated>::open(broker(), json).await;
    let arguments = json!({
        "address": servers::kafka(), "topic": topic, "group": group, "model": "pydantic",
    });
    let mut inbox = Peer::shared(Python::FastStream).subscribe("faststream_kafka", arguments).await;
    let publisher = broker();
    let publish = async || {
        let mut sent = HashSet::new();
        for n in 0..40 {
            let user = UserCreated { user_id: n.to_string(), ..users()[0].clone() };
            let event = NotificationEvent::new(user).with_topic(topic.clone());
            sent.insert(event.event_id.to_string());
            let mut message = Message::new(&*topic, serde_json::to_vec(&event).unwrap());
            message.key = event.payload.key();
            publisher.publish(message).await.unwrap();
        }
        sent
    };
    let (mut sent, mut ours, mut theirs) = (HashSet::new(), HashSet::new(), HashSet::new());
    let hear = |theirs: &mut HashSet<String>, inbox: &mut Inbox<'_>| {
        let heard = inbox.drain().into_iter();
        theirs.extend(heard.map(|heard| heard["event_id"].as_str().unwrap().to_owned()));
    };
    until("both to handle some, and nothing to be lost", async || {
        if ours.is_empty() || theirs.is_empty() {
            sent.extend(publish().await);
        }
        ours.extend(service.drain().into_iter().map(|event| event.event_id.to_string()));
        hear(&mut theirs, &mut inbox);
        !ours.is_empty() && !theirs.is_empty() && ours.union(&theirs).count() == sent.len()
    })
    .await;
    // Ours leaves, and its metadata does not disturb the peer.
    service.stop().await;
    let more = publish().await;
    until("the rest to be theirs", async || {
        hear(&mut theirs, &mut inbox);
        more.is_subset(&theirs)
    })
    .await;
    inbox.stop().await;
    kafka::delete_topics(&topic).await;
}
