//! The health of a connection, from librdkafka's events: its state and its last error. Used by producer and consumer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cqrs_core::broker::BrokerState;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::watch;

use crate::error::{ErrorKind, KafkaError};

/// The time for which a precise error (a failed login, for example) is not replaced by a vaguer one. Longer than the
/// 30 s for which librdkafka does not repeat the last error of a broker.
const PRECISE_FOR: Duration = Duration::from_secs(40);

/// Invariant: `up` is `status.phase == Up`. Only the poll thread changes either.
#[derive(Debug)]
pub(crate) struct Health {
    status: watch::Sender<Status>,
    /// Spares a confirmed record the lock.
    up: AtomicBool,
    /// The number of statistics in a row without a broker.
    brokerless: AtomicU32,
    /// The time for which the last error is reported after the connection came back.
    relevant_for: Duration,
}

/// The number of statistics without a broker, 2 s apart, after which librdkafka does not find one by itself.
const MAX_BROKERLESS: u32 = 3;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not connected to the cluster yet.
    #[default]
    Connecting,
    Up,
    /// All brokers are down, after a connection.
    Down,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    pub(crate) phase: Phase,
    /// Set if every known broker failed since the last connection.
    pub(crate) all_down: bool,
    last: Option<(Instant, KafkaError)>,
    /// The brokers that failed while connecting; `true` if one refused.
    failed: HashMap<String, bool>,
}

impl Status {
    pub(crate) fn last_error(&self) -> Option<&KafkaError> {
        self.last.as_ref().map(|(_, error)| error)
    }

    /// Returns whether another attempt will most likely fail as the last one: every broker refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.all_down
            && self.last_error().is_some_and(|error| is_refusal(error.kind()))
            && self.failed.values().all(|refused| *refused)
    }

    /// Notes the failure of the broker that librdkafka's `error` begins with.
    fn note_failed_broker(&mut self, error: &KafkaError) {
        let text = error.to_string();
        if self.phase == Phase::Connecting
            && let Some((broker, _)) = text.split_once(": ")
        {
            // librdkafka repeats a refusal after 30 s, but other errors of the same broker at once.
            *self.failed.entry(broker.to_owned()).or_default() |= is_refusal(error.kind());
        }
    }

    /// Returns whether a vaguer error must not replace the last one yet.
    fn is_precise_now(&self) -> bool {
        let last = self.last.as_ref();
        last.is_some_and(|(at, error)| is_precise(error.kind()) && at.elapsed() < PRECISE_FOR)
    }
}

impl Health {
    pub(crate) fn new(relevant_for: Duration) -> Self {
        let status = watch::Sender::new(Status::default());
        Self { status, up: AtomicBool::new(false), brokerless: AtomicU32::new(0), relevant_for }
    }

    /// Reports the number of brokers that librdkafka knows, bootstrap servers included.
    pub(crate) fn report_brokers(&self, known: usize) {
        match known {
            0 => drop(self.brokerless.fetch_add(1, Ordering::Relaxed)),
            _ => self.brokerless.store(0, Ordering::Relaxed),
        }
    }

    /// Returns whether librdkafka forgot all brokers, bootstrap servers included. A cluster that just came back may
    /// report that it has none. librdkafka (2.11 and 2.12) then drops them all, and its recovery
    /// (`metadata.recovery.strategy=rebootstrap`) can get stuck, so that it never reconnects.
    pub(crate) fn has_lost_all_brokers(&self) -> bool {
        self.brokerless.load(Ordering::Relaxed) >= MAX_BROKERLESS
    }

    /// The cluster answered.
    pub(crate) fn report_up(&self) {
        if self.up.load(Ordering::Relaxed) {
            return;
        }
        self.up.store(true, Ordering::Relaxed);
        self.status.send_modify(|status| {
            status.phase = Phase::Up;
            status.all_down = false;
        });
        tracing::info!("connected to kafka");
    }

    /// librdkafka reported an error that belongs to no record.
    pub(crate) fn report_error(&self, code: Code, error: KafkaError) {
        let mut lost = false;
        self.status.send_modify(|status| {
            if code == Code::AllBrokersDown {
                status.all_down = true;
                lost = status.phase == Phase::Up;
                if lost {
                    status.phase = Phase::Down;
                    self.up.store(false, Ordering::Relaxed);
                }
                // It only reports that all brokers failed. The error before it is the cause.
                if status.last.is_none() {
                    status.last = Some((Instant::now(), error));
                }
            } else {
                let is_new = is_precise(error.kind()) || !status.is_precise_now();
                let error = explained(status.phase, error.kind(), &error.to_string())
                    .with_code(error.code());
                status.note_failed_broker(&error);
                if is_new {
                    status.last = Some((Instant::now(), error));
                }
            }
        });
        if lost {
            tracing::warn!(error = %self.last_error_text(), "lost the connection to kafka");
        }
    }

