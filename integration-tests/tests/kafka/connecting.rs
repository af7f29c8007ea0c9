//! Tests of the Kafka producer's connection: TLS, logins, tokens and its state.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cqrs_core::broker::BrokerState;
use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishErrorKind};
use cqrs_kafka::{
    ErrorKind, KafkaConfig, KafkaError, KafkaMessageBroker, LogLevel, OAuthToken, Sasl,
    SecurityProtocol, TlsConfig, TokenProvider,
};
use cqrs_testkit::error_chain;
use integration_tests::kafka::{
    fresh_topic, proxy, proxy_at, proxy_listener, proxy_port, read_all,
};
use integration_tests::{amqp, log, servers};
use tokio::sync::watch;

use super::producing::{cause, causes, connect, failure, proxied, wait_for};

async fn publishes(config: KafkaConfig) {
    let broker = connect(config).await;
    broker.publish(Message::new(fresh_topic("secure"), "{}")).await.unwrap();
}

fn trusted() -> TlsConfig {
    TlsConfig::new().with_ca(servers::certs("ca.pem"))
}

#[tokio::test]
async fn tls_takes_paths_text_and_client_certificates() {
    let config = |tls| KafkaConfig::new([servers::kafka_ssl()]).with_tls(tls);
    let text = |file| std::fs::read_to_string(servers::certs(file)).unwrap();
    publishes(config(trusted())).await;
    let (certificate, key) = (servers::certs("client.pem"), servers::certs("client.key"));
    publishes(config(trusted().with_client(certificate, key))).await;
    let inline = TlsConfig::new()
        .with_ca(text("ca.pem"))
        .with_client(text("client.pem"), text("client.key"));
    publishes(config(inline)).await;
    let mut blind = config(TlsConfig::new().with_ca(servers::certs("other-ca.pem")));
    blind.danger_accept_any_certificate = true;
    publishes(blind).await;
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_trusted() {
    let config = |tls| KafkaConfig::new([servers::kafka_ssl()]).with_tls(tls);
    for tls in [TlsConfig::new().with_ca(servers::certs("other-ca.pem")), TlsConfig::new()] {
        let error = failure(config(tls.clone()), Duration::from_secs(3)).await;
        assert_eq!(error.kind(), PublishErrorKind::NotSent);
        assert_eq!(cause(&error).kind(), ErrorKind::Tls);
        assert!(causes(&error)[0].contains("certificate verify failed"), "{error:?}");
        let started = Instant::now();
        let error = KafkaMessageBroker::connect(config(tls)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tls);
        assert!(started.elapsed() < Duration::from_secs(20), "no need to wait for the deadline");
    }
}

#[tokio::test]
async fn tls_mismatch_of_client_and_port_is_named() {
    let to_plain = KafkaConfig::new([servers::kafka()]).with_tls(trusted());
    let to_tls = KafkaConfig::new([servers::kafka_ssl()]);
    for (config, words) in [(to_plain, "PLAINTEXT"), (to_tls, "security_protocol")] {
        let error = failure(config, Duration::from_secs(3)).await;
        assert_eq!(error.kind(), PublishErrorKind::NotSent);
        assert!(causes(&error)[0].contains(words), "{error:?}");
    }
}

fn sasl(sasl: Sasl) -> KafkaConfig {
    KafkaConfig::new([servers::kafka_sasl_ssl()]).with_tls(trusted()).with_sasl(sasl)
}

#[tokio::test]
async fn every_password_mechanism_logs_in() {
    let (user, password) = servers::KAFKA_USER;
    for login in [
        Sasl::plain(user, password),
        Sasl::scram_sha_256(user, password),
        Sasl::scram_sha_512(user, password),
    ] {
        let config = sasl(login);
        assert_eq!(config.security_protocol, SecurityProtocol::SaslSsl);
        publishes(config).await;
    }
}

#[tokio::test]
async fn wrong_password_is_reported_and_never_shown() {
    log::capture();
    let wrong = "wr0ng-passw0rd";
    for login in [
        Sasl::plain("cqrs", wrong),
        Sasl::scram_sha_256("cqrs", wrong),
        Sasl::scram_sha_512("cqrs", wrong),
    ] {
        let mut config = sasl(login).with_raw("debug", "all");
        config.log_level = LogLevel::Debug;
        let shown = format!("{config:?}");
        let error = failure(config.clone(), Duration::from_secs(3)).await;
        assert_eq!(error.kind(), PublishErrorKind::NotSent);
        assert_eq!(cause(&error).kind(), ErrorKind::Authentication, "{error:?}");
        let refused = KafkaMessageBroker::connect(config).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Authentication, "{refused:?}");
        assert!(format!("{refused:?}").contains("KAFKA_SASL_PASSWORD"), "{refused:?}");
        let texts = [
            shown,
            format!("{error} {error:?} {:?}", causes(&error)),
            format!("{refused} {refused:?} {:?}", causes(&refused)),
            log::captured(),
        ];
        for text in texts {
            assert!(!text.contains(wrong), "{text}");
        }
    }
    assert!(log::captured().contains("librdkafka"), "librdkafka's own messages are logged");
}

#[tokio::test]
async fn unsupported_mechanism_is_reported() {
    let provider = TokenProvider::new(|| Ok::<_, KafkaError>(token(Duration::from_secs(60))));
    let error = failure(sasl(Sasl::oauth_bearer(provider)), Duration::from_secs(3)).await;
    assert_eq!(error.kind(), PublishErrorKind::NotSent);
    assert_eq!(cause(&error).kind(), ErrorKind::Authentication, "{error:?}");
    assert!(causes(&error)[0].contains("OAUTHBEARER"), "{error:?}");
    assert!(causes(&error)[0].contains("KAFKA_SASL_MECHANISM"), "{error:?}");
}

