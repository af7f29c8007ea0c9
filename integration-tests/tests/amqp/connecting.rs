//! Tests of the RabbitMQ producer's connection: TLS, conflicts, failures and its end.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_amqp::{
    AmqpConfig, AmqpMessageBroker, BindingConfig, ErrorKind, ExchangeKind, Pem, QueueConfig,
};
use cqrs_core::broker::BrokerState;
use cqrs_core::{Message, MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind};
use cqrs_testkit::FaultProxy;
use integration_tests::amqp::{self, Raw, config, fresh};
use integration_tests::consuming::fixture::until;
use integration_tests::{log, servers};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use cqrs_testkit::error_chain;

#[tokio::test(flavor = "multi_thread")]
async fn a_redeclare_conflict_is_named() {
    let exchange = fresh("conflict");
    let raw = Raw::connect().await;
    raw.exchange(&exchange).await;
    let mut config = config(&exchange);
    config.exchange.kind = ExchangeKind::Fanout;
    let error = AmqpMessageBroker::connect(config.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Topology, Some(406)));
    let words = error_chain(&error);
    assert!(words.contains(&exchange) && words.contains("other properties"), "{words}");
    // Publishing meanwhile names the cause; once the conflict is gone it works by itself.
    config.publish_timeout = Duration::from_secs(10);
    let broker = AmqpMessageBroker::new(config).unwrap();
    until("the conflict to be seen", async || match broker.state() {
        BrokerState::Connecting { last_error: Some(error) } => error.contains("406"),
        _ => false,
    })
    .await;
    let error = broker.publish(Message::new("t", "1")).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::NotSent);
    assert!(error_chain(&error).contains("406"), "{}", error_chain(&error));
    raw.channel.exchange_delete((&*exchange).into(), Default::default()).await.unwrap();
    until("the broker to be ready", async || broker.state().is_ready()).await;
    raw.clean(&[], &[&exchange]).await;
}

/// Publishes where it cannot work, once it is known why: the error must come with the deadline.
async fn failure(mut config: AmqpConfig) -> PublishError {
    // Half of it is what an attempt to connect may take.
    config.publish_timeout = Duration::from_secs(10);
    let deadline = config.publish_timeout;
    let broker = AmqpMessageBroker::new(config).unwrap();
    let has_failed = || matches!(broker.state(), BrokerState::Connecting { last_error: Some(_) });
    until("a failure", async || has_failed()).await;
    let started = Instant::now();
    let error = broker.publish(Message::new("t", "{}")).await.unwrap_err();
    let took = started.elapsed();
    assert!(took < deadline + Duration::from_secs(30), "{took:?}");
    assert!(has_failed(), "{:?}", broker.state());
    println!("SUMMARY amqp failure: {:?} in {took:.1?}: {}", error.kind(), error_chain(&error));
    error
}

