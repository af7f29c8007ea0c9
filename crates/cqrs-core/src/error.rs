//! [`ClientError`], the form of the errors of all clients, and the texts of errors with their causes.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The kinds of a [`ClientError`]: an enum of the client's crate.
///
/// Kinds that several clients have come first and have the same names: `Config`, `Connection`, `Tls`,
/// `Authentication`, `Authorization`.
pub trait ClientErrorKind: fmt::Debug + Copy + Send + Sync + 'static {
    /// The kind of a setting that is missing, malformed or contradicts another one.
    const CONFIG: Self;

    /// Returns whether a retry may succeed without a change of the settings.
    fn is_retryable(self) -> bool;
}

/// The error of a client: its kind, a text with the remedy, the server's code, and the cause in `source()`.
///
/// Cheap to clone. `Display` prints the text alone, `{:?}` the causes too, `{:#?}` all fields; none of them shows
/// credentials.
#[derive(Clone)]
pub struct ClientError<K>(Arc<Inner<K>>);

#[derive(Clone)]
struct Inner<K> {
    kind: K,
    text: Cow<'static, str>,
    code: Option<u32>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl<K: ClientErrorKind> ClientError<K> {
    /// An error; `text` says what happened, where, and the remedy, and shows no credentials.
    pub fn new(kind: K, text: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, text: text.into(), code: None, source: None }))
    }

    /// The error of a setting.
    pub fn config(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(K::CONFIG, text)
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::from(source.into()));
        self
    }

    /// Adds the server's code.
    #[must_use]
    pub fn with_code(mut self, code: Option<u32>) -> Self {
        Arc::make_mut(&mut self.0).code = code;
        self
    }

    /// The kind of the error.
    pub fn kind(&self) -> K {
        self.0.kind
    }

    /// The server's own code, if it answered with one: Kafka's
    /// [error code](https://kafka.apache.org/protocol#protocol_error_codes), RabbitMQ's
    /// [reply code](https://www.rabbitmq.com/amqp-0-9-1-reference#constants), the schema registry's
    /// [error code](https://docs.confluent.io/platform/current/schema-registry/develop/api.html) or, without one, its
    /// HTTP status.
    pub fn code(&self) -> Option<u32> {
        self.0.code
    }

    /// Returns whether a retry may succeed without a change of the settings.
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }
}

impl<K> fmt::Display for ClientError<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl<K: ClientErrorKind> Error for ClientError<K> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

crate::error_debug!(ClientError<K: ClientErrorKind>, kind(), code());

/// An error and its causes in one line. A cause that the error above it already prints is not repeated.
pub fn error_chain(error: &dyn Error) -> String {
    joined(error, ": ")
}

/// Problems in one line.
pub(crate) fn listed(problems: &[impl ToString]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn joined(error: &dyn Error, separator: &str) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors print their cause themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(separator);
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The body of [`error_debug!`](crate::error_debug).
pub fn debug_error(
    error: &dyn Error,
    f: &mut fmt::Formatter<'_>,
    name: &str,
    fields: &[(&str, &dyn fmt::Debug)],
) -> fmt::Result {
    if !f.alternate() {
        return f.write_str(&joined(error, "\ncaused by: "));
    }
    let mut shown = f.debug_struct(name);
    for (name, value) in fields {
        shown.field(name, value);
    }
    shown.field("text", &error.to_string()).field("source", &error.source()).finish()
}

/// `Debug` of an error type, for `main() -> Result<(), Box<dyn Error>>`, which prints it: `{:?}` is the error's text
/// and its causes, one a line; `{:#?}` is the named fields and methods, the text and the cause.
#[doc(hidden)]
#[macro_export]
macro_rules! error_debug {
    ($name:ident $(<$($param:ident $(: $bound:ident)?),+>)? $(, $field:ident $(($($none:tt)?))?)*) => {
        impl $(<$($param $(: $bound)?),+>)? ::std::fmt::Debug for $name $(<$($param),+>)?
        where
            Self: ::std::error::Error,
        {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                let fields: &[(&str, &dyn ::std::fmt::Debug)] =
                    &[$((stringify!($field), &self.$field $(($($none)?))?)),*];
                $crate::__private::debug_error(self, f, stringify!($name), fields)
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Kind {
        Config,
        Connection,
    }

    impl ClientErrorKind for Kind {
        const CONFIG: Self = Self::Config;

        fn is_retryable(self) -> bool {
            self == Self::Connection
        }
    }

    fn lost() -> ClientError<Kind> {
        let cause = ClientError::config("wrong port").with_source("refused");
        let cause: ClientError<Kind> = cause;
        ClientError::new(Kind::Connection, "no contact").with_source(cause).with_code(Some(320))
    }

    #[test]
    fn display_shows_its_own_level() {
        assert_eq!(lost().to_string(), "no contact");
        assert_eq!(lost().source().unwrap().to_string(), "wrong port");
        assert_eq!(error_chain(&lost()), "no contact: wrong port: refused");
    }

    #[test]
    fn debug_shows_causes_and_alternate_the_fields() {
        assert_eq!(
            format!("{:?}", lost()),
            "no contact\ncaused by: wrong port\ncaused by: refused"
        );
        let fields = format!("{:#?}", lost());
        for field in ["kind: Connection", "320", "text: \"no contact\"", "kind: Config"] {
            assert!(fields.contains(field), "{field}: {fields}");
        }
    }

    #[test]
    fn kind_decides_whether_a_retry_may_help() {
        assert!(lost().is_retryable() && lost().code() == Some(320));
        let config = ClientError::<Kind>::config("no user");
        assert!(!config.is_retryable() && config.kind() == Kind::Config && config.code().is_none());
    }
}
