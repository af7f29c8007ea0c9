//! The settings of a [`KafkaMessageBroker`](crate::KafkaMessageBroker) and of its subscriptions, and their
//! form in librdkafka.

mod check;
mod consumer;
mod env;
mod native;
mod options;
mod producer;
mod sasl;
mod security;
mod subscription;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::time::Duration;

use cqrs_core::broker::{Intake, Window};
use serde::Deserialize;

use cqrs_config::TextList;

pub(crate) use consumer::DEFAULT_UNSETTLED;
pub use cqrs_config::{Pem, Reconnect, Secret, TlsConfig};
pub use options::{Acks, Compression, IdentityHeaders, LogLevel, SaslMechanism, SecurityProtocol};
pub(crate) use producer::is_idempotent;
pub use sasl::Sasl;
pub use subscription::{Assignor, IsolationLevel, KafkaSubscription, NewTopics, RetryMode};

/// Settings of a [`KafkaMessageBroker`](crate::KafkaMessageBroker).
///
/// Made with [`new`](Self::new), [`from_env`](Self::from_env), or by deserializing (unknown fields are
/// errors; durations are texts such as `"30s"` or `"250ms"`). Contradictions are errors of
/// [`KafkaMessageBroker::new`](crate::KafkaMessageBroker::new), before anything connects.
///
/// `Debug` shows no secrets.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// Brokers to ask first, as `host:port` (port 9092 when it is left out). At least one. In a file a list,
    /// or one text with commas between them.
    #[serde(deserialize_with = "cqrs_config::deserialize_text_list")]
    pub bootstrap_servers: Vec<String>,
    /// The name of this client in the brokers' logs and quotas. Default `cqrs`.
    pub client_id: String,
    /// The replicas that must have a record before it is confirmed. Default [`Acks::All`].
    pub acks: Acks,
    /// On, the default: resends by librdkafka neither duplicate nor reorder. Off gives up both.
    pub enable_idempotence: bool,
    /// Requests in flight per connection, 1 to 5 with idempotence. Default 5.
    pub max_in_flight_requests_per_connection: u32,
    /// The number of repetitions of a failed send. `None`, the default: until its deadline.
    pub retries: Option<u32>,
    /// The wait before the first repetition (`retry.backoff.ms`), doubled up to
    /// [`retry_delay_max`](Self::retry_delay_max). Default 100 ms; 1 ms to 300 s.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub retry_delay: Duration,
    /// The longest wait before a repetition (`retry.backoff.max.ms`). Default 1 s.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub retry_delay_max: Duration,
    /// Encryption and login. Default [`SecurityProtocol::Plaintext`].
    pub security_protocol: SecurityProtocol,
    /// The login.
    pub sasl: Sasl,
    /// The encryption.
    pub tls: TlsConfig,
    /// Accepts any server certificate. Gives up: an attacker between client and server reads and changes
    /// everything, passwords included. Default off.
    pub danger_accept_any_certificate: bool,
    /// Accepts a trusted certificate for any host name. Gives up: the owner of any certificate of the
    /// authority can pose as the server. Default off.
    pub danger_accept_any_hostname: bool,
    /// The compression of batches. Default [`Compression::None`].
    pub compression: Compression,
    /// The time a record may wait for others to share its batch (`linger.ms`). Default 5 ms.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub linger: Duration,
    /// The largest batch in bytes (`batch.size`). Default 1,000,000. Keep it below the smallest
    /// `max.message.bytes` of the topics: the broker applies that to whole batches.
    pub batch_size: usize,
    /// The largest message that is published, in bytes of body, key and headers. Default 1,000,000. Larger
    /// ones are refused here, as `TooLarge`; `message.max.bytes` is set 1 KiB higher, for the framing.
    /// Brokers accept 1,048,588 by default.
    pub max_message_size: usize,
    /// On, the default: the broker may create a missing topic, if it is set up for that. Off: publishing to such a topic is an `Unroutable` error (after 10 s).
    pub allow_auto_create_topics: bool,
    /// The headers that are added to a record.
    pub record_headers: RecordHeaders,
    /// The least severe of librdkafka's own messages that are logged. Default [`LogLevel::Warning`].
    pub log_level: LogLevel,
    /// The one deadline of a publish: window, queue and delivery. Default 30 s; at least 100 ms.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub publish_timeout: Duration,
    /// The time for which [`connect`](crate::KafkaMessageBroker::connect) waits for the cluster. Default 30 s;
    /// at least 100 ms.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub connect_timeout: Duration,
    /// The time limit of one request, connecting included, after which the connection is closed and
    /// another is tried. Default 10 s; at least 1 s.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub request_timeout: Duration,
    /// The largest number of records in flight. Default 1,000.
    pub window_messages: usize,
    /// The largest number of bytes in flight. Default 16 MiB.
    pub window_bytes: usize,
    /// The wait between attempts to reconnect; 100 ms to 2 s by default.
    pub reconnect: Reconnect,
    /// Any other of [librdkafka's options](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md),
    /// applied last. `Debug` shows the names only, since values may be secrets.
    pub raw: BTreeMap<String, Secret>,
}

