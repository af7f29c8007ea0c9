//! A [`KafkaConfig`] as librdkafka's configuration, checked before anything connects.

use std::collections::BTreeMap;
use std::time::Duration;

use cqrs_config::{MIN_TIMEOUT, check_minimum, is_encrypted_key, not_text};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::{Acks, KafkaConfig, LogLevel, Pem, SaslMechanism, SecurityProtocol};
use crate::KafkaError;
use crate::redactor::Redactor;

/// Other names of options. Two names of one option must not both reach librdkafka: which one wins there
/// would be chance.
const ALIASES: [(&str, &str); 10] = [
    ("metadata.broker.list", "bootstrap.servers"),
    ("request.required.acks", "acks"),
    ("message.send.max.retries", "retries"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("compression.codec", "compression.type"),
    ("sasl.mechanisms", "sasl.mechanism"),
    ("sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.client.id"),
    ("sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.client.secret"),
];

/// Options whose change would break a promise that a typed field cannot.
const REFUSED: [(&str, &str); 5] = [
    ("message.timeout.ms", "set publish_timeout instead"),
    ("delivery.report.only.error", "confirms are delivery reports"),
    ("transactional.id", "transactions are not supported"),
    ("log_level", "set log_level of the configuration instead"),
    ("log.queue", "it is in use"),
];

/// Room for what librdkafka adds to a record's content: 36 bytes, and up to 10 for each header.
const FRAMING: usize = 1_024;
/// librdkafka's own limit.
const MAX_MESSAGE_BYTES: usize = 1_000_000_000;

/// The smallest `socket.timeout.ms` that librdkafka's requests are used with.
pub(super) const MIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

impl KafkaConfig {
    /// Checks everything that can be checked without a connection.
    pub(crate) fn to_client_config(&self) -> Result<ClientConfig, KafkaError> {
        self.check()?;
        let mut options = self.options()?;
        for (name, value) in &self.raw {
            let name = canonical(name);
            if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                return Err(KafkaError::config(format!("raw option {name} is refused: {why}")));
            }
            options.insert(name.to_owned(), value.expose().to_owned());
        }
        check_idempotence(&options)?;
        self.to_native(options)
    }

    /// What must not appear in any text.
    pub(crate) fn redactor(&self) -> Redactor {
        let pem = |pem: &Option<Pem>| match pem {
            Some(Pem::Text(text)) => Some(text.as_str().into()),
            // A key without its markers is taken for a path.
            Some(Pem::Path(path)) if !path.exists() => path.to_str().map(Into::into),
            _ => None,
        };
        let raw = self.raw.iter().filter(|(name, _)| is_secret(name)).map(|(_, value)| value);
        let typed = [
            self.sasl.password.clone(),
            self.tls.client_key_password.clone(),
            pem(&self.tls.client_key),
        ];
        Redactor::new(typed.into_iter().flatten().chain(raw.cloned()))
    }

    fn check(&self) -> Result<(), KafkaError> {
        let wrong = |text: &'static str| Err(KafkaError::config(text));
        if self.bootstrap_servers.is_empty() {
            return wrong("bootstrap_servers is empty; it lists brokers as host:port");
        }
        let bad = |server: &String| {
            server.is_empty() || server.contains(|c: char| c == ',' || c.is_whitespace())
        };
        if let Some(server) = self.bootstrap_servers.iter().find(|server| bad(server)) {
            return Err(KafkaError::config(match not_text(server) {
                Some(what) => format!("bootstrap_servers has {what}; write texts, in quotes"),
                None => format!("bootstrap_servers has {server:?}, which is not host:port"),
            }));
        }
        let minimum = |setting, value, minimum| {
            check_minimum(setting, value, minimum).map_err(KafkaError::config)
        };
        minimum("publish_timeout", self.publish_timeout, MIN_TIMEOUT)?;
        minimum("request_timeout", self.request_timeout, MIN_REQUEST_TIMEOUT)?;
        self.reconnect.check().map_err(KafkaError::config)?;
        if self.linger >= self.publish_timeout {
            return wrong("linger is not below publish_timeout; no record would be sent in time");
        }
        if self.retry_delay > self.retry_delay_max {
            return wrong("retry_delay is above retry_delay_max");
        }
        self.check_security()
    }

    fn uses_tls_settings(&self) -> bool {
        self.tls.is_used() || self.danger_accept_any_certificate || self.danger_accept_any_hostname
    }

    fn raw_value(&self, name: &str) -> Option<&str> {
        let found = self.raw.iter().find(|(raw, _)| canonical(raw) == canonical(name));
        found.map(|(_, value)| value.expose())
    }

    /// The security protocol that counts.
    fn protocol(&self) -> SecurityProtocol {
        let raw = self.raw_value("security.protocol").and_then(|text| text.parse().ok());
        raw.unwrap_or(self.security_protocol)
    }

    /// What is set for a connection that is not made so is a mistake: it would be made in plaintext.
    fn check_security(&self) -> Result<(), KafkaError> {
        let protocol = self.protocol();
        let has_raw = |prefix: &str| self.raw.keys().any(|name| name.starts_with(prefix));
        let wrong = |what: &str, does: &str, with: &str| {
            let text = format!(
                "{what} is set, but security_protocol is {protocol}, which {does}; set it to {with}, or \
                 remove {what}"
            );
            Err(KafkaError::config(text))
        };
        if !protocol.uses_tls() && (self.uses_tls_settings() || has_raw("ssl.")) {
            return wrong("tls", "does not encrypt", "SSL or SASL_SSL");
        }
        if !protocol.uses_sasl() && (self.sasl.is_set() || has_raw("sasl.")) {
            return wrong("sasl", "does not log in", "SASL_SSL or SASL_PLAINTEXT");
        }
        Ok(())
    }

    /// What weakens the connection on purpose.
    pub(crate) fn weaknesses(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        let protocol = self.protocol();
        let is_plain = match self.raw_value("sasl.mechanism") {
            Some(raw) => raw.eq_ignore_ascii_case("PLAIN"),
            None => self.sasl.mechanism == Some(SaslMechanism::Plain),
        };
        if protocol == SecurityProtocol::SaslPlaintext && is_plain {
            found.push("sasl.mechanism PLAIN without TLS: the network sees the password");
        }
        if protocol.uses_tls() {
            let verifies = self.raw_value("enable.ssl.certificate.verification");
            if verifies.is_some_and(|raw| matches!(&*raw.to_lowercase(), "false" | "f" | "0")) {
                found.push(
                    "enable.ssl.certificate.verification is off: anybody can pose as the server",
                );
            }
            let checks = self.raw_value("ssl.endpoint.identification.algorithm");
            if checks.is_some_and(|raw| raw.eq_ignore_ascii_case("none")) {
                found.push("ssl.endpoint.identification.algorithm is none: any host of the authority can pose as the server");
            }
            if self.danger_accept_any_certificate {
                found.push("danger_accept_any_certificate: anybody can pose as the server");
            }
            if self.danger_accept_any_hostname {
                found.push(
                    "danger_accept_any_hostname: any host of the authority can pose as the server",
                );
            }
        }
        found
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

    /// What producer, consumer and administration have in common.
    pub(super) fn common_options(&self) -> Result<BTreeMap<String, String>, KafkaError> {
        let mut options = BTreeMap::new();
        let mut set = |name: &str, value: &str| {
            options.insert(name.to_owned(), value.to_owned());
        };
        let ms = |duration: Duration| duration.as_millis().to_string();
        set("bootstrap.servers", &self.bootstrap_servers.join(","));
        set("client.id", &self.client_id);
        set("client.software.name", "cqrs-kafka");
        set("client.software.version", env!("CARGO_PKG_VERSION"));
        set("socket.timeout.ms", &ms(self.request_timeout));
        set("socket.connection.setup.timeout.ms", &ms(self.request_timeout));
        set("reconnect.backoff.ms", &ms(self.reconnect.initial));
        set("reconnect.backoff.max.ms", &ms(self.reconnect.max));
        // Tells that a lost connection is back while nothing is sent.
        set("statistics.interval.ms", "2000");
        set("security.protocol", &self.security_protocol.as_str().to_lowercase());
        if self.security_protocol.uses_tls() {
            self.set_tls(&mut set)?;
        }
        if self.security_protocol.uses_sasl() {
            self.sasl.apply(&mut set)?;
        }
        Ok(options)
    }

    fn set_tls(&self, set: &mut impl FnMut(&str, &str)) -> Result<(), KafkaError> {
        let mut pem = |name: &str, value: &Pem| -> Result<(), KafkaError> {
            match value {
                Pem::Text(text) => set(&format!("ssl.{name}.pem"), text),
                Pem::Path(path) => {
                    let path = path.to_str().ok_or_else(|| {
                        KafkaError::config(format!("the path of tls {name} is not UTF-8"))
                    })?;
                    set(&format!("ssl.{name}.location"), path);
                }
                _ => return Err(KafkaError::config(format!("tls {name} has an unknown form"))),
            }
            Ok(())
        };
        match &self.tls.ca {
            Some(ca) => pem("ca", ca)?,
            // A linked-in OpenSSL does not know where the system keeps its authorities.
            None => pem("ca", &Pem::Path("probe".into()))?,
        }
        match (&self.tls.client_certificate, &self.tls.client_key) {
            (Some(certificate), Some(key)) => {
                pem("certificate", certificate)?;
                pem("key", key)?;
            }
            (None, None) => {}
            _ => {
                return Err(KafkaError::config(
                    "tls.client_certificate and tls.client_key go together: one is missing",
                ));
            }
        }
        if let Some(password) = &self.tls.client_key_password {
            set("ssl.key.password", password.expose());
        }
        if self.danger_accept_any_certificate {
            set("enable.ssl.certificate.verification", "false");
        }
        if self.danger_accept_any_hostname {
            set("ssl.endpoint.identification.algorithm", "none");
        }
        Ok(())
    }

    /// Lets librdkafka check each option. Its words show the value, so those of secrets are left out.
    pub(super) fn to_native(
        &self,
        options: BTreeMap<String, String>,
    ) -> Result<ClientConfig, KafkaError> {
        let redactor = self.redactor();
        check_key(&options)?;
        for (name, value) in &options {
            if let Some(what) = not_text(value) {
                return Err(KafkaError::config(format!(
                    "option {name} is {what}; write it as a text, in quotes"
                )));
            }
            let mut single = ClientConfig::new();
            single.set(name, value);
            if let Err(error) = single.create_native_config() {
                let why = match error {
                    rdkafka::error::KafkaError::ClientConfig(_, why, ..) if !is_secret(name) => {
                        redactor.redact(&why)
                    }
                    _ => "librdkafka does not take its value".to_owned(),
                };
                return Err(KafkaError::config(format!("option {name}: {why}")));
            }
        }
        let mut client: ClientConfig = options.into_iter().collect();
        // Why a connection ended is only told at this level; `Context::log` filters what is shown.
        client.set_log_level(match self.log_level {
            LogLevel::Debug => RDKafkaLogLevel::Debug,
            _ => RDKafkaLogLevel::Info,
        });
        Ok(client)
    }
}

/// OpenSSL would ask for the password of an encrypted key on the terminal.
fn check_key(options: &BTreeMap<String, String>) -> Result<(), KafkaError> {
    let in_file = options.get("ssl.key.location").and_then(|path| std::fs::read(path).ok());
    let text = options.get("ssl.key.pem").map(|text| text.as_bytes().to_vec()).or(in_file);
    let is_encrypted = text.is_some_and(|text| is_encrypted_key(&String::from_utf8_lossy(&text)));
    match is_encrypted && options.get("ssl.key.password").is_none_or(String::is_empty) {
        true => Err(KafkaError::config(
            "tls.client_key is encrypted; set tls.client_key_password (KAFKA_TLS_CLIENT_KEY_PASSWORD), \
             or decrypt the key: openssl pkey -in encrypted.key -out plain.key",
        )),
        false => Ok(()),
    }
}

/// With idempotence, librdkafka either corrects these silently or fails with words about itself.
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

/// Whether options of librdkafka make an idempotent producer.
pub(crate) fn is_idempotent<'a>(get: impl FnOnce(&'static str) -> Option<&'a str>) -> bool {
    let value = get("enable.idempotence").map_or("", str::trim);
    ["true", "t", "1"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

pub(super) fn canonical(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, canonical)| canonical)
}