/// An unsigned token ([RFC 7515](https://www.rfc-editor.org/rfc/rfc7515), `alg` none).
fn token(lifetime: Duration) -> OAuthToken {
    let now = SystemTime::now();
    let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (issued, expires) = (seconds(now), seconds(now + lifetime));
    let claims = format!(r#"{{"sub":"cqrs","iat":{issued},"exp":{expires}}}"#);
    let text = format!("{}.{}.", base64url(br#"{"alg":"none"}"#), base64url(claims.as_bytes()));
    OAuthToken::new(text, "cqrs", now + lifetime)
}

fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for n in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * n)) as usize & 63]));
        }
    }
    text
}

#[tokio::test]
async fn oauth_tokens_are_fetched_and_refreshed() {
    let (count, mut fetched) = watch::channel(0);
    let provider = TokenProvider::new(move || {
        count.send_modify(|count| *count += 1);
        Ok::<_, KafkaError>(token(Duration::from_secs(5)))
    });
    let config = KafkaConfig::new([servers::kafka_oauth()]).with_sasl(Sasl::oauth_bearer(provider));
    let broker = connect(config).await;
    let topic = fresh_topic("oauth");
    broker.publish(Message::new(&*topic, "{}")).await.unwrap();
    let again = fetched.wait_for(|&count| count >= 3);
    drop(tokio::time::timeout(Duration::from_secs(30), again).await.expect("refreshed").unwrap());
    broker.publish(Message::new(&*topic, "{}")).await.unwrap();
}

#[tokio::test]
async fn a_token_provider_that_fails_or_panics_is_the_cause() {
    let fails = TokenProvider::new(|| Err::<OAuthToken, _>("the identity service is down"));
    let panics = TokenProvider::new(|| -> Result<OAuthToken, KafkaError> { panic!("oh") });
    for (provider, words) in [(fails, "the identity service is down"), (panics, "panicked")] {
        let config =
            KafkaConfig::new([servers::kafka_oauth()]).with_sasl(Sasl::oauth_bearer(provider));
        let error = failure(config, Duration::from_secs(3)).await;
        assert_eq!(cause(&error).kind(), ErrorKind::Authentication, "{error:?}");
        assert!(causes(&error)[0].contains(words), "{error:?}");
    }
}

#[tokio::test]
async fn broker_value_works_once_the_server_is_up() {
    let alone = proxy_port().await;
    let broker = KafkaMessageBroker::new(proxied()).unwrap();
    let topic = fresh_topic("late");
    let early = broker.enqueue(Message::new(&*topic, "1").with_key("k")).await.unwrap();
    wait_for(&broker, |state| matches!(state, BrokerState::Connecting { last_error: Some(_) }))
        .await;
    let _proxy = proxy_at(&alone).await;
    early.await.unwrap();
    broker.publish(Message::new(&*topic, "2").with_key("k")).await.unwrap();
    assert_eq!(broker.state(), BrokerState::Ready);
    let bodies: Vec<_> = read_all(&topic).await.into_iter().map(|record| record.body).collect();
    assert_eq!(bodies, [Some(b"1".to_vec()), Some(b"2".to_vec())]);
}

#[tokio::test]
async fn the_state_follows_the_connection_without_traffic() {
    let (proxy, _alone) = proxy().await;
    let broker = connect(proxied()).await;
    proxy.refuse(true);
    proxy.cut();
    wait_for(&broker, |state| matches!(state, BrokerState::Disconnected { .. })).await;
    proxy.refuse(false);
    wait_for(&broker, BrokerState::is_ready).await;
}

/// The error of `connect`, and how long that took.
async fn refused(mut config: KafkaConfig, limit: Duration) -> (KafkaError, String, Duration) {
    config.connect_timeout = limit;
    let started = Instant::now();
    let error = KafkaMessageBroker::connect(config).await.unwrap_err();
    let text = error_chain(&error);
    println!("SUMMARY kafka connect {:?}: {text}", error.kind());
    (error, text, started.elapsed())
}

#[tokio::test]
async fn connect_to_rabbitmqs_port_names_it_at_once() {
    let config = KafkaConfig::new([amqp::address()]);
    for config in [config.clone(), config.with_tls(trusted())] {
        let (error, text, took) = refused(config, Duration::from_secs(30)).await;
        assert_eq!(error.kind(), ErrorKind::Protocol, "{text}");
        assert!(
            text.contains("RabbitMQ's port") || text.contains("this port has no TLS"),
            "{text}"
        );
        assert!(took < Duration::from_secs(15), "no wait: {took:?}");
    }
}

#[tokio::test]
async fn connect_names_tls_mismatch_of_the_listener() {
    for server in [servers::kafka_ssl(), servers::kafka_sasl_ssl()] {
        let (_, text, _) = refused(KafkaConfig::new([server]), Duration::from_secs(3)).await;
        assert!(text.contains("security_protocol"), "{text}");
    }
    let to_plain = KafkaConfig::new([servers::kafka()]).with_tls(trusted());
    let (_, text, _) = refused(to_plain, Duration::from_secs(3)).await;
    assert!(text.contains("PLAINTEXT"), "{text}");
}

#[tokio::test]
async fn connect_waits_for_a_server_that_comes_up() {
    let alone = proxy_port().await;
    let listener = proxy_listener(&alone).await;
    let connecting = tokio::spawn(KafkaMessageBroker::connect(proxied()));
    // The first attempt fails.
    drop(listener.accept().await.unwrap());
    drop(listener);
    let _proxy = proxy_at(&alone).await;
    let broker = connecting.await.unwrap().unwrap();
    assert_eq!(broker.state(), BrokerState::Ready);
}