    /// librdkafka logged the failure of a connection. An error event with its code may follow.
    pub(crate) fn report_failure(&self, text: &str) {
        self.status.send_modify(|status| {
            let kind = if is_tls(text) { ErrorKind::Tls } else { ErrorKind::Connection };
            let error = explained(status.phase, kind, text);
            status.note_failed_broker(&error);
            if !status.is_precise_now() {
                status.last = Some((Instant::now(), error));
            }
        });
    }

    /// Starts anew for a new client. `error` is the reason why the old one ended.
    pub(crate) fn restart(&self, error: KafkaError) {
        self.up.store(false, Ordering::Relaxed);
        self.brokerless.store(0, Ordering::Relaxed);
        let last = Some((Instant::now(), error));
        self.status.send_replace(Status { last, ..Status::default() });
    }

    /// The error with which another attempt will most likely fail, if every known broker refused the login or TLS.
    pub(crate) fn refusal(&self) -> Option<KafkaError> {
        let status = self.status.borrow();
        status.last_error().filter(|_| status.is_refused()).cloned()
    }

    pub(crate) fn is_connecting(&self) -> bool {
        self.status.borrow().phase == Phase::Connecting
    }

    /// The error that probably keeps records from being confirmed.
    pub(crate) fn cause(&self) -> Option<KafkaError> {
        let status = self.status.borrow();
        let (at, error) = status.last.as_ref()?;
        let is_relevant = status.phase != Phase::Up || at.elapsed() < self.relevant_for;
        is_relevant.then(|| error.clone())
    }

    /// The cause to report when a record's deadline passed.
    pub(crate) fn cause_of_timeout(&self) -> KafkaError {
        self.cause().unwrap_or_else(|| {
            let text = match self.is_connecting() {
                true => "no broker answered yet",
                false => "the broker does not answer; no connection failed so far",
            };
            KafkaError::new(ErrorKind::Connection, text)
        })
    }

    pub(crate) fn state(&self) -> BrokerState {
        let phase = self.status.borrow().phase;
        match phase {
            Phase::Up => BrokerState::Ready,
            Phase::Connecting => BrokerState::Connecting {
                last_error: self.cause().map(|error| error.to_string().into()),
            },
            Phase::Down => BrokerState::Disconnected { last_error: self.last_error_text() },
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    fn last_error_text(&self) -> Arc<str> {
        self.cause().map_or_else(|| "all brokers are down".into(), |error| error.to_string().into())
    }
}

/// An error of a connection. A refused login has a hint. Others have one if no connection was made before: most
/// often client and listener speak different protocols.
fn explained(phase: Phase, kind: ErrorKind, text: &str) -> KafkaError {
    let (kind, hint) = match phase {
        _ if kind == ErrorKind::Authentication => (kind, login_hint(text)),
        Phase::Connecting => hint(kind, text),
        _ => (kind, ""),
    };
    KafkaError::new(kind, format!("{text}{hint}"))
}

/// The remedy of a refused login, read from librdkafka's text.
fn login_hint(text: &str) -> &'static str {
    if text.contains("supported mechanisms") {
        return "; set sasl.mechanism (KAFKA_SASL_MECHANISM) to one that the listener has";
    }
    match text.contains("OAUTHBEARER") {
        true => "; check the token provider, and that the server accepts its issuer and audience",
        false => {
            "; check sasl.username and sasl.password (KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD), and that the \
             user has a password of this mechanism: SCRAM-SHA-256 and -512 each have their own"
        }
    }
}

/// A hint at the kind of listener, read from librdkafka's text. It reports a failed TLS handshake with a plain listener
/// itself, but not an interrupted one.
fn hint(kind: ErrorKind, text: &str) -> (ErrorKind, &'static str) {
    const NEEDS_TLS: &str = "; this listener needs TLS: set security_protocol to SSL or SASL_SSL";
    match first_bytes(text) {
        Some([b'A', b'M', b'Q', b'P']) => {
            return (ErrorKind::Protocol, "; the server speaks AMQP: this is RabbitMQ's port");
        }
        // A TLS alert (RFC 8446, 5.1).
        Some([21, 3, ..]) => return (ErrorKind::Protocol, NEEDS_TLS),
        Some([b'H', b'T', b'T', b'P']) => {
            return (ErrorKind::Protocol, "; the server speaks HTTP: this is not Kafka's port");
        }
        Some(_) => {
            let hint = "; is that Kafka's port? If it is, the answer is larger than the client takes: raise \
                        receive.message.max.bytes";
            return (kind, hint);
        }
        None => {}
    }
    // OpenSSL's text for an answer that is no TLS.
    if text.contains("wrong version number") {
        let hint = "; this port has no TLS: set security_protocol to PLAINTEXT or SASL_PLAINTEXT";
        return (ErrorKind::Protocol, hint);
    }
    if text.contains("APIVERSION_QUERY") {
        let hint = "; does security_protocol match that listener, and is it Kafka's?";
        return (kind, hint);
    }
    match text.contains("SSL_HANDSHAKE") && !text.contains("PLAINTEXT") && !is_tls(text) {
        true => (kind, "; is that a PLAINTEXT listener?"),
        false => (kind, ""),
    }
}

/// The first bytes of an answer whose size librdkafka refuses: a large one, or text of another protocol.
fn first_bytes(text: &str) -> Option<[u8; 4]> {
    let (_, size) = text.split_once("Invalid response size ")?;
    let end = size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len());
    size[..end].parse::<u32>().ok().map(u32::to_be_bytes)
}

