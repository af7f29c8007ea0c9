//! [`Http`]: requests to the registry's URLs with retries; used by the registry's client.

use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs_config::Reconnect;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::api::ErrorResponse;
use super::authorization::{authorized, secrets};
use super::{Credentials, RegistryConfig, RegistryError, RegistryErrorKind};

const JSON: &str = "application/vnd.schemaregistry.v1+json";
const ACCEPTED: &str = "application/vnd.schemaregistry.v1+json, application/json;q=0.9";
/// No schema is as large; a proxy's endless answer is.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// The part of the registry's message that an error quotes, in bytes.
const MAX_WORDS: usize = 500;

/// Sends requests to the registry's URLs in turn, with retries by the settings.
pub(super) struct Http {
    client: Client,
    urls: Vec<Url>,
    credentials: Option<Credentials>,
    /// Texts that are redacted: the credentials, as they are and as they are sent.
    secrets: Vec<String>,
    attempts: u32,
    reconnect: Reconnect,
    /// The URL that answered last.
    preferred: AtomicUsize,
}

/// A request.
pub(super) struct Request<'r> {
    /// The description for errors, as `looking up schema 7`.
    pub(super) doing: String,
    pub(super) method: Method,
    pub(super) path: &'r [&'r str],
    pub(super) query: &'r [(&'r str, &'r str)],
    pub(super) body: Option<Vec<u8>>,
}

/// The result of a request at one URL.
enum Failure {
    /// Retryable at another URL or later.
    Passing {
        what: String,
        code: Option<u32>,
        source: Option<reqwest::Error>,
    },
    Final(RegistryError),
}

impl Http {
    pub(super) fn new(config: &RegistryConfig) -> Result<Self, RegistryError> {
        let (urls, credentials) = config.parse()?;
        let mut builder = Client::builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            .redirect(Policy::none());
        if urls.iter().any(|url| url.scheme() == "https") {
            builder = builder.tls_backend_preconfigured(super::tls::client(&config.tls)?);
        } else {
            builder = builder.tls_backend_preconfigured(super::tls::unused()?);
        }
        let client = builder.build().map_err(|error| {
            RegistryError::config("the settings do not make an HTTP client").with_source(error)
        })?;
        if credentials.is_some() && urls.iter().any(|url| url.scheme() == "http") {
            tracing::warn!("the credentials of the schema registry are sent unencrypted (http://)");
        }
        let secrets = secrets(&client, credentials.as_ref());
        Ok(Self {
            client,
            urls,
            credentials,
            secrets,
            attempts: config.attempts.max(1),
            reconnect: config.reconnect,
            preferred: AtomicUsize::new(0),
        })
    }

