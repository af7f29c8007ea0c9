//! Every way to configure a secret, tried in a process whose whole output is searched.

use std::error::Error;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker, Pem};
use cqrs_core::{Message, MessageBrokerExt};
use cqrs_kafka::{
    KafkaConfig, KafkaError, KafkaMessageBroker, LogLevel, OAuthToken, Sasl, SaslMechanism,
    SecurityProtocol, TlsConfig, TokenProvider,
};
use cqrs_schema_registry::{
    Credentials, Frame, RegistryConfig, RegistryDecoder, Schema, SchemaRegistry,
};
use futures_util::future::join_all;
use integration_tests::{amqp, kafka, servers};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use super::secret;

/// Says that a way is tried, and gives its secret.
fn way(name: &str) -> String {
    println!("\nWAY {name}"); // the test's own name may stand in the line
    secret(name)
}

/// Writes all that a program could log of a value.
fn show(value: &(impl Debug + ?Sized)) {
    println!("{value:?}\n{value:#?}");
}

/// Writes all that a program could log of an error.
fn show_error(error: &(dyn Error + 'static)) {
    let mut next = Some(error);
    while let Some(error) = next {
        println!("{error}\n{error:?}\n{error:#?}");
        next = error.source();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by no_secret_is_shown_at_any_level, in a process of its own"]
async fn all() {
    let filter = std::env::var(super::FILTER).expect("the parent's filter");
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&filter))
        .with_ansi(false)
        .with_writer(std::io::stdout)
        .init();
    amqp_ways().await;
    // Without more of a filter it is only seen that the search finds lapin's lines.
    if filter.contains(',') {
        kafka_ways().await;
        registry_ways().await;
    }
    println!("ALL WAYS TRIED");
}

fn trusted() -> TlsConfig {
    TlsConfig::new().with_ca(servers::certs("ca.pem"))
}

/// Connects, publishes if that works, and shows everything.
async fn kafka(mut config: KafkaConfig) {
    config.publish_timeout = Duration::from_secs(3);
    config.log_level = LogLevel::Debug;
    show(&config);
    let config = config.with_raw("debug", "all");
    match KafkaMessageBroker::connect(config.clone()).await {
        Ok(broker) => {
            show(&broker);
            let message = Message::new(kafka::fresh_topic("canary"), "{}");
            if let Err(error) = broker.publish(message).await {
                show_error(&error);
            }
        }
        Err(error) => show_error(&error),
    }
    // Without a connect, the publish has the error.
    if let Ok(broker) = KafkaMessageBroker::new(config)
        && let Err(error) = broker.publish(Message::new("canary", "{}")).await
    {
        show_error(&error);
    }
}

async fn kafka_ways() {
    let mut all = Vec::new();
    let login =
        |sasl| KafkaConfig::new([servers::kafka_sasl_ssl()]).with_tls(trusted()).with_sasl(sasl);
    all.push(login(Sasl::plain("cqrs", way("kafka-plain"))));
    all.push(login(Sasl::scram_sha_256("cqrs", way("kafka-scram-256"))));
    all.push(login(Sasl::scram_sha_512("cqrs", way("kafka-scram-512"))));
    let mut raw = KafkaConfig::new([servers::kafka_sasl_ssl()])
        .with_tls(trusted())
        .with_raw("sasl.mechanism", "PLAIN")
        .with_raw("sasl.username", "cqrs")
        .with_raw("sasl.password", way("kafka-raw"))
        .with_raw("security.protocol", "sasl_ssl");
    raw.security_protocol = SecurityProtocol::Ssl;
    all.push(raw);
    let plain = || KafkaConfig::new([servers::kafka()]);
    for (option, name) in [
        ("ssl.keystore.password", "kafka-raw-keystore"),
        ("ssl.key.password", "kafka-raw-key"),
        ("ssl.key.pem", "kafka-raw-pem"),
        ("sasl.oauthbearer.client.secret", "kafka-raw-oauth"),
        ("sasl.oauthbearer.config", "kafka-raw-config"),
        ("sasl.pasword", "kafka-raw-misspelt"),
    ] {
        all.push(plain().with_tls(trusted()).with_raw(option, way(name)));
    }
    way("kafka-env");
    way("kafka-env-key");
    match KafkaConfig::from_env() {
        Ok(config) => all.push(config),
        Err(error) => show_error(&error),
    }
    let file = format!(
        "bootstrap_servers = ['{}']\nsecurity_protocol = 'SASL_SSL'\n[sasl]\nmechanism = 'PLAIN'\n\
         username = 'cqrs'\npassword = '{}'\n[tls]\nca = '{}'\nclient_key_password = '{}'\n",
        servers::kafka_sasl_ssl(),
        way("kafka-file"),
        servers::certs("ca.pem").display(),
        way("kafka-file-key"),
    );
    all.push(toml::from_str(&file).expect("settings"));
    all.extend(kafka_keys());
    all.extend(kafka_tokens());
    join_all(all.into_iter().map(kafka)).await;
}

fn kafka_keys() -> Vec<KafkaConfig> {
    let mut all = Vec::new();
    let ssl = |tls| KafkaConfig::new([servers::kafka_ssl()]).with_tls(tls);
    let certificate = servers::certs("client.pem");
    let key = encrypted_key(&way("kafka-key-password"));
    for (file, password) in [
        (&key, Some(secret("kafka-key-password"))),
        (&key, Some(way("kafka-key-wrong-password"))),
        (&key, None),
    ] {
        let text = std::fs::read_to_string(file).expect("a key");
        for key in [Pem::Path(file.clone()), Pem::Text(text)] {
            let mut tls = trusted().with_client(certificate.clone(), key);
            tls.client_key_password = password.clone().map(Into::into);
            all.push(ssl(tls));
        }
    }
    let broken =
        |name| format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", way(name));
    all.push(ssl(trusted().with_client(certificate.clone(), broken("kafka-key-text"))));
    all.push(ssl(trusted().with_client(certificate, way("kafka-key-as-path"))));
    all
}

/// A file with the test client's key, encrypted.
fn encrypted_key(password: &str) -> PathBuf {
    let name = format!("cqrs-canary-{}-{}.key", std::process::id(), password.len());
    let file = std::env::temp_dir().join(name);
    std::fs::write(&file, servers::encrypted_client_key(password)).expect("a file");
    file
}

fn kafka_tokens() -> Vec<KafkaConfig> {
    let oauth = |text: String| {
        let provider = TokenProvider::new(move || {
            let lives_until = SystemTime::now() + Duration::from_secs(60);
            Ok::<_, KafkaError>(OAuthToken::new(text.clone(), "cqrs", lives_until))
        });
        let mut config = KafkaConfig::new([servers::kafka_oauth()]);
        config.security_protocol = SecurityProtocol::SaslPlaintext;
        config.sasl.mechanism = Some(SaslMechanism::OAuthBearer);
        config.sasl.token_provider = Some(provider);
        config
    };
    // The server reads it, and refuses it.
    let claims = format!(r#"{{"sub":"{}","exp":1}}"#, way("kafka-token-claims"));
    let token = format!("eyJhbGciOiJub25lIn0.{}.", super::base64(claims.as_bytes()));
    vec![oauth(token), oauth(way("kafka-token"))]
}

async fn amqp_ways() {
    let mut all = Vec::new();
    let address = amqp::address();
    all.push(AmqpConfig::new(format!("amqp://guest:{}@{address}/%2f", way("amqp-dsn"))));
    let tls = amqp::tls_dsn().replace("guest:guest", &format!("guest:{}", way("amqp-tls-dsn")));
    let mut config = AmqpConfig::new(tls);
    config.tls.ca = Some(Pem::Path(servers::certs("ca.pem")));
    all.push(config);
    for dsn in [
        format!("http://guest:{}@{address}", way("amqp-dsn-scheme")),
        format!("guest:{}@{address}", way("amqp-dsn-bare")),
        format!("amqp://guest:{}@{address}/%2f?heartbeat=x", way("amqp-dsn-query")),
        format!("amqp://guest:{}@no-such-host.invalid", way("amqp-dsn-host")),
        format!("amqp://guest:{}@127.0.0.1:9", way("amqp-dsn-closed")),
    ] {
        all.push(AmqpConfig::new(dsn));
    }
    way("amqp-env");
    match AmqpConfig::from_env() {
        Ok(config) => all.push(config),
        Err(error) => show_error(&error),
    }
    for file in [
        format!("dsn = 'amqp://guest:{}@{address}/%2f'", way("amqp-file")),
        format!(
            "dsn = '{}'\n[tls]\nclient_key_password = '{}'",
            amqp::tls_dsn(),
            way("amqp-file-key")
        ),
    ] {
        all.push(toml::from_str(&file).expect("settings"));
    }
    for tls in rustls_keys("amqp") {
        let mut config = AmqpConfig::new(amqp::tls_dsn());
        config.tls = tls;
        all.push(config);
    }
    join_all(all.into_iter().map(amqp_client)).await;
}

/// Client keys for a client on rustls.
fn rustls_keys(client: &str) -> Vec<TlsConfig> {
    let way = |name: &str| way(&format!("{client}-{name}"));
    let password = way("key-password");
    let encrypted = encrypted_key(&password);
    let text = std::fs::read_to_string(&encrypted).expect("a key");
    let broken =
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", way("key-text"));
    let keys: [(Pem, Option<String>); 6] = [
        (broken.into(), None),
        (way("key-as-path").into(), None),
        (Pem::Path(encrypted.clone()), None),
        (Pem::Text(text.clone()), None),
        (Pem::Text(text), Some(way("key-wrong-password"))),
        (Pem::Path(encrypted), Some(password)),
    ];
    let tls = |(key, password): (Pem, Option<String>)| {
        let mut tls = trusted().with_client(servers::certs("client.pem"), key);
        tls.client_key_password = password.map(Into::into);
        tls
    };
    keys.into_iter().map(tls).collect()
}

async fn amqp_client(mut config: AmqpConfig) {
    config.publish_timeout = Duration::from_secs(3);
    show(&config);
    println!("{}", config.dsn);
    match AmqpMessageBroker::connect(config.clone()).await {
        Ok(broker) => show(&broker),
        Err(error) => show_error(&error),
    }
    if let Ok(broker) = AmqpMessageBroker::new(config)
        && let Err(error) = broker.publish(Message::new("canary", "{}")).await
    {
        show_error(&error);
        show(&broker);
    }
}

/// A registry that answers each request with what it was sent: 401, as JSON.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(mut writer) = stream.try_clone() else { continue };
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let body =
                serde_json::json!({"error_code": 40101, "message": head.join("; ")}).to_string();
            let answer = format!(
                "HTTP/1.1 401 No\r\ncontent-type: application/json\r\nwww-authenticate: Basic\r\n\
                 connection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _the_client_reports_it = writer.write_all(answer.as_bytes());
        }
    });
    address.to_string()
}

