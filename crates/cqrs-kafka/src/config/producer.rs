//! A [`KafkaConfig`] as the configuration of librdkafka's producer.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;

use super::native::{bool_text, canonical};
use super::{Acks, KafkaConfig, Secret};
use crate::error::KafkaError;

/// Options that would break a guarantee.
const REFUSED: [(&str, &str); 5] = [
    ("message.timeout.ms", "set publish_timeout instead"),
    ("delivery.report.only.error", "confirms are delivery reports"),
    ("transactional.id", "transactions are not supported"),
    ("log_level", "set log_level of the configuration instead"),
    ("log.queue", "it is in use"),
];

/// Room for librdkafka's framing of a record: 36 bytes, and up to 10 for each header.
const FRAMING: usize = 1_024;
/// librdkafka's own limit.
const MAX_MESSAGE_BYTES: usize = 1_000_000_000;

impl KafkaConfig {
    /// Checks everything that can be checked without a connection.
    pub(crate) fn to_client_config(&self) -> Result<ClientConfig, KafkaError> {
        self.check()?;
        let mut options = self.options()?;
        add_raw(&mut options, &self.raw, &REFUSED)?;
        check_idempotence(&options)?;
        self.to_native(options)
    }

    fn options(&self) -> Result<BTreeMap<String, String>, KafkaError> {
        let mut options = self.common_options()?;
        let mut set = |name: &str, value: &str| {
            options.insert(name.to_owned(), value.to_owned());
        };
        let ms = |duration: Duration| duration.as_millis().to_string();
        set("acks", self.acks.as_str());
        set("enable.idempotence", bool_text(self.enable_idempotence));
        set(
            "max.in.flight.requests.per.connection",
            &self.max_in_flight_requests_per_connection.to_string(),
        );
        if let Some(retries) = self.retries {
            set("retries", &retries.to_string());
        }
        set("retry.backoff.ms", &ms(self.retry_delay));
        set("retry.backoff.max.ms", &ms(self.retry_delay_max));
        set("compression.type", self.compression.as_str());
        set("linger.ms", &ms(self.linger));
        set("batch.size", &self.batch_size.to_string());
        // librdkafka counts the framing of a record and of its headers, too; our own check does not.
        let with_framing = self.max_message_size.saturating_add(FRAMING).min(MAX_MESSAGE_BYTES);
        set("message.max.bytes", &with_framing.to_string());
        set("allow.auto.create.topics", bool_text(self.allow_auto_create_topics));
        set("message.timeout.ms", &ms(self.publish_timeout));
        // Java clients and aiokafka choose partitions so; librdkafka's own default is CRC32.
        set("partitioner", "murmur2_random");
        set("topic.metadata.propagation.max.ms", "10000");
        // The window bounds what is in flight; librdkafka's own bounds must not come first.
        set("queue.buffering.max.messages", "0");
        set("queue.buffering.max.kbytes", "2147483647");
        Ok(options)
    }
}

/// Adds raw options, the last ones applied.
pub(super) fn add_raw<'r>(
    options: &mut BTreeMap<String, String>,
    raw: impl IntoIterator<Item = (&'r String, &'r Secret)>,
    refused: &[(&str, &str)],
) -> Result<(), KafkaError> {
    for (name, value) in raw {
        let name = canonical(name);
        if let Some((_, why)) = refused.iter().find(|(refused, _)| *refused == name) {
            return Err(KafkaError::config(format!("raw option {name} is refused: {why}")));
        }
        options.insert(name.to_owned(), value.expose().to_owned());
    }
    Ok(())
}

/// With idempotence, librdkafka corrects these silently or fails with a text about its own options.
fn check_idempotence(options: &BTreeMap<String, String>) -> Result<(), KafkaError> {
    let get = |name: &str| options.get(name).map_or("", |value| value.trim());
    let number = |name: &str| get(name).parse::<i64>().ok();
    let in_flight = number("max.in.flight.requests.per.connection");
    if !is_idempotent(|name| options.get(name).map(String::as_str)) {
        return Ok(());
    }
    let wrong = |text: &'static str| Err(KafkaError::config(text));
    if !matches!(get("acks").parse(), Ok(Acks::All)) {
        return wrong(
            "acks is not `all`, which idempotence needs; turn enable_idempotence off to give up both",
        );
    }
    if number("retries") == Some(0) {
        return wrong(
            "retries is 0, but idempotence needs at least 1; leave it unset to retry until the deadline",
        );
    }
    if !in_flight.is_some_and(|requests| (1..=5).contains(&requests)) {
        return wrong(
            "max_in_flight_requests_per_connection is not 1 to 5, which idempotence needs",
        );
    }
    Ok(())
}

/// True if options of librdkafka make an idempotent producer.
pub(crate) fn is_idempotent<'a>(get: impl FnOnce(&'static str) -> Option<&'a str>) -> bool {
    let value = get("enable.idempotence").map_or("", str::trim);
    ["true", "t", "1"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{config, options, refused};

    #[test]
    fn defaults_are_the_guarantees() {
        let options = options(&config());
        for (name, value) in [
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("partitioner", "murmur2_random"),
            ("topic.metadata.propagation.max.ms", "10000"),
            ("reconnect.backoff.max.ms", "2000"),
            ("message.timeout.ms", "30000"),
            ("linger.ms", "5"),
        ] {
            assert_eq!(options.get(name), Some(value), "{name}");
        }
        assert_eq!(options.get("retries"), None, "unlimited within the deadline");
    }

    #[test]
    fn typed_fields_map_to_options() {
        let mut config = config().with_client_id("orders").with_raw("socket.nagle.disable", "true");
        config.bootstrap_servers.push("other:9093".into());
        config.compression = crate::config::Compression::Zstd;
        config.retries = Some(9);
        config.retry_delay = Duration::from_millis(70);
        let options = options(&config);
        for (name, value) in [
            ("bootstrap.servers", "localhost:9092,other:9093"),
            ("client.id", "orders"),
            ("compression.type", "zstd"),
            ("retries", "9"),
            ("retry.backoff.ms", "70"),
            ("socket.nagle.disable", "true"),
        ] {
            assert_eq!(options.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn loss_of_idempotence_is_refused_typed_or_raw() {
        let mut acks = config();
        acks.acks = Acks::Leader;
        assert!(refused(&acks).contains("acks"));
        let mut retries = config();
        retries.retries = Some(0);
        assert!(refused(&retries).contains("retries"));
        let mut in_flight = config();
        in_flight.max_in_flight_requests_per_connection = 6;
        assert!(refused(&in_flight).contains("max_in_flight"));
        for (name, value) in [
            ("acks", "1"),
            ("request.required.acks", "0"),
            ("retries", "0"),
            ("message.send.max.retries", "0"),
            ("max.in.flight", "6"),
        ] {
            refused(&config().with_raw(name, value));
        }
        let mut weaker = config().with_raw("acks", "1");
        weaker.enable_idempotence = false;
        assert_eq!(options(&weaker).get("acks"), Some("1"));
        options(&config().with_raw("enable.idempotence", "false").with_raw("acks", "1"));
    }

    #[test]
    fn unknown_and_refused_raw_options_are_named() {
        for (name, _) in REFUSED {
            assert!(refused(&config().with_raw(name, "1")).contains("refused"), "{name}");
        }
        assert!(refused(&config().with_raw("no.such.option", "1")).contains("no.such.option"));
        assert!(refused(&config().with_raw("linger.ms", "soon")).contains("linger.ms"));
    }
}
