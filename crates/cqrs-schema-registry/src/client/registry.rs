//! [`SchemaRegistry`]: the client of a schema registry.

use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;
use reqwest::Method;

use super::api::{CompatibilityResponse, SchemaRequest, SchemaResponse};
use super::cache::Cache;
use super::http::{Http, Request};
use super::{
    Compatibility, RegisteredSchema, RegistryConfig, RegistryError, RegistryErrorKind, Schema,
    SchemaVersion,
};
use crate::SchemaId;

/// A client of one schema registry: Confluent's API, which Apicurio, Redpanda and Karapace speak too.
///
/// Cheap to clone; clones share connections and the cache.
///
/// ```no_run
/// use cqrs_schema_registry::{RegistryConfig, Schema, SchemaRegistry};
///
/// # async fn f() -> Result<(), cqrs_schema_registry::RegistryError> {
/// let registry = SchemaRegistry::new(RegistryConfig::new(["http://localhost:8081"]))?;
/// let schema = Schema::json(r#"{"type":"object"}"#);
/// let registered = registry.lookup("user_events-value", &schema).await?;
/// assert_eq!(*registry.schema(registered.id).await?, schema);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Every method fails as [`RegistryErrorKind`](super::RegistryErrorKind) says. 5xx, 429, broken
/// connections and timeouts are retried at every URL, as often as the settings say; then the error is
/// [`Connection`](super::RegistryErrorKind::Connection).
///
/// # Cancel safety
/// A dropped look-up changes nothing. A dropped [`register`](Self::register) may have registered.
#[derive(Clone)]
pub struct SchemaRegistry(Arc<Inner>);

struct Inner {
    http: Arc<Http>,
    schemas: Cache<SchemaId, Arc<Schema>>,
    /// The subjects of schemas.
    places: Cache<(SchemaId, Arc<str>), ()>,
    normalize: bool,
    config: RegistryConfig,
}

impl SchemaRegistry {
    /// A client with these settings. Sends nothing yet.
    ///
    /// # Errors
    /// [`Config`](super::RegistryErrorKind::Config): a malformed URL, or TLS files that cannot be read.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        Ok(Self(Arc::new(Inner {
            http: Arc::new(Http::new(&config)?),
            schemas: Cache::new(config.cache_capacity, config.unknown_schema_ttl),
            places: Cache::new(config.cache_capacity, config.unknown_schema_ttl),
            normalize: config.normalize,
            config,
        })))
    }

    /// The schema with this id. It is requested once and kept; concurrent calls share one request and its
    /// result.
    ///
    /// # Errors
    /// [`NotFound`](super::RegistryErrorKind::NotFound) when the registry does not know it, and
    /// [`Unsupported`](super::RegistryErrorKind::Unsupported) when it knows no GUIDs; both are kept for
    /// [`unknown_schema_ttl`](RegistryConfig::unknown_schema_ttl). Else as all methods.
    pub async fn schema(&self, id: impl Into<SchemaId>) -> Result<Arc<Schema>, RegistryError> {
        let id = id.into();
        let http = Arc::clone(&self.0.http);
        let load = || async move { fetch(&http, id).await.map(Arc::new) }.boxed();
        self.0.schemas.get(id, load).await
    }

    /// The registration of `schema` under `subject`.
    ///
    /// # Errors
    /// [`NotFound`](super::RegistryErrorKind::NotFound) when the subject does not exist or does not
    /// hold it, else as all methods.
    pub async fn lookup(
        &self,
        subject: &str,
        schema: &Schema,
    ) -> Result<RegisteredSchema, RegistryError> {
        let doing = format!("looking up a schema under the subject {subject:?}");
        self.post_schema(doing, &["subjects", subject], subject, schema).await
    }

    /// Registers `schema` under `subject`, as its next version; a registered one keeps its version and id.
    /// This holds for concurrent registrations and for a retry after a late answer too: Apicurio refuses
    /// the second one, which is looked up then.
    ///
    /// # Errors
    /// [`Incompatible`](super::RegistryErrorKind::Incompatible),
    /// [`InvalidSchema`](super::RegistryErrorKind::InvalidSchema), else as all methods.
    pub async fn register(
        &self,
        subject: &str,
        schema: &Schema,
    ) -> Result<RegisteredSchema, RegistryError> {
        let doing = format!("registering a schema under the subject {subject:?}");
        match self.post_schema(doing, &["subjects", subject, "versions"], subject, schema).await {
            Err(refused) if refused.kind() == RegistryErrorKind::Incompatible => {
                self.lookup(subject, schema).await.map_err(|_| refused)
            }
            registered => {
                // An unknown id may be that of the registered schema.
                self.0.schemas.forget_unknown();
                self.0.places.forget_unknown();
                registered
            }
        }
    }

    /// Sends `schema` to `path`, and returns its registration.
    async fn post_schema(
        &self,
        doing: String,
        path: &[&str],
        subject: &str,
        schema: &Schema,
    ) -> Result<RegisteredSchema, RegistryError> {
        check(subject)?;
        let query: &[_] = match self.0.normalize {
            true => &[("normalize", "true")],
            false => &[],
        };
        let body = Some(body(schema)?);
        let request = Request { doing: doing.clone(), method: Method::POST, path, query, body };
        let response: SchemaResponse = self.0.http.call(request).await?;
        response.into_registration_of(subject, schema).ok_or_else(|| without(&doing, "an id"))
    }

    /// A version of `subject`; [`SchemaVersion::Latest`] is its newest.
    ///
    /// # Errors
    /// [`NotFound`](super::RegistryErrorKind::NotFound) when there is no such subject or version, else
    /// as all methods.
    pub async fn version(
        &self,
        subject: &str,
        version: impl Into<SchemaVersion>,
    ) -> Result<RegisteredSchema, RegistryError> {
        check(subject)?;
        let version = version.into().to_string();
        let doing = format!("looking up the version {version} of the subject {subject:?}");
        let path = ["subjects", subject, "versions", &version];
        let response: SchemaResponse = self.0.http.call(get(doing.clone(), &path)).await?;
        response.into_registered(subject).ok_or_else(|| without(&doing, "an id and a schema"))
    }

    /// Checks if `schema` may become the next version of `subject`.
    ///
    /// # Errors
    /// [`NotFound`](super::RegistryErrorKind::NotFound) when the subject has no version yet,
    /// [`InvalidSchema`](super::RegistryErrorKind::InvalidSchema), else as all methods.
    pub async fn check_compatibility(
        &self,
        subject: &str,
        schema: &Schema,
    ) -> Result<Compatibility, RegistryError> {
        check(subject)?;
        let request = Request {
            doing: format!("comparing a schema with the latest of the subject {subject:?}"),
            method: Method::POST,
            path: &["compatibility", "subjects", subject, "versions", "latest"],
            query: &[("verbose", "true")],
            body: Some(body(schema)?),
        };
        let mut answer: Compatibility =
            self.0.http.call::<CompatibilityResponse>(request).await?.into();
        for reason in &mut answer.reasons {
            *reason = self.0.http.redact(reason);
        }
        Ok(answer)
    }

    /// The subjects.
    ///
    /// # Errors
    /// As all methods.
    pub async fn subjects(&self) -> Result<Vec<String>, RegistryError> {
        self.0.http.call(get("listing the subjects".into(), &["subjects"])).await
    }

    /// Set if the schema `id` is registered under `subject`. A positive answer is kept.
    pub(crate) async fn is_under(
        &self,
        id: SchemaId,
        schema: &Arc<Schema>,
        subject: &Arc<str>,
    ) -> Result<bool, RegistryError> {
        let load = || {
            let (registry, schema) = (self.clone(), Arc::clone(schema));
            let subject = Arc::clone(subject);
            async move { registry.lookup(&subject, &schema).await.map(drop) }.boxed()
        };
        match self.0.places.get((id, Arc::clone(subject)), load).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == RegistryErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for SchemaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SchemaRegistry").field(&self.0.config).finish()
    }
}

