//! The error of the crate and its kinds.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use cqrs_core::PublishErrorKind;
use cqrs_core::consume::support::error_chain;
use lapin::protocol::AMQPError;

/// The kinds of [`AmqpError`]. The first four are the same for every broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is missing, malformed or contradicts another one. Nothing was connected.
    Config,
    /// The server could not be reached: name resolution, connection refused, no answer in time, or the
    /// connection broke before the server accepted it.
    Connection,
    /// The TLS handshake failed: an unknown authority, a wrong host name, a refused client certificate.
    Tls,
    /// The server refused user name and password (reply code 403).
    Authentication,
    /// An established connection was lost.
    ConnectionLost,
    /// The virtual host does not exist, or this user may not use it (reply code 530).
    VirtualHost,
    /// An exchange, queue or binding could not be declared, or exists on the server with other properties.
    Topology,
    /// The server closed the channel because of a frame sent on it.
    ChannelClosed,
    /// The server blocks publishers (`connection.blocked`: a memory or disk alarm).
    Blocked,
}

/// An error of this crate: its kind, a description, and the cause in `source()`.
///
/// Cheap to clone. Neither `Display` nor `Debug` shows credentials: an error never holds the dsn, and the
/// server's replies name no password.
#[derive(Clone)]
pub struct AmqpError(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    detail: Cow<'static, str>,
    reply_code: Option<u16>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl AmqpError {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, detail: detail.into(), reply_code: None, source: None }))
    }

    pub(crate) fn config(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, detail)
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        detail: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = Some(source.into());
        Self(Arc::new(Inner { kind, detail: detail.into(), reply_code: None, source }))
    }

    /// An error of lapin, of `kind` unless the server's reply code stands for a more specific one.
    pub(crate) fn from_lapin(
        kind: ErrorKind,
        doing: impl Into<Cow<'static, str>>,
        error: &lapin::Error,
    ) -> Self {
        let (reply_code, source): (_, Box<dyn Error + Send + Sync>) = match error.kind() {
            lapin::ErrorKind::ProtocolError(reply) => {
                (Some(reply.get_id()), Box::new(ServerReply(reply.clone())))
            }
            lapin::ErrorKind::IOError(io) => (None, Box::new(Arc::clone(io))),
            _ => (None, Box::new(error.clone())),
        };
        let kind = match (kind, reply_code) {
            (ErrorKind::Connection, Some(403)) => ErrorKind::Authentication,
            (ErrorKind::Connection, Some(530)) => ErrorKind::VirtualHost,
            _ => kind,
        };
        let source = Some(source);
        Self(Arc::new(Inner { kind, detail: doing.into(), reply_code, source }))
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The server's reply code, if the server refused
    /// ([AMQP 0-9-1, 1.2](https://www.rabbitmq.com/amqp-0-9-1-reference#constants)).
    pub fn reply_code(&self) -> Option<u16> {
        self.0.reply_code
    }

    /// True if a retry can succeed without a change of the settings.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Connection
                | ErrorKind::ConnectionLost
                | ErrorKind::ChannelClosed
                | ErrorKind::Blocked
        )
    }

    /// This error and all its causes on one line.
    pub(crate) fn chain(&self) -> String {
        error_chain(self)
    }

    /// The kind of publish error for the only message on a channel that the server closed.
    pub(crate) fn publish_error_kind(&self) -> PublishErrorKind {
        match self.0.reply_code {
            Some(311) => PublishErrorKind::TooLarge,
            Some(312 | 313 | 404) => PublishErrorKind::Unroutable,
            Some(406) => PublishErrorKind::Invalid,
            _ => PublishErrorKind::Refused,
        }
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)
    }
}

impl fmt::Debug for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpError")
            .field("kind", &self.0.kind)
            .field("detail", &self.0.detail)
            .field("reply_code", &self.0.reply_code)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for AmqpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// The server's reply when it closed a channel or a connection.
#[derive(Debug)]
struct ServerReply(AMQPError);

impl fmt::Display for ServerReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server says {}: {}", self.0.get_id(), self.0.get_message())
    }
}

impl Error for ServerReply {}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

    use super::*;

    fn reply(kind: AMQPErrorKind, text: &str) -> lapin::Error {
        lapin::ErrorKind::ProtocolError(AMQPError::new(kind, text.into())).into()
    }

    #[test]
    fn reply_code_decides_the_kind_while_connecting() {
        let refused = reply(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED), "Login was refused");
        let error = AmqpError::from_lapin(ErrorKind::Connection, "connecting to h:1", &refused);
        assert_eq!(error.kind(), ErrorKind::Authentication);
        assert_eq!(error.chain(), "connecting to h:1: the server says 403: Login was refused");
        let vhost = reply(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED), "vhost x not found");
        let error = AmqpError::from_lapin(ErrorKind::Connection, "connecting", &vhost);
        assert_eq!((error.kind(), error.reply_code()), (ErrorKind::VirtualHost, Some(530)));
    }

    #[test]
    fn io_error_is_in_the_source_chain() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = AmqpError::from_lapin(ErrorKind::Connection, "connecting", &io.into());
        assert_eq!(error.chain(), "connecting: connection refused");
        assert!(error.is_retryable());
    }

    #[test]
    fn channel_error_names_the_publish_error() {
        let kind = |soft, text| {
            let error = reply(AMQPErrorKind::Soft(soft), text);
            AmqpError::from_lapin(ErrorKind::ChannelClosed, "publishing", &error)
                .publish_error_kind()
        };
        assert_eq!(kind(AMQPSoftError::NOTFOUND, "no exchange"), PublishErrorKind::Unroutable);
        assert_eq!(kind(AMQPSoftError::PRECONDITIONFAILED, "size"), PublishErrorKind::Invalid);
        assert_eq!(kind(AMQPSoftError::ACCESSREFUSED, "write"), PublishErrorKind::Refused);
    }
}
