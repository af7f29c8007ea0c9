//! The requests of the registry's client and its understanding of the answers.

use cqrs_schema_registry::{
    Credentials, RegistryErrorKind, Schema, SchemaRegistry, SchemaType, SchemaVersion,
};
use futures_util::future::join_all;
use std::time::Duration;

use crate::server::{Server, guid_of};

fn schema() -> Schema {
    Schema::protobuf("message A {}").with_reference("b.proto", "b-value", 2)
}

#[tokio::test]
async fn every_endpoint_is_asked_and_understood() {
    let server = Server::start().await;
    let registry = server.client();
    let registered = registry.register("a-value", &schema()).await.unwrap();
    assert_eq!((registered.id, registered.version, registered.guid), (1, None, None));
    assert_eq!(registered.schema, schema());

    let found = registry.lookup("a-value", &schema()).await.unwrap();
    assert_eq!((found.id, found.version, found.guid), (1, Some(1), Some(guid_of(1))));
    assert_eq!(*registry.schema(1).await.unwrap(), schema());
    assert_eq!(*registry.schema(guid_of(1)).await.unwrap(), schema());
    assert_eq!(registry.version("a-value", SchemaVersion::Latest).await.unwrap(), found);
    assert_eq!(registry.version("a-value", 1).await.unwrap(), found);
    assert_eq!(registry.subjects().await.unwrap(), ["a-value"]);
    assert!(registry.check_compatibility("a-value", &schema()).await.unwrap().is_compatible);
    let other = Schema::json("\"incompatible\"");
    let compatibility = registry.check_compatibility("a-value", &other).await.unwrap();
    assert!(!compatibility.is_compatible);
    assert_eq!(compatibility.reasons, ["it lacks a field"]);
}

#[tokio::test]
async fn schema_registered_meanwhile_is_found() {
    let server = Server::start().await;
    let registry = server.client();
    let first = registry.register("a-value", &schema()).await.unwrap();
    // As Apicurio answers the second of two at once.
    let refused = r#"{"error_code":409,"message":"An artifact with ID 'a-value' already exists."}"#;
    server.fail([crate::server::Fault::Answer(409, refused)]);
    let second = registry.register("a-value", &schema()).await.unwrap();
    assert_eq!(second.id, first.id);
    let other = Schema::json("\"incompatible\"");
    let error = registry.register("a-value", &other).await.unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Incompatible, "{error}");
}

#[tokio::test]
async fn answers_may_omit_fields() {
    let server = Server::start().await;
    server.state().plain = true;
    let registry = server.client();
    registry.register("a-value", &schema()).await.unwrap();
    let found = registry.lookup("a-value", &schema()).await.unwrap();
    assert_eq!(found.schema.schema_type, SchemaType::Protobuf, "it was sent");
    assert_eq!(found.guid, None);

    let bare = r#"{"schema":"\"string\"","id":9}"#;
    server.fail([crate::server::Fault::Answer(200, bare)]);
    let avro = registry.schema(9).await.unwrap();
    assert_eq!(avro.schema_type, SchemaType::Avro, "so the API says");
    let strange = r#"{"schema":"x","schemaType":"OPENAPI"}"#;
    server.fail([crate::server::Fault::Answer(200, strange)]);
    assert_eq!(registry.schema(10).await.unwrap().schema_type, SchemaType::Other);
}

#[tokio::test]
async fn names_of_subjects_cannot_reach_another_endpoint() {
    let server = Server::start().await;
    let registry = server.client();
    registry.register("a/versions?x #ü", &schema()).await.unwrap();
    let asked = server.state().asked.clone();
    assert_eq!(asked, ["POST /base/subjects/a%2Fversions%3Fx%20%23%C3%BC/versions"]);
    for subject in ["", ".", ".."] {
        let error = registry.version(subject, 1).await.unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Config);
    }
    assert_eq!(server.state().asked.len(), 1);
}

#[tokio::test]
async fn the_normal_form_is_asked_for_when_it_is_wanted() {
    let server = Server::start().await;
    let mut config = server.config();
    config.normalize = true;
    let registry = SchemaRegistry::new(config).unwrap();
    registry.register("a", &schema()).await.unwrap();
    registry.lookup("a", &schema()).await.unwrap();
    let asked = server.state().asked.clone();
    assert_eq!(
        asked,
        ["POST /base/subjects/a/versions?normalize=true", "POST /base/subjects/a?normalize=true"]
    );
}

#[tokio::test]
async fn credentials_are_sent_and_never_shown() {
    let server = Server::start().await;
    for (credentials, expected) in [
        (Credentials::basic("me", "hush"), "Basic bWU6aHVzaA=="),
        (Credentials::bearer("hush"), "Bearer hush"),
    ] {
        let mut config = server.config();
        config.credentials = Some(credentials);
        let registry = SchemaRegistry::new(config).unwrap();
        server.fail([crate::server::Fault::Answer(401, r#"{"error_code":40101}"#)]);
        let error = registry.subjects().await.unwrap_err();
        assert_eq!(server.state().authorization.last().unwrap().as_deref(), Some(expected));
        assert_eq!(error.kind(), RegistryErrorKind::Authentication);
        let shown = format!("{error} {error:?} {registry:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }
    let mut config = server.config();
    config.urls[0] = config.urls[0].replace("http://", "http://me:hush@");
    let registry = SchemaRegistry::new(config).unwrap();
    registry.subjects().await.unwrap();
    let last = server.state().authorization.last().unwrap().clone();
    assert_eq!(last.as_deref(), Some("Basic bWU6aHVzaA=="));
    assert!(!format!("{registry:?}").contains("hush"));
}

#[tokio::test]
async fn concurrent_lookups_share_one_request() {
    let server = Server::start().await;
    let registry = server.client();
    registry.register("a-value", &schema()).await.unwrap();
    server.state().asked.clear();
    server.state().delay = Duration::from_millis(100);
    let all = join_all((0..50).map(|_| registry.schema(1))).await;
    assert!(all.into_iter().all(|found| *found.unwrap() == schema()));
    registry.clone().schema(1).await.unwrap();
    assert_eq!(server.state().asked, ["GET /base/schemas/ids/1"]);
}

#[tokio::test]
async fn missing_schema_is_looked_up_again() {
    let server = Server::start().await;
    let registry = server.client();
    let error = registry.schema(1).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (RegistryErrorKind::NotFound, Some(40403)));
    registry.register("a-value", &schema()).await.unwrap();
    assert_eq!(*registry.schema(1).await.unwrap(), schema());
}
