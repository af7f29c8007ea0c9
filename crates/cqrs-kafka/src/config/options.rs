//! The settings of a [`KafkaConfig`](crate::KafkaConfig) with a fixed set of texts.

use cqrs_config::text_enum;

text_enum! {
    /// The replicas that must have a record before the broker confirms it (Kafka's `acks`).
    #[derive(Default)]
    pub enum Acks {
        /// All in-sync replicas. The default, and the only one the idempotent producer takes.
        #[default]
        All = "all" | "-1",
        /// The partition's leader. Gives up: a record confirmed right before the leader crashes is lost.
        Leader = "1" | "leader",
        /// None. Gives up every guarantee: `Ok` means only that the record was written to a socket.
        None = "0" | "none",
    }
}

text_enum! {
    /// The compression of batches of records (`compression.type`).
    #[derive(Default)]
    pub enum Compression {
        /// No compression. The default.
        #[default]
        None = "none",
        /// LZ4: little work, good ratio for JSON.
        Lz4 = "lz4",
        /// Zstandard: the best ratio. Needs Kafka 2.1.
        Zstd = "zstd",
        /// Snappy.
        Snappy = "snappy",
        /// gzip: the most work.
        Gzip = "gzip",
    }
}

text_enum! {
    /// Encryption and login of connections (`security.protocol`).
    #[derive(Default)]
    pub enum SecurityProtocol {
        /// No encryption and no login. The default.
        #[default]
        Plaintext = "PLAINTEXT",
        /// TLS; a client certificate is the login, when there is one.
        Ssl = "SSL",
        /// SASL login without encryption. Gives up: the `PLAIN` mechanism shows its password to the network.
        SaslPlaintext = "SASL_PLAINTEXT",
        /// SASL login over TLS.
        SaslSsl = "SASL_SSL",
    }
}

impl SecurityProtocol {
    /// True if a SASL login is made.
    pub fn uses_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    /// True if the connection is encrypted.
    pub fn uses_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

text_enum! {
    /// The mechanism of the login (`sasl.mechanism`).
    pub enum SaslMechanism {
        /// User name and password, as they are ([RFC 4616](https://www.rfc-editor.org/rfc/rfc4616)).
        Plain = "PLAIN",
        /// Salted challenge and response ([RFC 5802](https://www.rfc-editor.org/rfc/rfc5802)).
        ScramSha256 = "SCRAM-SHA-256",
        /// Salted challenge and response.
        ScramSha512 = "SCRAM-SHA-512",
        /// A bearer token ([RFC 7628](https://www.rfc-editor.org/rfc/rfc7628)) from a
        /// [`TokenProvider`](crate::TokenProvider).
        OAuthBearer = "OAUTHBEARER",
        /// Kerberos. Only with the crate's feature `gssapi`; its options go to
        /// [`KafkaConfig::raw`](crate::KafkaConfig::raw) (`sasl.kerberos.*`).
        Gssapi = "GSSAPI",
    }
}

text_enum! {
    /// The least severe of librdkafka's own messages that are logged, with the `tracing` target
    /// `librdkafka`.
    #[derive(Default)]
    pub enum LogLevel {
        /// The client cannot continue.
        Critical = "critical",
        /// Failed connections and logins.
        Error = "error",
        /// Possible problems, too. The default.
        #[default]
        Warning = "warning" | "warn",
        /// Normal events, too.
        Info = "info",
        /// The contexts, too, that are chosen with the raw option `debug`.
        Debug = "debug" | "trace",
    }
}

text_enum! {
    /// The records that carry the headers `event_name` and `message_id`.
    #[derive(Default)]
    pub enum IdentityHeaders {
        /// Those whose content type is not JSON, as python-cqrs has it. The default. A record without a
        /// content type carries none.
        #[default]
        Auto = "auto",
        /// All.
        Always = "always",
        /// None, but those that a serializer adds itself (`JsonPayloadSerializer`).
        Never = "never",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_whatever_their_case() {
        assert_eq!("sasl_ssl".parse::<SecurityProtocol>().unwrap(), SecurityProtocol::SaslSsl);
        assert_eq!("-1".parse::<Acks>().unwrap(), Acks::All);
        assert_eq!("WARN".parse::<LogLevel>().unwrap(), LogLevel::Warning);
        let mechanism: SaslMechanism = serde_json::from_str("\"SCRAM-SHA-512\"").unwrap();
        assert_eq!(mechanism, SaslMechanism::ScramSha512);
        assert_eq!(mechanism.to_string(), "SCRAM-SHA-512");
    }

    #[test]
    fn unknown_text_is_an_error_that_lists_the_known() {
        let error = "brotli".parse::<Compression>().unwrap_err();
        assert_eq!(format!("{error:?}"), "expected one of none, lz4, zstd, snappy, gzip");
        assert!(serde_json::from_str::<Compression>("\"brotli\"").is_err());
    }
}
