//! A [`KafkaConfig`] and a [`KafkaSubscription`] as the configuration of librdkafka's consumer.

use std::time::Duration;

use cqrs_core::consume::SubscribeRequest;
use rdkafka::ClientConfig;

use super::native::canonical;
use super::producer::add_raw;
use super::{KafkaConfig, KafkaSubscription};
use crate::error::KafkaError;

/// The default bound on records that are fetched and not settled.
pub(crate) const DEFAULT_UNSETTLED: usize = 10_000;

/// Options of the producer alone. A consumer would warn of each.
const OF_PRODUCER: [&str; 16] = [
    "acks",
    "enable.idempotence",
    "retries",
    "retry.backoff.ms",
    "retry.backoff.max.ms",
    "compression.type",
    "linger.ms",
    "batch.size",
    "batch.num.messages",
    "message.timeout.ms",
    "partitioner",
    "sticky.partitioning.linger.ms",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "request.timeout.ms",
    "compression.level",
];

/// Options that would break a guarantee.
const REFUSED: [(&str, &str); 10] = [
    ("group.id", "it is the subscription's group"),
    ("group.protocol", "only the classic protocol is supported"),
    ("enable.auto.commit", "settled records decide what is committed"),
    ("enable.auto.offset.store", "settled records decide what is committed"),
    ("auto.offset.reset", "set where the subscription starts instead"),
    ("auto.commit.interval.ms", "set commit_interval instead"),
    ("enable.partition.eof", "it is of no use here"),
    ("partition.assignment.strategy", "set assignors instead"),
    ("log_level", "set log_level of the broker's configuration instead"),
    ("log.queue", "it is in use"),
];

impl KafkaConfig {
    /// The options of a subscription's consumer.
    pub(crate) fn to_consumer_config(
        &self,
        request: &SubscribeRequest,
        subscription: &KafkaSubscription,
    ) -> Result<ClientConfig, KafkaError> {
        let mut options = self.common_options()?;
        let mut set = |name: &str, value: &str| {
            options.insert(name.to_owned(), value.to_owned());
        };
        let ms = |duration: Duration| duration.as_millis().to_string();
        let assignors: Vec<_> = subscription.assignors.iter().map(|by| by.as_str()).collect();
        set("group.id", &request.group);
        set("partition.assignment.strategy", &assignors.join(","));
        if let Some(id) = &subscription.group_instance_id {
            set("group.instance.id", id);
        }
        set("session.timeout.ms", &ms(subscription.session_timeout));
        let heartbeat = (subscription.session_timeout / 3).min(Duration::from_secs(3));
        set("heartbeat.interval.ms", &ms(heartbeat));
        set("max.poll.interval.ms", &ms(subscription.max_poll_interval));
        set("enable.auto.commit", "false");
        set("enable.auto.offset.store", "false");
        set("isolation.level", subscription.isolation_level.as_str());
        // The start option is resolved at takeover. This acts on a position that retention overtook.
        set("auto.offset.reset", "earliest");
        let cap = request.max_unsettled.unwrap_or(DEFAULT_UNSETTLED);
        // For each partition: librdkafka fetches more while fewer records wait.
        set("queued.min.messages", &cap.clamp(100, 10_000).to_string());
        let kilobytes = (subscription.prefetch_bytes / 1_024).max(1);
        set("queued.max.messages.kbytes", &kilobytes.min(2_097_151).to_string());
        // The pause of fetching a partition whose queue was full: with the default of a second, a consumer
        // that empties the queue faster waits for the rest of it each time.
        set("fetch.queue.backoff.ms", "10");
        // librdkafka sends a broker one fetch at a time, for the partitions whose queues have room. One for partitions
        // without a new record waits for so long, and a partition that has room again waits with it: with the
        // default of half a second, a backlog beside idle partitions comes as one full queue in that time.
        set("fetch.wait.max.ms", "50");
        let fetch = subscription.prefetch_bytes.clamp(64 << 10, 1 << 20);
        set("max.partition.fetch.bytes", &fetch.to_string());
        // A topic that is created later is found after that time.
        set("topic.metadata.refresh.interval.ms", "10000");
        set("allow.auto.create.topics", "false");
        let raw = self.raw.iter().filter(|(name, _)| !OF_PRODUCER.contains(&canonical(name)));
        add_raw(&mut options, raw.chain(&subscription.raw), &REFUSED)?;
        self.to_native(options)
    }

    /// The options of a client that creates topics.
    pub(crate) fn to_admin_config(&self) -> Result<ClientConfig, KafkaError> {
        let mut options = self.common_options()?;
        let raw = self.raw.iter().filter(|(name, _)| !OF_PRODUCER.contains(&canonical(name)));
        add_raw(&mut options, raw, &[])?;
        self.to_native(options)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cqrs_core::consume::{StatusReporter, TopicSet};

    use super::*;
    use crate::config::Assignor;

    fn request() -> SubscribeRequest {
        let topics = TopicSet::Named(vec![Arc::from("orders")]);
        SubscribeRequest::new(topics, "mailer", StatusReporter::new().0)
    }

    fn options(subscription: &KafkaSubscription) -> Result<ClientConfig, KafkaError> {
        let config = KafkaConfig::new(["localhost:9092"]).with_raw("acks", "1");
        config.to_consumer_config(&request(), subscription)
    }

    #[test]
    fn defaults_are_the_guarantees() {
        let options = options(&KafkaSubscription::new()).unwrap();
        for (name, value) in [
            ("group.id", "mailer"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            ("partition.assignment.strategy", "range,roundrobin"),
            ("session.timeout.ms", "45000"),
            ("max.poll.interval.ms", "300000"),
            ("auto.offset.reset", "earliest"),
            ("queued.min.messages", "10000"),
            ("fetch.wait.max.ms", "50"),
        ] {
            assert_eq!(options.get(name), Some(value), "{name}");
        }
        assert_eq!(options.get("acks"), None, "the producer's own");
    }

    #[test]
    fn typed_fields_and_raw_options_reach_librdkafka() {
        let subscription = KafkaSubscription::new()
            .with_assignors([Assignor::CooperativeSticky])
            .with_group_instance_id("one")
            .with_raw("fetch.wait.max.ms", "200");
        let options = options(&subscription).unwrap();
        for (name, value) in [
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("group.instance.id", "one"),
            ("fetch.wait.max.ms", "200"),
        ] {
            assert_eq!(options.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn options_that_break_a_guarantee_are_refused() {
        for (name, _) in REFUSED {
            let error = options(&KafkaSubscription::new().with_raw(name, "1")).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        options(&KafkaSubscription::new().with_raw("no.such.option", "1")).unwrap_err();
    }
}