/// Headers that are added to a record, unless the message has one of the same name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RecordHeaders {
    /// On: `content-type` is added. Default off: FastStream with a `value_deserializer` decodes a
    /// record that has it twice, and fails.
    pub content_type: bool,
    /// The records that get `event_name` and `message_id`.
    pub identity: IdentityHeaders,
}

impl KafkaConfig {
    /// The defaults, for the cluster of these brokers: a list, or one text with commas.
    pub fn new(bootstrap_servers: impl Into<TextList>) -> Self {
        Self { bootstrap_servers: bootstrap_servers.into().into(), ..Self::default() }
    }

    cqrs_core::setters! {
        /// Sets [`client_id`](Self::client_id).
        pub fn with_client_id(client_id: impl Into<String>) { self.client_id = client_id.into() }

        /// Sets one of librdkafka's own options.
        pub fn with_raw(option: impl Into<String>, value: impl Into<Secret>) {
            self.raw.insert(option.into(), value.into())
        }
    }

    /// Encrypts the connections: `SSL`, or `SASL_SSL` when there is a login.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsConfig) -> Self {
        self.tls = tls;
        self.security_protocol = match self.security_protocol.uses_sasl() {
            true => SecurityProtocol::SaslSsl,
            false => SecurityProtocol::Ssl,
        };
        self
    }

    /// Logs in: `SASL_SSL` when the connections are encrypted, else `SASL_PLAINTEXT`.
    #[must_use]
    pub fn with_sasl(mut self, sasl: Sasl) -> Self {
        self.sasl = sasl;
        self.security_protocol = match self.security_protocol.uses_tls() {
            true => SecurityProtocol::SaslSsl,
            false => SecurityProtocol::SaslPlaintext,
        };
        self
    }
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            bootstrap_servers: Vec::new(),
            client_id: "cqrs".into(),
            acks: Acks::All,
            enable_idempotence: true,
            max_in_flight_requests_per_connection: 5,
            retries: None,
            retry_delay: Duration::from_millis(100),
            retry_delay_max: Duration::from_secs(1),
            security_protocol: SecurityProtocol::Plaintext,
            sasl: Sasl::default(),
            tls: TlsConfig::default(),
            danger_accept_any_certificate: false,
            danger_accept_any_hostname: false,
            compression: Compression::None,
            linger: Duration::from_millis(5),
            batch_size: 1_000_000,
            max_message_size: 1_000_000,
            allow_auto_create_topics: true,
            record_headers: RecordHeaders::default(),
            log_level: LogLevel::Warning,
            publish_timeout: Intake::DEFAULT_TIMEOUT,
            connect_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(10),
            window_messages: Window::DEFAULT_MESSAGES,
            window_bytes: Window::DEFAULT_BYTES,
            reconnect: Reconnect::default(),
            raw: BTreeMap::new(),
        }
    }
}
