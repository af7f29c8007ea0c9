//! The options of librdkafka that producer, consumer and administration share, and librdkafka's check of
//! each option.

use std::collections::BTreeMap;
use std::time::Duration;

use cqrs_config::{is_encrypted_key, not_text};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::{KafkaConfig, LogLevel, Pem};
use crate::error::KafkaError;
use crate::redactor::Redactor;

/// Other names of options. Two names of one option must not both reach librdkafka, where either may win.
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

impl KafkaConfig {
    /// The options that producer, consumer and administration share.
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
        // Statistics report a restored connection while nothing is sent.
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

    /// Lets librdkafka check each option. Its error texts show the value; those of secrets are left out.
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
        // The reason of a lost connection is only logged at this level; `Context::log` filters what is shown.
        client.set_log_level(match self.log_level {
            LogLevel::Debug => RDKafkaLogLevel::Debug,
            _ => RDKafkaLogLevel::Info,
        });
        Ok(client)
    }

    /// Removes the secrets of these settings from texts.
    pub(crate) fn redactor(&self) -> Redactor {
        let pem = |pem: &Option<Pem>| match pem {
            Some(Pem::Text(text)) => Some(text.as_str().into()),
            // A key without its markers is read as a path.
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

pub(super) fn canonical(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, canonical)| canonical)
}

fn is_secret(name: &str) -> bool {
    ["password", "secret", "passphrase", ".pem", "key", "token", "assertion", "oauthbearer.config"]
        .iter()
        .any(|part| name.contains(part))
}

pub(super) fn bool_text(on: bool) -> &'static str {
    if on { "true" } else { "false" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{config, options, refused};
    use crate::config::{Sasl, TlsConfig};

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
        // A key without its markers is read as a path.
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
}