async fn fetch(http: &Http, id: SchemaId) -> Result<Schema, RegistryError> {
    let (kind, text) = match id {
        SchemaId::Number(id) => ("ids", id.to_string()),
        SchemaId::Guid(guid) => ("guids", guid.to_string()),
    };
    let doing = format!("looking up the schema {text}");
    let came = http.call::<SchemaResponse>(get(doing.clone(), &["schemas", kind, &text])).await;
    let came = match came {
        Err(error) if matches!(id, SchemaId::Guid(_)) && is_no_endpoint(&error) => {
            return Err(without_guids(http, &doing, error).await);
        }
        came => came?,
    };
    came.schema().ok_or_else(|| without(&doing, "a schema"))
}

/// Set if the registry answered that it does not have the path.
fn is_no_endpoint(error: &RegistryError) -> bool {
    // A registry's own code, such as 40401, begins with the HTTP status.
    let status = error.code().map(|code| if code > 999 { code / 100 } else { code });
    error.kind() == RegistryErrorKind::Other && matches!(status, Some(400 | 404 | 405 | 501))
}

/// A registry without GUIDs answers as a wrong base URL does. If it answers another look-up, the settings
/// are right and the message with a GUID is wrong.
async fn without_guids(http: &Http, doing: &str, error: RegistryError) -> RegistryError {
    let types = get("listing the types of schemas".into(), &["schemas", "types"]);
    match http.call::<Vec<String>>(types).await {
        Ok(_) => {
            let detail = format!(
                "{doing}: this registry has no GUIDs; let the writer frame with numbers, or ask a \
                 registry that has them"
            );
            RegistryError::new(RegistryErrorKind::Unsupported, detail).with_source(error)
        }
        Err(_) => error,
    }
}

fn get<'r>(doing: String, path: &'r [&'r str]) -> Request<'r> {
    Request { doing, method: Method::GET, path, query: &[], body: None }
}

fn body(schema: &Schema) -> Result<Vec<u8>, RegistryError> {
    serde_json::to_vec(&SchemaRequest::from(schema)).map_err(|error| {
        RegistryError::config("the schema cannot be written as JSON").with_source(error)
    })
}

/// Characters that a URL would drop.
fn check(subject: &str) -> Result<(), RegistryError> {
    match subject {
        "" | "." | ".." => {
            Err(RegistryError::config(format!("{subject:?} cannot be the name of a subject")))
        }
        _ => Ok(()),
    }
}

fn without(doing: &str, what: &str) -> RegistryError {
    let detail = format!(
        "{doing}: the answer has not {what}; check that the base URL is that of a schema registry"
    );
    RegistryError::new(RegistryErrorKind::Other, detail)
}
