//! Tests of the Kafka producer: its records, its errors, and
//! what is left after connections were cut.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cqrs_core::broker::BrokerState;
use cqrs_core::message::content_type;
use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind};
use cqrs_kafka::{
    Acks, Compression, ErrorKind, KafkaConfig, KafkaError, KafkaMessageBroker, LogLevel,
    OAuthToken, Sasl, SecurityProtocol, TlsConfig, TokenProvider,
};
use integration_tests::kafka::{
    create_topic, fresh_topic, java_partition, proxy, proxy_at, proxy_port, read_all,
};
use integration_tests::{log, servers};
use tokio::sync::{Mutex, watch};

fn config() -> KafkaConfig {
    KafkaConfig::new([servers::kafka()])
}

async fn connect(config: KafkaConfig) -> KafkaMessageBroker {
    KafkaMessageBroker::connect(config).await.unwrap()
}

/// The errors under `error`, in words.
fn causes(error: &dyn Error) -> Vec<String> {
    std::iter::successors(error.source(), |&error| error.source())
        .map(ToString::to_string)
        .collect()
}

fn cause(error: &PublishError) -> &KafkaError {
    error.source().and_then(|source| source.downcast_ref()).expect("a KafkaError as source")
}

/// Publishes to where it cannot succeed, once the broker value has met the cluster or failed to: the
/// error must come with the deadline.
async fn failure(mut config: KafkaConfig, deadline: Duration) -> PublishError {
    config.publish_timeout = deadline;
    let broker = KafkaMessageBroker::new(config).unwrap();
    wait_for(&broker, |state| *state != BrokerState::Connecting { last_error: None }).await;
    let started = Instant::now();
    let error = broker.publish(Message::new(fresh_topic("failure"), "{}")).await.unwrap_err();
    let took = started.elapsed();
    assert!(took < deadline + Duration::from_secs(30), "{took:?}");
    println!(
        "SUMMARY kafka failure kind={:?} took={took:.1?} causes={:?}",
        error.kind(),
        causes(&error)
    );
    error
}

#[tokio::test]
async fn every_compression_reads_back_as_it_was_published() {
    for compression in [
        Compression::None,
        Compression::Lz4,
        Compression::Zstd,
        Compression::Snappy,
        Compression::Gzip,
    ] {
        let topic = fresh_topic(compression.as_str());
        create_topic(&topic, 4, &[]).await;
        let mut config = config();
        config.compression = compression;
        let broker = connect(config).await;
        let happened = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let mut receipts = Vec::new();
        for n in 0..50 {
            let mut message = Message::new(&*topic, format!("{{\"n\":{n},{:?}}}", " ".repeat(200)))
                .with_key("one key")
                .with_content_type(content_type::JSON)
                .with_timestamp(happened);
            message.headers.set_correlation_id(format!("c-{n}"));
            message.headers.insert("traceparent", "00-\u{e9}").unwrap();
            receipts.push((message.clone(), broker.enqueue(message).await.unwrap()));
        }
        let mut confirmed = Vec::new();
        for (message, receipt) in receipts {
            confirmed.push((message, receipt.await.unwrap()));
        }
        let records = read_all(&topic).await;
        assert_eq!(records.len(), confirmed.len());
        for (record, (message, confirmation)) in records.iter().zip(&confirmed) {
            assert_eq!(confirmation.partition, Some(record.partition));
            assert_eq!(confirmation.offset, Some(record.offset));
            assert_eq!(record.body.as_deref(), Some(&*message.body), "byte for byte");
            assert_eq!(record.key.as_deref(), Some(&b"one key"[..]));
            assert_eq!(record.timestamp, Some(1_700_000_000_123));
            let sent: Vec<_> = message.headers.iter().collect();
            let read: Vec<_> = record.headers.iter().map(|(n, v)| (&**n, &**v)).collect();
            assert_eq!(read, sent, "and no content type");
        }
    }
}

