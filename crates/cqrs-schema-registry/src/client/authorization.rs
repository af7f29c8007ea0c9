//! The credentials in a request, and the forms in which an answer may repeat them; used by the HTTP client.

use reqwest::header::AUTHORIZATION;
use reqwest::{Client, RequestBuilder, Url};

use super::config::Credentials;

/// Adds the `authorization` header.
pub(super) fn authorized(
    sent: RequestBuilder,
    credentials: Option<&Credentials>,
) -> RequestBuilder {
    match credentials {
        None => sent,
        Some(Credentials::Basic { user, password }) => {
            sent.basic_auth(user, Some(password.expose()))
        }
        Some(Credentials::Bearer(token)) => sent.bearer_auth(token.expose()),
    }
}

/// The password or token in the forms in which an answer may repeat it; the longest first, so that no part
/// of one stays.
pub(super) fn secrets(client: &Client, credentials: Option<&Credentials>) -> Vec<String> {
    let Some(credentials) = credentials else { return Vec::new() };
    let plain = match credentials {
        Credentials::Basic { password, .. } => password.expose(),
        Credentials::Bearer(token) => token.expose(),
    };
    let mut secrets = vec![plain.to_owned(), percent_encoded(plain)];
    let sent = authorized(client.get("http://localhost"), Some(credentials)).build();
    if let Ok(sent) = sent
        && let Some(header) = sent.headers().get(AUTHORIZATION)
        && let Ok(header) = header.to_str()
    {
        secrets.extend(header.split_once(' ').map(|(_, value)| value.to_owned()));
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.dedup();
    secrets
}

/// The form in the user information of a URL.
fn percent_encoded(text: &str) -> String {
    let mut url = match Url::parse("http://localhost") {
        Ok(url) => url,
        Err(_) => return String::new(),
    };
    let _never_fails_with_a_host = url.set_password(Some(text));
    url.password().unwrap_or_default().to_owned()
}