async fn registry_ways() {
    let address = echo();
    let at = |credentials| {
        let mut config = RegistryConfig::new([format!("http://{address}")]);
        config.credentials = Some(credentials);
        config
    };
    registry(at(Credentials::basic("user", way("registry-basic")))).await;
    registry(at(Credentials::basic(way("registry-user"), ""))).await;
    registry(at(Credentials::bearer(way("registry-bearer")))).await;
    registry(RegistryConfig::new([format!("http://user:{}@{address}", way("registry-url"))])).await;
    for tls in rustls_keys("registry") {
        let mut config = RegistryConfig::new([format!("https://{address}")]);
        config.tls = tls;
        registry(config).await;
    }
    let mixed = format!("https://user:{}@{address}", way("registry-mixed"));
    registry(RegistryConfig::new([mixed, format!("http://{address}")])).await;
    registry(at(Credentials::bearer(format!("{} ", way("registry-bearer-space"))))).await;
    registry(RegistryConfig::new([format!("user:{}@{address}", way("registry-url-bare"))])).await;
    way("registry-env");
    let mut config = RegistryConfig::from_env().expect("settings");
    config.urls = vec![format!("http://{address}")];
    registry(config).await;
    registry(at(Credentials::bearer(way("registry-env-token")))).await;
    #[derive(Deserialize)]
    struct File {
        registry: RegistryConfig,
    }
    let file = format!(
        "[registry]\nurls = ['http://{address}']\n[registry.credentials.basic]\nuser = 'u'\npassword = '{}'",
        way("registry-file")
    );
    registry(toml::from_str::<File>(&file).expect("settings").registry).await;
}

async fn registry(mut config: RegistryConfig) {
    config.reconnect.initial = Duration::from_millis(1);
    config.timeout = Duration::from_secs(3);
    show(&config);
    let registry = match SchemaRegistry::new(config) {
        Ok(registry) => registry,
        Err(error) => return show_error(&error),
    };
    show(&registry);
    if let Err(error) = registry.register("s", &Schema::json("{}")).await {
        show_error(&error);
    }
    let framed = [Frame::new(1).to_bytes(), b"{}".to_vec()].concat();
    let decoder = RegistryDecoder::json(&registry);
    show(&decoder);
    if let Err(error) = decoder.decode(cqrs_core::consume::Incoming::new("t", framed)).await {
        show(&error);
    }
}