#[tokio::test]
async fn empty_body_is_no_tombstone() {
    let topic = fresh_topic("frames");
    let broker = connect(config()).await;
    broker.publish(Message::new(&*topic, "").with_key("")).await.unwrap();
    let protobuf = Message::new(&*topic, vec![0xff, 0x00])
        .with_key("")
        .with_name("UserJoined")
        .with_content_type(content_type::PROTOBUF);
    broker.publish(protobuf.clone()).await.unwrap();
    let records = read_all(&topic).await;
    assert_eq!(
        (records[0].body.as_deref(), records[0].key.as_deref()),
        (Some(&[][..]), Some(&[][..]))
    );
    assert_eq!(records[1].body.as_deref(), Some(&[0xff, 0x00][..]));
    let id = protobuf.id.hyphenated().to_string();
    let expected = [("event_name", "UserJoined"), ("message_id", &*id)];
    assert_eq!(records[1].headers, expected.map(|(name, value)| (name.into(), value.into())));
}

#[tokio::test]
async fn a_key_goes_to_the_java_clients_partition() {
    let topic = fresh_topic("murmur2");
    create_topic(&topic, 7, &[]).await;
    let broker = connect(config()).await;
    let mut receipts = Vec::new();
    for n in 0..500 {
        let key = "x".repeat(n % 9) + &n.to_string() + if n % 2 == 0 { "\u{e9}" } else { "" };
        let message = Message::new(&*topic, "{}").with_key(key.clone());
        receipts.push((key, broker.enqueue(message).await.unwrap()));
    }
    let mut used = HashSet::new();
    for (key, receipt) in receipts {
        let partition = receipt.await.unwrap().partition.unwrap();
        assert_eq!(partition, java_partition(key.as_bytes(), 7), "{key:?}");
        used.insert(partition);
    }
    assert_eq!(used.len(), 7);
}

#[tokio::test]
async fn weaker_acks_are_confirmed_too() {
    for acks in [Acks::Leader, Acks::None] {
        let mut config = config();
        (config.acks, config.enable_idempotence) = (acks, false);
        let confirmation =
            connect(config).await.publish(Message::new(fresh_topic("acks"), "{}")).await.unwrap();
        assert_eq!(confirmation.offset.is_some(), acks == Acks::Leader, "{confirmation:?}");
    }
}

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
async fn a_topic_that_does_not_exist_is_unroutable() {
    let mut config = config();
    config.allow_auto_create_topics = false;
    let error = failure(config, Duration::from_secs(20)).await;
    assert_eq!(error.kind(), PublishErrorKind::Unroutable, "{error:?}");
}

#[tokio::test]
async fn too_large_here_and_too_large_for_the_topic() {
    let topic = fresh_topic("large");
    create_topic(&topic, 1, &[("max.message.bytes", "2000")]).await;
    let broker = connect(config()).await;
    let error = broker.publish(Message::new(&*topic, vec![b'x'; 1_000_001])).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::TooLarge);
    assert!(error.to_string().contains("max_message_size is 1000000"), "{error}");
    let error = broker.publish(Message::new(&*topic, vec![b'x'; 5_000])).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::TooLarge);
    assert!(error.to_string().contains("max.message.bytes of the topic"), "{error}");
    assert_eq!(error.into_message().body.len(), 5_000, "the error returns the message");
    broker.publish(Message::new(&*topic, "small")).await.expect("the next one is not harmed");
}

fn proxied() -> KafkaConfig {
    KafkaConfig::new([servers::kafka_proxied()])
}