/// Returns whether librdkafka's text is about TLS itself (a certificate, for example). The text is logged before the
/// error event with its code.
fn is_tls(text: &str) -> bool {
    let handshake = text.contains("SSL handshake failed") && !text.contains("PLAINTEXT broker");
    handshake
        || ["Failed to verify broker certificate", "did not provide a certificate"]
            .iter()
            .any(|part| text.contains(part))
}

fn is_precise(kind: ErrorKind) -> bool {
    is_refusal(kind) || matches!(kind, ErrorKind::Authorization | ErrorKind::Fatal)
}

fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Authentication | ErrorKind::Tls | ErrorKind::Protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(health: &Health, code: Code, text: &str) {
        health.report_error(code, crate::error::of_code(code, text.to_owned()));
    }

    #[test]
    fn connecting_up_down_and_up_again() {
        let health = Health::new(Duration::ZERO);
        assert_eq!(health.state(), BrokerState::Connecting { last_error: None });
        report(&health, Code::BrokerTransportFailure, "refused");
        report(&health, Code::AllBrokersDown, "1/1 down");
        assert_eq!(health.state(), BrokerState::Connecting { last_error: Some("refused".into()) });
        health.report_up();
        assert_eq!((health.state(), health.cause().is_none()), (BrokerState::Ready, true));
        report(&health, Code::BrokerTransportFailure, "reset");
        assert_eq!(health.state(), BrokerState::Ready, "one broker of several");
        report(&health, Code::AllBrokersDown, "1/1 down");
        assert_eq!(health.state(), BrokerState::Disconnected { last_error: "reset".into() });
        health.report_up();
        assert_eq!(health.state(), BrokerState::Ready);
    }

    #[test]
    fn client_without_brokers_for_a_while_is_lost() {
        let health = Health::new(Duration::ZERO);
        for known in [0, 0, 1, 0, 0] {
            health.report_brokers(known);
            assert!(!health.has_lost_all_brokers());
        }
        health.report_brokers(0);
        assert!(health.has_lost_all_brokers());
        health.restart(KafkaError::new(ErrorKind::Connection, "lost"));
        assert!(!health.has_lost_all_brokers(), "the new client starts from its bootstrap servers");
    }

    #[test]
    fn early_disconnect_hints_at_protocol_mismatch() {
        let cause = |text: &str| {
            let (logged, reported) = (Health::new(Duration::ZERO), Health::new(Duration::ZERO));
            logged.report_failure(text);
            report(&reported, Code::BrokerTransportFailure, text);
            let [logged, reported] =
                [logged, reported].map(|health| health.cause().unwrap().to_string());
            assert_eq!(logged, reported);
            logged
        };
        let tls = "ssl://b: Disconnected: SSL connection closed by peer (after 0ms in state SSL_HANDSHAKE)";
        assert!(cause(tls).ends_with("; is that a PLAINTEXT listener?"), "{}", cause(tls));
        let plain = "b: Disconnected while requesting ApiVersion (in state APIVERSION_QUERY)";
        assert!(cause(plain).contains("; does security_protocol match that listener"));
        let size =
            |size: u32| format!("b: Receive failed: Invalid response size {size} (0..100000000)");
        let amqp = size(u32::from_be_bytes(*b"AMQP"));
        assert!(cause(&amqp).ends_with("this is RabbitMQ's port"), "{}", cause(&amqp));
        assert!(cause(&size(0x1503_0300)).contains("this listener needs TLS"));
        let http = size(u32::from_be_bytes(*b"HTTP"));
        assert!(cause(&http).ends_with("this is not Kafka's port"), "{}", cause(&http));
        let no_tls =
            "ssl://b: SSL handshake failed: error:0A00010B:SSL routines::wrong version number";
        assert!(cause(no_tls).contains("this port has no TLS"), "{}", cause(no_tls));
        assert!(cause("b: Connection refused").ends_with("refused"));
    }

    #[test]
    fn large_answer_of_kafka_is_no_refusal() {
        let health = Health::new(Duration::ZERO);
        let text = "b: Receive failed: Invalid response size 100000001 (0..100000000)";
        report(&health, Code::BadMessage, text);
        report(&health, Code::AllBrokersDown, "1/1 down");
        assert!(health.refusal().is_none());
        let cause = health.cause().unwrap().to_string();
        assert!(cause.contains("receive.message.max.bytes"), "{cause}");
    }

    #[test]
    fn refusal_of_one_broker_of_two_is_none_of_all() {
        let health = Health::new(Duration::ZERO);
        health.report_failure("a:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: refused");
        report(&health, Code::Authentication, "b:1/bootstrap: SASL authentication error: no");
        report(&health, Code::AllBrokersDown, "2/2 down");
        assert!(health.refusal().is_none(), "a may come up");
        report(&health, Code::BrokerTransportFailure, "b:1/bootstrap: Disconnected");
        report(&health, Code::Authentication, "a:1/bootstrap: SASL authentication error: no");
        assert_eq!(health.refusal().unwrap().kind(), ErrorKind::Authentication);
    }

    #[test]
    fn refused_login_says_what_to_check() {
        let cause = |text: &str| {
            let health = Health::new(Duration::ZERO);
            report(&health, Code::Authentication, text);
            health.cause().unwrap().to_string()
        };
        let scram =
            cause("b: SASL authentication error: Authentication failed due to invalid credentials");
        assert!(scram.contains("; check sasl.username and sasl.password (KAFKA_SASL_"), "{scram}");
        let mechanism = cause(
            "b: SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported \
             mechanisms: SCRAM-SHA-256",
        );
        assert!(mechanism.ends_with("(KAFKA_SASL_MECHANISM) to one that the listener has"));
        let token = cause("Failed to acquire SASL OAUTHBEARER token: no token");
        assert!(token.contains("; check the token provider"), "{token}");

        let health = Health::new(Duration::ZERO);
        health.report_up();
        report(&health, Code::AllBrokersDown, "1/1 down");
        report(&health, Code::Authentication, "b: SASL authentication error: changed");
        let changed = health.cause().unwrap().to_string();
        assert!(changed.contains("; check sasl.username"), "a password that changed: {changed}");
    }

    #[test]
    fn logged_certificate_error_is_tls() {
        let text = "ssl://b:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate \
                    verify failed: broker certificate could not be verified, verify that ssl.ca.location is \
                    correctly configured (after 3ms in state SSL_HANDSHAKE)";
        let health = Health::new(Duration::ZERO);
        health.report_failure(text);
        for _ in 0..2 {
            let cause = health.cause().unwrap();
            assert_eq!((cause.kind(), &*cause.to_string()), (ErrorKind::Tls, text));
            // An interrupted handshake of a busy server does not overwrite it.
            health.report_failure(
                "b: Disconnected: during SSL handshake (after 9ms in state SSL_HANDSHAKE)",
            );
        }
        report(&health, Code::SSL, text);
        assert_eq!(health.cause().unwrap().to_string(), text, "no hint");
        let plain = Health::new(Duration::ZERO);
        plain.report_failure(
            "b: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?",
        );
        assert_eq!(plain.cause().unwrap().kind(), ErrorKind::Connection);
    }

    #[test]
    fn precise_error_is_not_replaced_by_a_vague_one() {
        let health = Health::new(Duration::from_secs(30));
        report(&health, Code::Authentication, "wrong password");
        report(&health, Code::BrokerTransportFailure, "disconnected");
        report(&health, Code::AllBrokersDown, "1/1 down");
        let is_kept = || health.cause().unwrap().to_string().starts_with("wrong password; ");
        assert!(is_kept());
        health.report_failure("disconnected");
        assert!(is_kept());
        report(&health, Code::SSL, "bad certificate");
        assert_eq!(health.cause().unwrap().to_string(), "bad certificate");
    }
}
