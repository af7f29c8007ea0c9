//! Opens a connection: name resolution, TCP, TLS and the AMQP handshake; part of the pool.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio, TokioRuntime};
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::uri::{AMQPScheme, AMQPUri};
use socket2::SockRef;

use super::confirm_channel::ConfirmChannels;
use super::connection::Connection;
use super::frame_filter::{Filtered, FirstByte, Sockets};
use super::socket::SocketHandle;
use crate::config::AmqpConfig;
use crate::config::{address, connector};
use crate::error::{AmqpError, ErrorKind, from_lapin};

/// Opens connections, each within one time limit.
pub(super) struct Dialer {
    uri: AMQPUri,
    address: Arc<str>,
    tls: Option<RustlsConnector>,
    name: String,
    timeout: Duration,
}

impl Dialer {
    pub(super) fn new(config: &AmqpConfig) -> Result<Self, AmqpError> {
        let mut uri = config.dsn.parse()?;
        let seconds = u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX);
        uri.query.heartbeat.get_or_insert(seconds);
        let tls = match uri.scheme {
            AMQPScheme::AMQP => None,
            AMQPScheme::AMQPS => Some(connector(&config.tls)?),
        };
        Ok(Self {
            address: address(&uri).into(),
            uri,
            tls,
            name: config.connection_name.clone(),
            timeout: config.attempt_limit(),
        })
    }

    /// The server's address, without credentials.
    pub(super) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Opens a connection: one attempt. Cancel safe: an attempt that is dropped or too late leaves no thread.
    pub(super) async fn dial(&self) -> Result<Connection, AmqpError> {
        let socket = SocketHandle::default();
        // Shuts the socket when this future is dropped, though lapin's thread holds a handle too.
        let guard = ShutOnDrop(socket.clone());
        let failure = Arc::new(OnceLock::new());
        let first = FirstByte::default();
        let channels = ConfirmChannels::default();
        let doing = || format!("connecting to {}", self.address);
        let tokio = Tokio::current();
        let runtime = Runtime::new(RuntimeParts::new(tokio.clone(), Sockets(tokio)));
        let transport = Transport {
            tls: self.tls.clone(),
            address: Arc::clone(&self.address),
            socket: socket.clone(),
            failure: Arc::clone(&failure),
            first: Arc::clone(&first),
            channels: channels.clone(),
            runtime: TokioRuntime::tokio_current(),
        };
        let limit = self.timeout;
        // lapin's own recovery stays off: it gives up after 16 attempts and resends nothing.
        let properties =
            lapin::ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        let connecting = lapin::Connection::connector(
            self.uri.clone(),
            runtime,
            async move |uri: AMQPUri, _runtime| {
                let opening = async {
                    let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
                    let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
                    let stream = AsyncTcpStream::connect(&transport.runtime, found).await?;
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        transport.socket.set(SockRef::from(plain.get_ref()).try_clone()?);
                    }
                    let stream = match &transport.tls {
                        None => stream,
                        Some(tls) => stream
                            .into_rustls(tls, host)
                            .await
                            .inspect_err(|error| transport.tls_failed(error))?,
                    };
                    // The filter replaces frames that lapin cannot read.
                    let (frame_max, first) = (uri.query.frame_max, Arc::clone(&transport.first));
                    let channels = transport.channels.clone();
                    Ok(AsyncTcpStream::Plain(Filtered::noting(stream, frame_max, channels, first)))
                };
                match tokio::time::timeout(limit, opening).await {
                    Ok(opened) => opened.map_err(|error: io::Error| error.into()),
                    Err(_elapsed) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
                }
            },
            properties,
        );
        let connection = match tokio::time::timeout(limit, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                return Err(failure.get().cloned().unwrap_or_else(|| {
                    let (kind, hint) = match error.kind() {
                        // An error of rustls: with TLS 1.3 a server refuses the client's certificate only after
                        // the handshake.
                        lapin::ErrorKind::IOError(io)
                            if self.tls.is_some() && io.kind() == io::ErrorKind::InvalidData =>
                        {
                            (ErrorKind::Tls, "")
                        }
                        _ => hint(first.get().copied(), self.tls.is_some()),
                    };
                    from_lapin(kind, format!("{}{hint}", doing()), &error)
                }));
            }
            Err(_elapsed) => {
                let detail = format!("{}: no answer within {limit:?}", doing());
                return Err(AmqpError::new(ErrorKind::Connection, detail));
            }
        };
        guard.defuse();
        Ok(Connection::new(connection, channels, socket, Arc::clone(&self.address)))
    }
}

/// The state of the code on lapin's thread.
struct Transport {
    tls: Option<RustlsConnector>,
    address: Arc<str>,
    socket: SocketHandle,
    failure: Arc<OnceLock<AmqpError>>,
    first: FirstByte,
    channels: ConfirmChannels,
    runtime: TokioRuntime,
}

impl Transport {
    /// Keeps the cause: lapin reports it as any other I/O error.
    fn tls_failed(&self, error: &io::Error) {
        let (kind, hint) = match error.kind() {
            // rustls wraps its errors in this kind.
            io::ErrorKind::InvalidData if error.to_string().contains("InvalidContentType") => (
                ErrorKind::Protocol,
                ": this port has no TLS; use amqp://, or the server's TLS port",
            ),
            io::ErrorKind::InvalidData => (ErrorKind::Tls, ""),
            _ => (ErrorKind::Connection, ": the server closed it; is this RabbitMQ's TLS port?"),
        };
        let detail = format!("TLS handshake with {}{hint}", self.address);
        let cause = io::Error::new(error.kind(), error.to_string());
        let _first_wins = self.failure.set(AmqpError::new(kind, detail).with_source(cause));
    }
}

/// The cause of a failed AMQP handshake, by the server's first byte. `None`: nothing was read yet.
fn hint(first: Option<Option<u8>>, with_tls: bool) -> (ErrorKind, &'static str) {
    /// The content types of TLS ([RFC 8446, 5.1](https://www.rfc-editor.org/rfc/rfc8446#section-5.1)).
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;
    /// The type of a method frame (AMQP 0-9-1, 4.2.3): RabbitMQ's first answer.
    const METHOD: u8 = 1;
    match first {
        None | Some(Some(METHOD)) => (ErrorKind::Connection, ""),
        Some(Some(ALERT | HANDSHAKE)) => {
            (ErrorKind::Protocol, ": this port needs TLS; use amqps:// in the dsn")
        }
        Some(Some(_)) => (ErrorKind::Protocol, ": this is no port of AMQP 0-9-1"),
        Some(None) if with_tls => (
            ErrorKind::Connection,
            ": the server closed it without an answer; is this RabbitMQ's TLS port?",
        ),
        Some(None) => (
            ErrorKind::Connection,
            ": the server closed it without an answer; is this RabbitMQ's port, and without TLS? (With \
             TLS, use amqps:// in the dsn)",
        ),
    }
}

struct ShutOnDrop(SocketHandle);

impl ShutOnDrop {
    fn defuse(mut self) {
        self.0 = SocketHandle::default();
    }
}

impl Drop for ShutOnDrop {
    fn drop(&mut self) {
        self.0.shut();
    }
}