async fn wait_for(broker: &KafkaMessageBroker, what: impl Fn(&BrokerState) -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !what(&broker.state()) {
        assert!(Instant::now() < end, "{:?}", broker.state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes until it is confirmed: a short deadline may be over before a busy server answers.
async fn until_confirmed(broker: &KafkaMessageBroker, message: Message) {
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = broker.publish(message.clone()).await {
        assert!(Instant::now() < end, "{error:?}");
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

#[tokio::test]
async fn possibly_sent_record_is_unknown_at_its_deadline() {
    let (proxy, _alone) = proxy().await;
    let mut config = proxied();
    config.publish_timeout = Duration::from_secs(4);
    config.request_timeout = Duration::from_secs(1);
    let broker = servers::connected(|| KafkaMessageBroker::connect(config.clone())).await;
    let topic = fresh_topic("unknown");
    create_topic(&topic, 4, &[]).await;
    until_confirmed(&broker, Message::new(&*topic, "1")).await;
    for silent in [true, false] {
        if silent {
            proxy.blackhole(true);
        } else {
            proxy.refuse(true);
            proxy.cut();
        }
        let started = Instant::now();
        let error = broker.publish(Message::new(&*topic, "2")).await.unwrap_err();
        let took = started.elapsed();
        assert!(took < Duration::from_secs(34), "{took:?}");
        assert_eq!(error.kind(), PublishErrorKind::Unknown, "{error:?}");
        assert_eq!(cause(&error).kind(), ErrorKind::Connection, "{error:?}");
        println!(
            "SUMMARY kafka unknown silent={silent} took={took:.1?} causes={:?}",
            causes(&error)
        );
        proxy.refuse(false);
        proxy.blackhole(false);
        until_confirmed(&broker, Message::new(&*topic, "3")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_keep_the_order_of_keys_over_64_tasks() {
    const TASKS: usize = 64;
    const EACH: usize = 100;
    const KEYS: usize = 8;
    let (proxy, _alone) = proxy().await;
    let broker = connect(proxied()).await;
    let topic = fresh_topic("cuts");
    create_topic(&topic, 4, &[]).await;
    // Order per key is the order in which `enqueue` resolved, so the number is drawn under the lock.
    let numbers: Arc<Vec<Mutex<usize>>> = Arc::new((0..KEYS).map(|_| Mutex::new(0)).collect());
    let confirmed = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (broker, topic) = (broker.clone(), topic.clone());
        let (numbers, confirmed) = (Arc::clone(&numbers), Arc::clone(&confirmed));
        tasks.push(tokio::spawn(async move {
            for n in 0..EACH {
                let key = (task + n) % KEYS;
                let mut number = numbers[key].lock().await;
                let message = Message::new(&*topic, number.to_string()).with_key(key.to_string());
                let receipt = broker.enqueue(message).await.unwrap();
                *number += 1;
                drop(number);
                receipt.await.unwrap();
                confirmed.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut cuts = 0;
    for part in 1..=10 {
        while confirmed.load(Ordering::Relaxed) < part * TASKS * EACH / 12 {
            assert!(started.elapsed() < Duration::from_secs(120));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        proxy.cut();
        cuts += 1;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let records = read_all(&topic).await;
    let mut next: HashMap<Vec<u8>, usize> = HashMap::new();
    for record in &records {
        let number: usize =
            String::from_utf8(record.body.clone().unwrap()).unwrap().parse().unwrap();
        let expected = next.entry(record.key.clone().unwrap()).or_default();
        assert_eq!(number, *expected, "lost, twice or out of order: key {:?}", record.key);
        *expected += 1;
    }
    assert_eq!(records.len(), TASKS * EACH);
    assert!(proxy.accepted() > cuts, "it reconnected");
    println!(
        "SUMMARY kafka cuts={cuts} tasks={TASKS} events={} lost=0 duplicates=0 reordered=0 took={:.1?}",
        records.len(),
        started.elapsed()
    );
}

/// The broker judges whole batches by the limit of the topic.
#[tokio::test]
async fn only_a_record_too_large_alone_is_too_large() {
    log::show_warnings();
    let topic = fresh_topic("batches");
    create_topic(&topic, 1, &[("max.message.bytes", "20000")]).await;
    let broker = KafkaMessageBroker::connect(KafkaConfig::new([servers::kafka()])).await.unwrap();
    let mut receipts = Vec::new();
    for number in 0..600 {
        let length = if number == 150 { 30_000 } else { 1_000 };
        let body = format!("{number:0length$}");
        let message = Message::new(&*topic, body).with_key(format!("key-{number}"));
        receipts.push(broker.enqueue(message).await.unwrap());
    }
    for (number, receipt) in receipts.into_iter().enumerate() {
        let kind = receipt.await.err().map(|error| error.kind());
        let expected = (number == 150).then_some(PublishErrorKind::TooLarge);
        assert_eq!(kind, expected, "{number}");
    }
    // The producer knows the limit now: one key, in order.
    let mut receipts = Vec::new();
    for number in 0..600 {
        let message = Message::new(&*topic, format!("{number:01000}")).with_key("key");
        receipts.push(broker.enqueue(message).await.unwrap());
    }
    let mut last = None;
    for receipt in receipts {
        let offset = receipt.await.unwrap().offset;
        assert!(last < offset, "{last:?} then {offset:?}");
        last = offset;
    }
    assert_eq!(broker.shutdown(Duration::from_secs(10)).await.undelivered, 0);
}
