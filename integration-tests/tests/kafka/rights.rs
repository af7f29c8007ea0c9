//! The tables of docs/rights.md for Kafka: every row works with its rights, and with none of them less.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::{Message, Subscribe, Subscription};
use cqrs_kafka::{KafkaMessageBroker, KafkaSubscription, NewTopics, RetryMode};
use futures_util::future::join_all;
use integration_tests::acl_kafka::{ADMIN, AclKafka, May, On, Right};
use integration_tests::kafka::fresh_topic;
use integration_tests::rights::{self, Refusal};

/// The action of a principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Producer,
    ProducerThatMakesTopics,
    Consumer,
    ConsumerThatMakesTopics,
    ConsumerWithRetryTopics,
}

impl Role {
    fn makes_topics(self) -> bool {
        matches!(self, Self::ProducerThatMakesTopics | Self::ConsumerThatMakesTopics)
    }

    /// The row of docs/rights.md.
    fn rights(self, topic: &str, group: &str) -> Vec<Right> {
        let dead = format!("{topic}.{group}.dead");
        let retry = format!("{topic}.{group}.retry.1s");
        let on = |may, topic: &str| Right(may, On::Topic, topic.to_owned());
        let consumer = vec![
            on(May::Read, topic),
            Right(May::Read, On::Group, group.to_owned()),
            on(May::Write, &dead),
        ];
        match self {
            Self::Producer => vec![on(May::Write, topic)],
            Self::ProducerThatMakesTopics => vec![on(May::Write, topic), on(May::Create, topic)],
            Self::Consumer => consumer,
            Self::ConsumerThatMakesTopics => [consumer, vec![on(May::Create, &dead)]].concat(),
            Self::ConsumerWithRetryTopics => {
                [consumer, vec![on(May::Read, &retry), on(May::Write, &retry)]].concat()
            }
        }
    }
}

struct Server {
    kafka: AclKafka,
    admin: KafkaMessageBroker,
    users: std::cell::Cell<usize>,
}

impl Server {
    /// Plays a role with these rights only, on topics of its own.
    async fn play(&self, role: Role, without: Option<usize>) -> Result<(), Refusal> {
        let user = format!("u{}", self.users.replace(self.users.get() + 1));
        let (topic, group) = (fresh_topic("rights"), format!("group-{user}"));
        let mut rights = role.rights(&topic, &group);
        without.map(|right| rights.remove(right));
        let is_producer = matches!(role, Role::Producer | Role::ProducerThatMakesTopics);
        if !(is_producer && role.makes_topics()) {
            self.kafka.create_topic(&topic).await;
        }
        if !is_producer && !role.makes_topics() {
            self.kafka.create_topic(&format!("{topic}.{group}.dead")).await;
        }
        if role == Role::ConsumerWithRetryTopics {
            self.kafka.create_topic(&format!("{topic}.{group}.retry.1s")).await;
        }
        if !rights.is_empty() {
            self.kafka.grant(&user, &rights).await;
        }
        let mut config = self.kafka.config(&user);
        config.publish_timeout = Duration::from_secs(15);
        let broker = KafkaMessageBroker::new(config).unwrap();
        if is_producer {
            return rights::publish(&broker, Message::new(&*topic, "{}")).await;
        }
        let broker: Arc<dyn Subscribe> = Arc::new(broker);
        let attempts = if role == Role::ConsumerWithRetryTopics { 2 } else { 1 };
        let fill = rights::fill(&self.admin, &topic);
        rights::consume(broker, subscription(role, &topic, &group), attempts, fill).await
    }
}

fn subscription(role: Role, topic: &str, group: &str) -> Subscription {
    let makes = role.makes_topics().then(NewTopics::new);
    let mut kafka = KafkaSubscription::new().with_create_topics(makes);
    let mut subscription = rights::subscription(topic, group);
    if role == Role::ConsumerWithRetryTopics {
        kafka = kafka.with_retry_mode(RetryMode::Topics);
        let delays = cqrs_core::Retry::none().delayed([Duration::from_secs(1)]);
        subscription = subscription.retry(delays);
    }
    subscription.option(kafka)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_needs_exactly_its_documented_rights() {
    let kafka = AclKafka::start().await;
    let admin = KafkaMessageBroker::connect(kafka.config(ADMIN)).await.unwrap();
    let server = Server { kafka, admin, users: 0.into() };
    for role in [
        Role::Producer,
        Role::ProducerThatMakesTopics,
        Role::Consumer,
        Role::ConsumerThatMakesTopics,
        Role::ConsumerWithRetryTopics,
    ] {
        let rights = role.rights("TOPIC", "GROUP");
        let plays = std::iter::once(None).chain((0..rights.len()).map(Some));
        let ends = join_all(plays.map(|without| server.play(role, without))).await;
        let (whole, less) = ends.split_first().expect("at least one");
        assert!(whole.is_ok(), "{role:?}: {whole:?}");
        for (right, refusal) in rights.iter().zip(less) {
            let refusal = refusal.as_ref().expect_err(&format!("{role:?} works without {right:?}"));
            println!("RIGHTS {role:?} without {right:?}: {:.1?}: {}", refusal.after, refusal.text);
            assert!(rights::is_refusal(&refusal.text), "{role:?} without {right:?}: {refusal:?}");
        }
    }
}