fn kind_of_cause(error: &PublishError) -> ErrorKind {
    let source = error.source().and_then(|source| source.downcast_ref::<cqrs_amqp::AmqpError>());
    source.expect("an AmqpError as source").kind()
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_failure_names_cause_without_credentials() {
    log::capture();
    let address = amqp::address();
    let at = |dsn: String| amqp::config_at(dsn, "");
    let wrong = at(format!("amqp://guest:s3cret-pass@{address}/%2f"));
    let no_vhost = at(format!("amqp://guest:guest@{address}/no-such-vhost"));
    // It accepts the connection and sends nothing.
    let proxy = FaultProxy::start("127.0.0.1:0", &*address).await.unwrap();
    proxy.blackhole(true);
    let silent = at(format!("amqp://guest:s3cret-pass@{}", proxy.address()));
    let gone = FaultProxy::start("127.0.0.1:0", &*address).await.unwrap();
    let refused = at(format!("amqp://guest:s3cret-pass@{}", gone.address()));
    drop(gone);
    let nowhere = at("amqp://guest:s3cret-pass@no-such-host.invalid".into());
    let mut other_ca = at(amqp::tls_dsn());
    other_ca.tls.ca = Some(Pem::Path(servers::certs("other-ca.pem")));
    let mut shown = String::new();

    // All wait for their deadlines.
    let (of_wrong, no_vhost, refused, nowhere, silent, other_ca) = tokio::join!(
        failure(wrong.clone()),
        failure(no_vhost),
        failure(refused),
        failure(nowhere),
        failure(silent),
        failure(other_ca)
    );
    assert_eq!(kind_of_cause(&of_wrong), ErrorKind::Authentication);
    shown += &format!("{of_wrong} {of_wrong:?} {}", error_chain(&of_wrong));
    let error = AmqpMessageBroker::connect(wrong.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Authentication, Some(403)));
    assert!(error.to_string().contains("check user and password in the dsn"), "{error}");
    shown += &format!("{error} {error:?} {wrong:?}");

    assert_eq!(kind_of_cause(&no_vhost), ErrorKind::VirtualHost);
    assert!(error_chain(&no_vhost).contains("rabbitmqctl set_permissions"), "{no_vhost:?}");
    assert!(error_chain(&no_vhost).contains("no-such-vhost"), "{}", error_chain(&no_vhost));

    assert_eq!(kind_of_cause(&refused), ErrorKind::Connection);
    assert!(error_chain(&refused).contains("refused"), "{}", error_chain(&refused));
    shown += &format!("{refused:?}");

    assert_eq!(kind_of_cause(&nowhere), ErrorKind::Connection);

    assert_eq!(kind_of_cause(&silent), ErrorKind::Connection);
    assert!(error_chain(&silent).contains("no answer"), "{}", error_chain(&silent));

    assert_eq!(kind_of_cause(&other_ca), ErrorKind::Tls);
    assert!(error_chain(&other_ca).contains("UnknownIssuer"), "{}", error_chain(&other_ca));

    let logged: String = log::captured()
        .lines()
        // lapin at trace shows the frames of the login, as the docs of the crate say.
        .filter(|line| !line.contains("TRACE"))
        .collect();
    assert!(logged.contains("cqrs_amqp"), "nothing was captured");
    assert!(!shown.contains("s3cret") && !logged.contains("s3cret"), "a password is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_and_without_a_client_certificate() {
    let exchange = fresh("tls");
    let mut config = config(&exchange);
    config.dsn = amqp::tls_dsn().into();
    config.tls.ca = Some(Pem::Path(servers::certs("ca.pem")));
    let broker = AmqpMessageBroker::connect(config.clone()).await.unwrap();
    broker.publish(Message::new("t", "1").with_mandatory(false)).await.unwrap();
    let text = |file: &str| Pem::Text(std::fs::read_to_string(servers::certs(file)).unwrap());
    config.tls.ca = Some(text("ca.pem"));
    config.tls.client_certificate = Some(text("client.pem"));
    config.tls.client_key = Some(Pem::Path(servers::certs("client.key")));
    let broker = AmqpMessageBroker::connect(config.clone()).await.unwrap();
    broker.publish(Message::new("t", "2").with_mandatory(false)).await.unwrap();
    config.tls.client_key = Some(Pem::Text(servers::encrypted_client_key("hush")));
    config.tls.client_key_password = Some("hush".into());
    let broker = AmqpMessageBroker::connect(config).await.unwrap();
    let big = vec![7; 1 << 20];
    broker.publish(Message::new("t", big).with_mandatory(false)).await.unwrap();
    assert_eq!(broker.shutdown(Duration::from_secs(5)).await.undelivered, 0);
    Raw::connect().await.clean(&[], &[&exchange]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_value_works_once_the_server_is_up() {
    let (exchange, queue) = (fresh("late"), fresh("late"));
    let proxy = FaultProxy::start("127.0.0.1:0", amqp::address()).await.unwrap();
    proxy.refuse(true);
    let mut config = config(&exchange);
    config.dsn = format!("amqp://guest:guest@{}", proxy.address()).into();
    config.queues.push(QueueConfig::new(&*queue));
    config.bindings.push(BindingConfig::new(&*queue, "t"));
    let broker = AmqpMessageBroker::new(config).unwrap();
    let receipt = broker.enqueue(Message::new("t", "1")).await.unwrap();
    until("a failure", async || {
        matches!(broker.state(), BrokerState::Connecting { last_error: Some(_) })
    })
    .await;
    proxy.refuse(false);
    receipt.await.unwrap();
    assert_eq!(broker.state(), BrokerState::Ready);
    Raw::connect().await.clean(&[&queue], &[&exchange]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_broker_value_leaves_no_connection() {
    let exchange = fresh("dropped");
    let proxy = FaultProxy::start("127.0.0.1:0", amqp::address()).await.unwrap();
    let mut config = config(&exchange);
    config.dsn = format!("amqp://guest:guest@{}", proxy.address()).into();
    config.pool_size = 2;
    let broker = AmqpMessageBroker::connect(config).await.unwrap();
    assert_eq!(proxy.open(), 2);
    let receipt = broker.enqueue(Message::new("t", "1").with_mandatory(false)).await.unwrap();
    drop(broker);
    let _either = receipt.await;
    until("the connections to close", async || proxy.open() == 0).await;
    Raw::connect().await.clean(&[], &[&exchange]).await;
}

/// `connect` to `dsn`, trusting the tests' authority; its error, and how long that took.
async fn refused(dsn: String, limit: Duration) -> (cqrs_amqp::AmqpError, Duration) {
    let mut config = AmqpConfig::new(dsn);
    config.connect_timeout = limit;
    if config.dsn.to_string().starts_with("amqps") {
        config.tls.ca = Some(Pem::Path(servers::certs("ca.pem")));
    }
    let started = Instant::now();
    let error = AmqpMessageBroker::connect(config).await.unwrap_err();
    println!("SUMMARY amqp connect {:?}: {}", error.kind(), error_chain(&error));
    (error, started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_names_wrong_protocol_at_once() {
    let tls_port = amqp::tls_dsn().replace("amqps://", "amqp://");
    let plain_port = amqp::dsn().replace("amqp://", "amqps://");
    for (dsn, words) in [(tls_port, "use amqps://"), (plain_port, "use amqp://")] {
        let (error, took) = refused(dsn, Duration::from_secs(30)).await;
        let text = error_chain(&error);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{text}");
        assert!(text.contains(words), "{text}");
        assert!(took < Duration::from_secs(15), "no wait: {took:?}");
    }
}

/// Opens TLS 1.3 connections for clients with a certificate of the tests' authority.
async fn server_for_certified_clients() -> u16 {
    let certificates = |file| CertificateDer::pem_file_iter(servers::certs(file)).unwrap();
    let mut clients = RootCertStore::empty();
    clients.add_parsable_certificates(certificates("ca.pem").map(Result::unwrap));
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(clients), Arc::clone(&provider));
    let tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            certificates("server.pem").map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_file(servers::certs("server.key")).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _refused = acceptor.accept(socket).await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_client_certificate_is_named_at_once() {
    let port = server_for_certified_clients().await;
    let dsn = format!("amqps://guest:guest@localhost:{port}/%2f");
    let (error, took) = refused(dsn, Duration::from_secs(30)).await;
    let text = error_chain(&error);
    assert_eq!(error.kind(), ErrorKind::Tls, "{text}");
    assert!(text.contains("CertificateRequired") && !text.contains("without TLS"), "{text}");
    assert!(took < Duration::from_secs(15), "no wait: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_to_kafkas_port_names_the_port() {
    for scheme in ["amqp", "amqps"] {
        let dsn = format!("{scheme}://guest:guest@{}/%2f", servers::kafka());
        let (error, _) = refused(dsn, Duration::from_secs(2)).await;
        let text = error_chain(&error);
        assert_eq!(error.kind(), ErrorKind::Connection, "{text}");
        assert!(text.contains("within 2s") && text.contains("is this RabbitMQ's"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_waits_for_a_server_that_comes_up() {
    let exchange = fresh("waits");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = config(&exchange);
    config.dsn = format!("amqp://guest:guest@{address}").into();
    let connecting = tokio::spawn(AmqpMessageBroker::connect(config));
    // The first attempt fails.
    drop(listener.accept().await.unwrap());
    drop(listener);
    let _proxy = FaultProxy::start(address, amqp::address()).await.unwrap();
    let broker = connecting.await.unwrap().unwrap();
    assert!(broker.state().is_ready());
    Raw::connect().await.clean(&[], &[&exchange]).await;
}