fn is_secret(name: &str) -> bool {
    ["password", "secret", "passphrase", ".pem", "key", "token", "assertion", "oauthbearer.config"]
        .iter()
        .any(|part| name.contains(part))
}

fn bool_text(on: bool) -> &'static str {
    if on { "true" } else { "false" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ErrorKind, OAuthToken, Sasl, SaslMechanism, Secret, SecurityProtocol, TlsConfig,
        TokenProvider,
    };

    fn config() -> KafkaConfig {
        KafkaConfig::new(["localhost:9092"])
    }

    fn options(config: &KafkaConfig) -> ClientConfig {
        config.to_client_config().unwrap()
    }

    fn refused(config: &KafkaConfig) -> String {
        let error = config.to_client_config().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    }

    #[test]
    fn the_defaults_are_the_guarantees() {
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
        config.compression = super::super::Compression::Zstd;
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
    fn security_maps_to_options() {
        let tls = TlsConfig::new().with_ca("/ca.pem").with_client("-----BEGIN C", "-----BEGIN K");
        let config = config().with_tls(tls).with_sasl(Sasl::scram_sha_512("me", "hush"));
        assert_eq!(config.security_protocol, SecurityProtocol::SaslSsl);
        let options = options(&config);
        for (name, value) in [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "me"),
            ("sasl.password", "hush"),
            ("ssl.ca.location", "/ca.pem"),
            ("ssl.certificate.pem", "-----BEGIN C"),
            ("ssl.key.pem", "-----BEGIN K"),
        ] {
            assert_eq!(options.get(name), Some(value), "{name}");
        }
        assert_eq!(options.get("enable.ssl.certificate.verification"), None, "on by default");
    }

    #[test]
    fn what_breaks_idempotence_is_refused_typed_or_raw() {
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
    fn missing_credentials_are_refused() {
        let with = |sasl| refused(&config().with_sasl(sasl));
        assert!(with(Sasl::default()).contains("sasl.mechanism is not set"));
        assert!(with(Sasl::plain("me", "")).contains("sasl.password is not set"));
        assert!(with(Sasl::scram_sha_256("", "hush")).contains("sasl.username is not set"));
        let bearer = |token_provider| Sasl {
            mechanism: Some(SaslMechanism::OAuthBearer),
            token_provider,
            ..Sasl::default()
        };
        assert!(with(bearer(None)).contains("sasl.token_provider is not set"));
        let provider = TokenProvider::new(|| Err::<OAuthToken, _>("none"));
        options(&config().with_sasl(bearer(Some(provider))));
        let kerberos = Sasl { mechanism: Some(SaslMechanism::Gssapi), ..Sasl::default() };
        #[cfg(not(feature = "gssapi"))]
        assert!(with(kerberos).contains("feature `gssapi`"));
        #[cfg(feature = "gssapi")]
        options(&config().with_sasl(kerberos));
        let mut half = TlsConfig::new();
        half.client_key = Some("/key.pem".into());
        assert!(refused(&config().with_tls(half)).contains("go together"));
    }

    #[test]
    fn tls_or_login_over_plaintext_is_refused() {
        let plaintext = |change: fn(&mut KafkaConfig)| {
            let mut config = config();
            change(&mut config);
            refused(&config)
        };
        let error = plaintext(|config| config.tls = TlsConfig::new().with_ca("/ca.pem"));
        assert!(error.contains("tls is set, but security_protocol is PLAINTEXT"), "{error}");
        let error = plaintext(|config| config.sasl = Sasl::plain("me", "hush"));
        assert!(error.contains("sasl is set") && !error.contains("hush"), "{error}");
        plaintext(|config| config.sasl.username = Some("me".into()));
        plaintext(|config| config.danger_accept_any_hostname = true);
        let raw = |name, value| config().with_raw(name, value);
        assert!(refused(&raw("ssl.ca.location", "/ca.pem")).contains("tls is set"));
        assert!(refused(&raw("sasl.username", "me")).contains("sasl is set"));
        let login = config().with_sasl(Sasl::plain("me", "hush"));
        options(&login);
        let mut both = login.clone();
        both.tls = TlsConfig::new().with_ca("/ca.pem");
        assert!(refused(&both).contains("SASL_PLAINTEXT, which does not encrypt"));
        options(
            &raw("security.protocol", "ssl")
                .with_raw("ssl.endpoint.identification.algorithm", "none"),
        );
    }

    #[test]
    fn each_weakness_is_named() {
        assert_eq!(config().weaknesses().len(), 0);
        let plain = config().with_sasl(Sasl::plain("me", "hush"));
        assert!(plain.weaknesses()[0].contains("PLAIN without TLS"));
        let mut open = plain.with_tls(TlsConfig::new().with_ca("/ca.pem"));
        assert_eq!(open.weaknesses().len(), 0);
        open.danger_accept_any_certificate = true;
        open.danger_accept_any_hostname = true;
        assert_eq!(open.weaknesses().len(), 2);
        assert_eq!(config().with_sasl(Sasl::scram_sha_256("me", "hush")).weaknesses().len(), 0);
        let raw = config()
            .with_raw("security.protocol", "sasl_plaintext")
            .with_raw("sasl.mechanism", "PLAIN");
        assert_eq!(raw.weaknesses().len(), 1);
        let raw = config()
            .with_raw("security.protocol", "ssl")
            .with_raw("enable.ssl.certificate.verification", "false")
            .with_raw("ssl.endpoint.identification.algorithm", "none");
        assert_eq!(raw.weaknesses().len(), 2);
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(refused(&KafkaConfig::default()).contains("bootstrap_servers is empty"));
        assert!(refused(&KafkaConfig::new(["a:1,b:2"])).contains("not host:port"));
        let mut slow = config();
        slow.linger = slow.publish_timeout;
        assert!(refused(&slow).contains("linger"));
        let mut short = config();
        short.publish_timeout = Duration::from_millis(30);
        assert!(
            refused(&short)
                .contains("publish_timeout is 30ms, which is below the minimum of 100ms")
        );
        short = config();
        short.request_timeout = Duration::from_millis(30);
        assert!(
            refused(&short).contains("request_timeout is 30ms, which is below the minimum of 1s")
        );
        short = config();
        short.reconnect.initial = Duration::from_secs(60);
        assert!(refused(&short).contains("reconnect.max is 2s"));
        for (name, _) in REFUSED {
            assert!(refused(&config().with_raw(name, "1")).contains("refused"), "{name}");
        }
        assert!(refused(&config().with_raw("no.such.option", "1")).contains("no.such.option"));
        assert!(refused(&config().with_raw("linger.ms", "soon")).contains("linger.ms"));
    }

    #[test]
    fn no_text_shows_a_secret() {
        let tls = TlsConfig::new()
            .with_client("/c.pem", "-----BEGIN secret-2")
            .with_client_key_password("secret-1");
        let config = config()
            .with_tls(tls)
            .with_sasl(Sasl::plain("me", "secret-3"))
            .with_raw("ssl.keystore.password", "secret-4");
        assert!(!format!("{config:?}").contains("secret-"), "{config:?}");
        let redacted = config.redactor().redact("secret-1 -----BEGIN secret-2 secret-3 secret-4");
        assert!(!redacted.contains("secret-"), "{redacted}");
        // A key without its markers is taken for a path.
        let mut pathless = config.clone();
        pathless.tls.client_key = Some("secret-6".into());
        assert!(!format!("{pathless:?}").contains("secret-6"), "{pathless:?}");
        assert!(!pathless.redactor().redact("no file secret-6").contains("secret-6"));
        let wrong = refused(&config.with_raw("sasl.oauthbearer.client.secret", "secret\0-5"));
        assert!(!wrong.contains("-5"), "{wrong}");
    }

    #[test]
    fn encrypted_key_needs_its_password() {
        let key =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2Vj\n-----END ENCRYPTED PRIVATE KEY-----";
        let text = refused(&config().with_tls(TlsConfig::new().with_client("/c.pem", key)));
        assert!(
            text.contains("is encrypted") && text.contains("tls.client_key_password"),
            "{text}"
        );
        assert!(!text.contains("c2Vj"), "{text}");
        let file = std::env::temp_dir().join(format!("cqrs-key-{}.pem", std::process::id()));
        std::fs::write(&file, key).unwrap();
        let by_path =
            refused(&config().with_tls(TlsConfig::new().with_client("/c.pem", file.clone())));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(by_path, text);
        let mut tls = TlsConfig::new().with_client("/c.pem", key);
        tls.client_key_password = Some("hush".into());
        options(&config().with_tls(tls.clone()));
        tls.client_key_password = None;
        options(&config().with_tls(tls).with_raw("ssl.key.password", "hush"));
    }

    #[test]
    fn secret_that_is_no_text_is_refused_unseen() {
        for line in [
            "sasl.password = 8675309",
            "tls.client_key_password = 86753.09",
            "tls.client_key = 8675309",
            r#"raw."ssl.keystore.password" = 8675309"#,
            "raw.\"linger.ms\" = 8675309",
            "sasl.password = [8675309]",
            "sasl.password = true # 8675309",
        ] {
            let text = format!(
                "bootstrap_servers = ['a:1']\nsecurity_protocol = 'SASL_SSL'\n\
                 sasl.mechanism = 'PLAIN'\nsasl.username = 'me'\ntls.client_certificate = '/c.pem'\n{}{line}",
                match line {
                    "tls.client_key = 8675309" => "sasl.password = 'x'\n",
                    _ if line.starts_with("sasl") => "tls.client_key = '/k.pem'\n",
                    _ => "sasl.password = 'x'\ntls.client_key = '/k.pem'\n",
                }
            );
            let config: KafkaConfig = toml::from_str(&text).unwrap();
            let error = refused(&config);
            assert!(error.contains("write it as a text, in quotes"), "{line}: {error}");
            assert!(!format!("{error} {config:?}").contains("867"), "{line}: {error}");
        }
    }

    #[test]
    fn a_config_file_has_the_names_of_the_fields() {
        let text = r#"{
            "bootstrap_servers": ["a:9092"], "linger": "20ms", "publish_timeout": "5s",
            "security_protocol": "SASL_SSL", "compression": "lz4", "retries": 3,
            "sasl": {"mechanism": "PLAIN", "username": "me", "password": "hush"},
            "tls": {"ca": "/ca.pem"}, "raw": {"socket.keepalive.enable": "true"}
        }"#;
        let config: KafkaConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.linger, Duration::from_millis(20));
        assert_eq!(config.publish_timeout, Duration::from_secs(5));
        assert_eq!(config.sasl.password, Some(Secret::new("hush")));
        options(&config);
        for wrong in [r#"{"ack": "all"}"#, r#"{"linger": 5}"#] {
            assert!(serde_json::from_str::<KafkaConfig>(wrong).is_err(), "{wrong}");
        }
        let one: KafkaConfig = toml::from_str("bootstrap_servers = 'a:1, b:2'").unwrap();
        assert_eq!(one.bootstrap_servers, ["a:1", "b:2"]);
        let list: KafkaConfig = toml::from_str("bootstrap_servers = [8675309]").unwrap();
        let error = refused(&list);
        assert!(error.contains("in quotes") && !error.contains("867"), "{error}");
    }
}
