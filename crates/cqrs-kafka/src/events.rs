//! librdkafka's callbacks that producer, consumer and admin client share: logs, errors, statistics, OAuth tokens.
//! Used by the contexts of producer and consumer. All run on the thread that polls.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::error::KafkaError as RdError;
use rdkafka::types::RDKafkaErrorCode as Code;
use serde::Deserialize;

use crate::config::{KafkaConfig, LogLevel};
use crate::error::of_code;
use crate::health::Health;
use crate::oauth::TokenProvider;
use crate::redactor::Redactor;

#[derive(Debug, Clone)]
pub(crate) struct Events {
    pub(crate) health: Arc<Health>,
    pub(crate) redactor: Arc<Redactor>,
    token_provider: Option<TokenProvider>,
    log_level: LogLevel,
}

impl Events {
    pub(crate) fn new(config: &KafkaConfig, health: Arc<Health>) -> Self {
        Self {
            health,
            redactor: Arc::new(config.redactor()),
            token_provider: config.sasl.token_provider.clone(),
            log_level: config.log_level,
        }
    }

    /// librdkafka's text of an error, without secrets.
    pub(crate) fn reason(&self, error: RdError) -> String {
        let why = match error {
            RdError::ClientCreation(why) | RdError::ClientConfig(_, why, ..) => why,
            other => other.to_string(),
        };
        self.redactor.redact(&why)
    }
}

impl ClientContext for Events {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: Level, facility: &str, text: &str) {
        let text = self.redactor.redact(text);
        let text = without_thread(&text);
        if facility == "FAIL" && !matches!(level, Level::Debug) {
            // No error event follows a lost connection.
            self.health.report_failure(text);
        }
        if !is_shown(level, self.log_level) {
            return;
        }
        match level {
            Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
                tracing::error!(target: "librdkafka", facility, "{text}");
            }
            Level::Warning => tracing::warn!(target: "librdkafka", facility, "{text}"),
            Level::Notice | Level::Info => {
                tracing::info!(target: "librdkafka", facility, "{text}");
            }
            Level::Debug => tracing::debug!(target: "librdkafka", facility, "{text}"),
        }
    }

    fn error(&self, error: RdError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        self.health.report_error(code, of_code(code, self.redactor.redact(reason)));
    }

    fn stats_raw(&self, statistics: &[u8]) {
        #[derive(Deserialize)]
        struct Statistics {
            brokers: HashMap<String, Broker>,
        }
        #[derive(Deserialize)]
        struct Broker {
            state: String,
            source: String,
        }
        let Ok(now) = serde_json::from_slice::<Statistics>(statistics) else { return };
        let real = |broker: &&Broker| !matches!(broker.source.as_str(), "internal" | "logical");
        let brokers: Vec<_> = now.brokers.values().filter(real).collect();
        self.health.report_brokers(brokers.len());
        if brokers.iter().any(|broker| broker.state == "UP") {
            self.health.report_up();
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let provider = self.token_provider.as_ref().ok_or("no token provider is set")?;
        let token = provider
            .fetch()
            // librdkafka accepts no text with a NUL.
            .map_err(|error| self.redactor.redact(&error.to_string()).replace('\0', " "))?;
        self.redactor.set_token(token.token.clone());
        let expires = token.expires_at.duration_since(UNIX_EPOCH)?;
        Ok(OAuthToken {
            token: token.token.expose().to_owned(),
            principal_name: token.principal,
            lifetime_ms: i64::try_from(expires.as_millis())?,
        })
    }
}

/// A log line of librdkafka without its prefix `[thrd:name]: `.
fn without_thread(text: &str) -> &str {
    text.strip_prefix("[thrd:")
        .and_then(|rest| rest.split_once("]: "))
        .map_or(text, |(_thread, text)| text)
}

fn is_shown(level: Level, least: LogLevel) -> bool {
    let least = match least {
        LogLevel::Critical => Level::Critical,
        LogLevel::Error => Level::Error,
        LogLevel::Warning => Level::Warning,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
    };
    // syslog(3): the more severe, the smaller.
    level as i32 <= least as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_level_includes_more_severe_lines() {
        assert!(is_shown(Level::Error, LogLevel::Error) && is_shown(Level::Emerg, LogLevel::Error));
        assert!(!is_shown(Level::Warning, LogLevel::Error));
        assert!(
            !is_shown(Level::Notice, LogLevel::Warning) && is_shown(Level::Notice, LogLevel::Info)
        );
    }

    #[test]
    fn log_line_loses_its_thread_prefix() {
        assert_eq!(
            without_thread("[thrd:a:1/bootstrap]: a:1/bootstrap: refused"),
            "a:1/bootstrap: refused"
        );
        assert_eq!(without_thread("refused"), "refused");
    }
}
