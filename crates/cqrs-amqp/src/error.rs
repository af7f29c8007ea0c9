//! The error of the crate and its kinds.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use cqrs_core::{ClientError, ClientErrorKind, PublishErrorKind};
use lapin::protocol::{AMQPError, AMQPErrorKind};

/// The kinds of [`AmqpError`]. The first five are the same for every broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is missing, malformed or contradicts another one. Nothing was connected.
    Config,
    /// The server could not be reached: name resolution, connection refused, no answer in time, or the
    /// connection broke before the server accepted it, or the server is at its limit of connections.
    Connection,
    /// The TLS handshake failed: an unknown authority, a wrong host name, a refused client certificate.
    Tls,
    /// The server refused user name and password (reply code 403).
    Authentication,
    /// The server speaks another protocol: it is not RabbitMQ, or its port needs TLS, or has none.
    Protocol,
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

impl ClientErrorKind for ErrorKind {
    const CONFIG: Self = Self::Config;

    fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Connection | Self::ConnectionLost | Self::ChannelClosed | Self::Blocked
        )
    }
}

/// The error of this crate. Never shows credentials: it never holds the dsn, and the server's replies name
/// no password.
pub type AmqpError = ClientError<ErrorKind>;

/// The remedies of a refused login and of a refused virtual host.
const LOGIN: &str = ": the server refused the login; check user and password in the dsn (AMQP_DSN). There \
                     special characters are percent-encoded, such as %40 for @ and %25 for %";
const VIRTUAL_HOST: &str = ": the server refused the virtual host; check its name in the dsn (AMQP_DSN, / is \
                            %2f), and that the user may use it (rabbitmqctl set_permissions)";

/// An error of lapin, of `kind` unless the server's reply code stands for a more specific one.
pub(crate) fn from_lapin(
    kind: ErrorKind,
    doing: impl Into<Cow<'static, str>>,
    error: &lapin::Error,
) -> AmqpError {
    let (code, source): (_, Box<dyn Error + Send + Sync>) = match error.kind() {
        lapin::ErrorKind::ProtocolError(reply) => {
            (Some(reply.get_id()), Box::new(ServerReply(reply.clone())))
        }
        lapin::ErrorKind::IOError(io) => (None, Box::new(Arc::clone(io))),
        _ => (None, Box::new(error.clone())),
    };
    let (kind, hint) = match (kind, error.kind()) {
        (ErrorKind::Connection, lapin::ErrorKind::ProtocolError(reply)) => match reply.get_id() {
            403 => (ErrorKind::Authentication, LOGIN),
            530 if !is_limit(reply) => (ErrorKind::VirtualHost, VIRTUAL_HOST),
            _ => (kind, ""),
        },
        _ => (kind, ""),
    };
    let text = format!("{}{hint}", doing.into());
    AmqpError::new(kind, text).with_source(source).with_code(code.map(u32::from))
}

/// The error of a channel that the server closed: of kind `ChannelClosed` if a frame on it was the reason.
pub(crate) fn channel_close(code: u16, text: &str) -> AmqpError {
    let text = &text[..text.floor_char_boundary(255)];
    let text = lapin::types::ShortString::try_new(text).unwrap_or_default();
    match AMQPError::from_id(code, text) {
        Some(reply) => {
            let kind = match reply.kind() {
                AMQPErrorKind::Soft(_) => ErrorKind::ChannelClosed,
                AMQPErrorKind::Hard(_) => ErrorKind::ConnectionLost,
            };
            let error = lapin::ErrorKind::ProtocolError(reply).into();
            from_lapin(kind, "the server closed the channel", &error)
        }
        None => {
            let detail = format!("the server closed the channel with code {code}");
            AmqpError::new(ErrorKind::ConnectionLost, detail).with_code(Some(code.into()))
        }
    }
}

/// True if a user, virtual host or node has as many connections as it may have: room can come. All three texts of
/// RabbitMQ say `connection limit (N) is reached`, with the reply code of a missing virtual host.
fn is_limit(reply: &AMQPError) -> bool {
    let text = reply.get_message().as_str();
    text.contains("connection limit (") && text.ends_with("is reached")
}

/// The kind of publish error for the only message on a channel that the server closed with `error`.
pub(crate) fn publish_error_kind(error: &AmqpError) -> PublishErrorKind {
    match error.code() {
        Some(311) => PublishErrorKind::TooLarge,
        Some(312 | 313 | 404) => PublishErrorKind::Unroutable,
        Some(406) => PublishErrorKind::Invalid,
        _ => PublishErrorKind::Refused,
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
    use cqrs_core::consume::support::error_chain;
    use lapin::protocol::{AMQPHardError, AMQPSoftError};

    use super::*;

    fn reply(kind: AMQPErrorKind, text: &str) -> lapin::Error {
        lapin::ErrorKind::ProtocolError(AMQPError::new(kind, text.into())).into()
    }

    #[test]
    fn reply_code_decides_the_kind_while_connecting() {
        let refused = reply(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED), "Login was refused");
        let error = from_lapin(ErrorKind::Connection, "connecting to h:1", &refused);
        assert_eq!(error.kind(), ErrorKind::Authentication);
        let shown = format!("{error:?}");
        assert!(shown.starts_with("connecting to h:1: the server refused the login;"), "{shown}");
        assert!(shown.contains("AMQP_DSN") && shown.contains("%40 for @"), "{shown}");
        assert!(shown.ends_with("\ncaused by: the server says 403: Login was refused"), "{shown}");
        let vhost = reply(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED), "vhost x not found");
        let error = from_lapin(ErrorKind::Connection, "connecting", &vhost);
        assert_eq!((error.kind(), error.code()), (ErrorKind::VirtualHost, Some(530)));
        assert!(
            error.to_string().contains("the server refused the virtual host; check"),
            "{error}"
        );
        let text = "access to vhost 'x' refused for user 'u': connection limit (1) is reached";
        let limit = reply(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED), text);
        let error = from_lapin(ErrorKind::Connection, "connecting", &limit);
        assert_eq!((error.kind(), error.code()), (ErrorKind::Connection, Some(530)));
        assert_eq!(error.to_string(), "connecting");
    }

    #[test]
    fn io_error_is_in_the_source_chain() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = from_lapin(ErrorKind::Connection, "connecting", &io.into());
        assert_eq!(error_chain(&error), "connecting: connection refused");
        assert!(error.is_retryable());
    }

    #[test]
    fn channel_error_names_the_publish_error() {
        let kind = |soft, text| {
            let error = reply(AMQPErrorKind::Soft(soft), text);
            publish_error_kind(&from_lapin(ErrorKind::ChannelClosed, "publishing", &error))
        };
        assert_eq!(kind(AMQPSoftError::NOTFOUND, "no exchange"), PublishErrorKind::Unroutable);
        assert_eq!(kind(AMQPSoftError::PRECONDITIONFAILED, "size"), PublishErrorKind::Invalid);
        assert_eq!(kind(AMQPSoftError::ACCESSREFUSED, "write"), PublishErrorKind::Refused);
    }
}