    /// The answer, read as `T`.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        request: Request<'_>,
    ) -> Result<T, RegistryError> {
        let mut failed = None;
        for attempt in 0..self.attempts {
            if attempt > 0 {
                tokio::time::sleep(self.reconnect.delay(attempt)).await;
            }
            let first = self.preferred.load(Ordering::Relaxed);
            for place in 0..self.urls.len() {
                let place = (first + place) % self.urls.len();
                let Some(url) = self.urls.get(place) else { continue };
                match self.ask(&request, url).await {
                    Ok(answer) => {
                        self.preferred.store(place, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(Failure::Final(error)) => {
                        self.preferred.store(place, Ordering::Relaxed);
                        return Err(error);
                    }
                    Err(failure @ Failure::Passing { .. }) => {
                        if let Failure::Passing { what, .. } = &failure {
                            tracing::debug!(doing = request.doing, %url, what, "not answered");
                        }
                        failed = Some(failure);
                    }
                }
            }
        }
        Err(self.unreachable(&request.doing, failed))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        request: &Request<'_>,
        base: &Url,
    ) -> Result<T, Failure> {
        let response = self.send(request, base).await?;
        let status = response.status();
        let body = read(response).await?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                // Without serde's own text, which may quote the answer.
                let what = match error.classify() {
                    serde_json::error::Category::Data => "JSON of another shape",
                    _ => "no JSON",
                };
                let detail = format!(
                    "{} at {base}: the answer is {what}; check that this is the base URL of a \
                     schema registry",
                    request.doing
                );
                Failure::Final(other(detail, status))
            });
        }
        let mut refusal: ErrorResponse = serde_json::from_slice(&body).unwrap_or_default();
        refusal.message = self.redact(&refusal.message);
        Err(refused(&request.doing, base, status, &refusal))
    }

    async fn send(&self, request: &Request<'_>, base: &Url) -> Result<Response, Failure> {
        let mut url = base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(request.path);
        }
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(request.query);
        }
        let sent = self.client.request(request.method.clone(), url).header(ACCEPT, ACCEPTED);
        let mut sent = authorized(sent, self.credentials.as_ref());
        if let Some(body) = &request.body {
            sent = sent.header(CONTENT_TYPE, JSON).body(body.clone());
        }
        sent.send().await.map_err(unanswered)
    }

    /// Redacts the credentials: a registry, or a proxy before it, may repeat its request.
    pub(super) fn redact(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    fn unreachable(&self, doing: &str, failed: Option<Failure>) -> RegistryError {
        let urls: Vec<_> = self.urls.iter().map(Url::as_str).collect();
        let urls = urls.join(", ");
        let (what, code, source) = match failed {
            Some(Failure::Passing { what, code, source }) => (what, code, source),
            Some(Failure::Final(error)) => return error,
            None => (String::from("not tried"), None, None),
        };
        let detail = format!(
            "{doing}: no registry answered at {urls} in {} attempts, the last time: {what}; check \
             that it runs and that this is its address",
            self.attempts
        );
        let error = RegistryError::new(RegistryErrorKind::Connection, detail).with_code(code);
        match source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unanswered)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            let detail = format!("the registry's answer is larger than {MAX_ANSWER} bytes");
            return Err(Failure::Final(other(detail, response.status())));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn unanswered(error: reqwest::Error) -> Failure {
    // The URL is in our own text, with the request.
    let error = error.without_url();
    let what = match (error.is_timeout(), error.is_connect()) {
        (_, true) => "no connection",
        (true, false) => "no answer in time",
        (false, false) => "the connection broke",
    };
    Failure::Passing { what: what.into(), code: None, source: Some(error) }
}

fn other(detail: String, status: StatusCode) -> RegistryError {
    let code = Some(u32::from(status.as_u16()));
    RegistryError::new(RegistryErrorKind::Other, detail).with_code(code)
}

/// The error kind and the remedy of a status that is no success.
fn refused(doing: &str, base: &Url, status: StatusCode, refusal: &ErrorResponse) -> Failure {
    let number = u32::from(status.as_u16());
    let code = refusal.error_code.filter(|&code| code > 0).unwrap_or(number);
    let mut said = number.to_string();
    if code != number {
        said.push_str(&format!(", error code {code}"));
    }
    if !refusal.message.is_empty() {
        let words: String = refusal.message.chars().take(MAX_WORDS).collect();
        said.push_str(&format!(", {words:?}"));
    }
    // "Not implemented" is permanent.
    let is_final = status == StatusCode::NOT_IMPLEMENTED;
    if status.is_server_error() && !is_final || status == StatusCode::TOO_MANY_REQUESTS {
        let what = format!("it answered {said}");
        return Failure::Passing { what, code: Some(code), source: None };
    }
    let (kind, what) = match (number, code) {
        (404, 40401..=40499) => (
            RegistryErrorKind::NotFound,
            "the registry does not know it; check that this is the registry the writer uses",
        ),
        (404, _) => (
            RegistryErrorKind::Other,
            "there is no such endpoint; check the base URL (Apicurio's ends in /apis/ccompat/v7). \
             Looking up by GUID needs a newer registry",
        ),
        (409, _) => (
            RegistryErrorKind::Incompatible,
            "the schema is not compatible with the earlier ones of its subject; change it so that \
             it is, or change the subject's compatibility level",
        ),
        (422, _) => (
            RegistryErrorKind::InvalidSchema,
            "the registry cannot take this schema; check it and its references",
        ),
        (401, _) => (
            RegistryErrorKind::Authentication,
            "the registry refused the credentials; check user and password, or the token",
        ),
        (403, _) => (
            RegistryErrorKind::Authorization,
            "these credentials may not do this; check what the registry lets them do",
        ),
        (300..=399, _) => {
            (RegistryErrorKind::Other, "the registry is elsewhere; check the base URL")
        }
        _ => (RegistryErrorKind::Other, "the registry refused it"),
    };
    let detail = format!("{doing} at {base}: {what} (it answered {said})");
    Failure::Final(RegistryError::new(kind, detail).with_code(Some(code)))
}
