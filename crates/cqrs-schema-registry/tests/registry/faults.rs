//! The registry's client while the registry fails, refuses or answers nonsense.

use std::error::Error;
use std::time::{Duration, Instant};

use cqrs_schema_registry::{
    Credentials, RegistryConfig, RegistryError, RegistryErrorKind, Schema, SchemaRegistry,
};
use tokio::net::TcpListener;

use crate::server::{Fault, Server};

fn words(error: &RegistryError) -> String {
    format!("{error} / {:?}", error.source().map(ToString::to_string))
}

#[tokio::test]
async fn a_refusal_says_what_where_and_what_to_do() {
    let server = Server::start().await;
    let registry = server.client();
    let a = Schema::json("{}");
    registry.register("a-value", &a).await.unwrap();
    let refused = registry.register("a-value", &Schema::json("incompatible")).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (RegistryErrorKind::Incompatible, Some(409)));
    assert_eq!(format!("{refused:?}"), refused.to_string());
    assert_eq!(
        refused.to_string(),
        format!(
            "registering a schema under the subject \"a-value\" at {}: the schema is not compatible \
             with the earlier ones of its subject; change it so that it is, or change the subject's \
             compatibility level (it answered 409, \"it lacks a field\")",
            server.url
        )
    );
    let invalid = registry.register("a-value", &Schema::json("invalid")).await.unwrap_err();
    assert_eq!((invalid.kind(), invalid.code()), (RegistryErrorKind::InvalidSchema, Some(42201)));
    for (error, code) in [
        (registry.lookup("b-value", &a).await.unwrap_err(), 40401),
        (registry.version("a-value", 2).await.unwrap_err(), 40402),
        (registry.lookup("a-value", &Schema::json("[]")).await.unwrap_err(), 40403),
    ] {
        assert_eq!((error.kind(), error.code()), (RegistryErrorKind::NotFound, Some(code)));
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn foreign_answer_is_no_missing_schema() {
    let server = Server::start().await;
    let registry = server.client();
    for (status, text) in [
        (404, "<html>not here</html>"),
        (404, r#"{"error_code":0,"message":"no resource"}"#),
        (302, ""),
        (418, "{}"),
        (200, "<html>sign in</html>"),
        (200, "{}"),
    ] {
        server.fail([Fault::Answer(status, text)]);
        let asked = server.state().asked.len();
        let error = registry.schema(1).await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Other, "{status} {text}: {error}");
        assert!(!error.is_retryable());
        assert_eq!(server.state().asked.len(), asked + 1, "it is not asked again: {error}");
    }
    for (status, kind) in
        [(401, RegistryErrorKind::Authentication), (403, RegistryErrorKind::Authorization)]
    {
        server.fail([Fault::Answer(status, "")]);
        let error = registry.schema(1).await.unwrap_err();
        assert_eq!(error.kind(), kind);
    }
}

#[tokio::test]
async fn an_echo_of_the_credentials_is_redacted() {
    let server = Server::start().await;
    for (credentials, secrets) in [
        // The second is Base64 of `user:hush-hush`.
        (Credentials::basic("user", "hush-hush"), ["hush-hush", "dXNlcjpodXNoLWh1c2g="]),
        (Credentials::bearer("tok-en-1"), ["tok-en-1", "tok-en-1"]),
    ] {
        let mut config = server.config();
        config.credentials = Some(credentials);
        let registry = SchemaRegistry::new(config).unwrap();
        // Refused at once, and after all attempts.
        for (status, times) in [(401, 1), (409, 2), (422, 1), (500, 3)] {
            server.fail(vec![Fault::Echo(status); times]);
            let schema = Schema::json("incompatible");
            let error = registry.register("a-value", &schema).await.unwrap_err();
            let text = format!("{error:?} {}", words(&error));
            assert!(text.contains("who is"), "the registry's words: {text}");
            for secret in secrets {
                assert!(!text.contains(secret), "{text}");
            }
            server.state().faults.clear();
        }
    }
    let mut config = server.config();
    config.urls = vec![server.url.replace("http://", "http://u:p%40ss-word@")];
    let registry = SchemaRegistry::new(config).unwrap();
    let message = r#"{"error_code":40301,"message":"http://u:p%40ss-word@h p@ss-word"}"#;
    server.fail([Fault::Answer(403, message)]);
    let error = registry.subjects().await.unwrap_err().to_string();
    assert!(error.contains("***") && !error.contains("ss-word"), "{error}");
}

#[tokio::test]
async fn transient_failure_is_retried() {
    let server = Server::start().await;
    let (registry, hurried) = (server.client(), server.hurried_client());
    registry.register("a-value", &Schema::json("{}")).await.unwrap();
    for (registry, faults) in [
        (&registry, vec![Fault::Answer(500, ""), Fault::Answer(429, "")]),
        (&registry, vec![Fault::Close, Fault::Cut]),
        (&hurried, vec![Fault::Hang]),
    ] {
        let asked = server.state().asked.len();
        let times = faults.len();
        server.fail(faults.clone());
        registry.version("a-value", 1).await.unwrap_or_else(|error| panic!("{faults:?}: {error}"));
        // hyper itself sends a request again when a kept connection was closed under it.
        assert!(server.state().asked.len() > asked + times, "{faults:?}");
    }
}

#[tokio::test]
async fn absent_registry_is_unreachable_in_bounded_time() {
    let server = Server::start().await;
    let registry = server.client();
    server.fail(vec![Fault::Answer(503, r#"{"error_code":50003,"message":"no leader"}"#); 3]);
    let error = registry.subjects().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (RegistryErrorKind::Connection, Some(50003)));
    assert!(error.is_retryable());
    assert!(error.to_string().contains("503, error code 50003, \"no leader\""), "{error}");

    server.fail(vec![Fault::Hang; 3]);
    let started = Instant::now();
    let error = server.hurried_client().subjects().await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Connection);
    assert!(error.to_string().contains("no answer in time"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut config = server.config();
    config.urls = vec![format!("http://{closed}")];
    let error = SchemaRegistry::new(config).unwrap().subjects().await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Connection);
    assert!(words(&error).contains(&closed.to_string()), "{}", words(&error));
    assert!(words(&error).contains("no connection"), "{}", words(&error));
}

#[tokio::test]
async fn next_url_takes_over_and_is_kept() {
    let (first, second) = (Server::start().await, Server::start().await);
    let mut config = first.config();
    config.urls.push(second.url.clone());
    config.attempts = 1;
    let registry = SchemaRegistry::new(config).unwrap();
    first.fail([Fault::Answer(500, "")]);
    registry.subjects().await.unwrap();
    registry.subjects().await.unwrap();
    assert_eq!((first.state().asked.len(), second.state().asked.len()), (1, 2));
    second.fail([Fault::Answer(500, "")]);
    registry.subjects().await.unwrap();
    assert_eq!(first.state().asked.len(), 2, "and back again");
}

#[tokio::test]
async fn a_tls_client_needs_no_provider_of_the_process() {
    let server = Server::start().await;
    let mut config: RegistryConfig = server.config();
    config.urls = vec![server.url.replace("http://", "https://")];
    config.attempts = 1;
    match SchemaRegistry::new(config) {
        Ok(registry) => {
            let error = registry.subjects().await.unwrap_err();
            assert_eq!(error.kind(), RegistryErrorKind::Connection, "{error}");
        }
        // A machine without certificate authorities.
        Err(error) => assert!(error.to_string().contains("tls.ca"), "{error}"),
    }
}
