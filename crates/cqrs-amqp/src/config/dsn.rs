use std::fmt;

use lapin::uri::{AMQPScheme, AMQPUri};
use serde::{Deserialize, Deserializer};

use crate::AmqpError;

/// Where the server is and who we are: `amqp://user:password@host:port/vhost`, or `amqps://` for TLS
/// ([RabbitMQ URI specification](https://www.rabbitmq.com/docs/uri-spec)).
///
/// Percent-encode what has a meaning in a URI (`%2F` for the vhost `/`). An empty vhost
/// (`amqp://host/`) is read as the vhost `/`, as the Python clients do and unlike the specification.
/// Left out, user and password are `guest`, the port is 5672 (5671 with TLS). The query parameters
/// `heartbeat` (seconds), `channel_max`, `frame_max` and `auth_mechanism` (`plain`, `external`) are
/// understood.
///
/// `Debug` and `Display` show neither user nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn(String);

impl<'de> Deserialize<'de> for Dsn {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        cqrs_tls::secret_text(from).map(Self)
    }
}

impl Dsn {
    /// Reads the address; the error never repeats what was given.
    pub(crate) fn parse(&self) -> Result<AMQPUri, AmqpError> {
        let invalid = || {
            AmqpError::config(
                "the dsn is not of the form amqp[s]://user:password@host:port/vhost \
                 (percent-encode special characters)",
            )
        };
        if let Some(what) = cqrs_tls::not_text(&self.0) {
            let text = format!("the dsn is {what}; write it as a text, in quotes");
            return Err(AmqpError::config(text));
        }
        let mut uri: AMQPUri = self.0.parse().map_err(|_names_the_dsn: String| invalid())?;
        if uri.vhost.is_empty() {
            uri.vhost = "/".into();
        }
        // lapin reads an IPv6 host as "localhost".
        if let Some(host) = self.ipv6() {
            uri.authority.host = host.to_owned();
        }
        match uri.authority.host.is_empty() || uri.vhost.len() > 255 {
            true => Err(invalid()),
            false => Ok(uri),
        }
    }

    fn ipv6(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        host.strip_prefix('[')?.split_once(']').map(|(address, _port)| address)
    }
}

/// `host:port` for error messages.
pub(crate) fn address(uri: &AMQPUri) -> String {
    let tls = match uri.scheme {
        AMQPScheme::AMQP => "",
        AMQPScheme::AMQPS => " (TLS)",
    };
    format!("{}:{}{tls}", uri.authority.host, uri.authority.port)
}

impl Default for Dsn {
    fn default() -> Self {
        Self("amqp://localhost:5672/%2f".into())
    }
}

impl From<String> for Dsn {
    fn from(dsn: String) -> Self {
        Self(dsn)
    }
}

impl From<&str> for Dsn {
    fn from(dsn: &str) -> Self {
        Self(dsn.into())
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parse() {
            Ok(uri) => {
                let scheme = &uri.scheme;
                let (host, port) = (&uri.authority.host, uri.authority.port);
                write!(f, "{scheme}://***@{host}:{port}/{}", uri.vhost.replace('/', "%2f"))
            }
            Err(_) => f.write_str("***"),
        }
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_python_clients_take() {
        for (dsn, host, port, vhost) in [
            ("amqp://guest:guest@localhost:5672/", "localhost", 5672, "/"),
            ("amqp://guest:guest@localhost:5672/%2f", "localhost", 5672, "/"),
            ("amqp://localhost", "localhost", 5672, "/"),
            ("amqps://mq.example.com/shop", "mq.example.com", 5671, "shop"),
            ("amqp://u:p@[::1]:5673/a%20b", "::1", 5673, "a b"),
            ("amqp://10.0.0.7/x", "10.0.0.7", 5672, "x"),
        ] {
            let uri = Dsn::from(dsn).parse().unwrap();
            assert_eq!(
                (uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str()),
                (host, port, vhost),
                "{dsn}"
            );
        }
        let uri = Dsn::from("amqp://a%40b:p%2Fw@h?heartbeat=3").parse().unwrap();
        assert_eq!(uri.authority.userinfo.username, "a@b");
        assert_eq!(uri.authority.userinfo.password, "p/w");
        assert_eq!(uri.query.heartbeat, Some(3));
    }

    #[test]
    fn value_that_is_no_text_is_refused_unseen() {
        for line in ["dsn = 8675309", "dsn = ['amqp://u:8675309@h']", "dsn = { host = '8675309' }"]
        {
            let config: crate::AmqpConfig = toml::from_str(line).unwrap();
            let error = config.dsn.parse().unwrap_err();
            let text = format!("{error} {config:?}");
            assert!(text.contains("as a text, in quotes") && !text.contains("867"), "{text}");
        }
    }

    #[test]
    fn nothing_shows_the_password() {
        for dsn in [
            "amqp://alice:s3cret@h:1/v",
            "http://alice:s3cret@h",
            "alice:s3cret@h",
            "amqp://alice:s3cret@h:port/",
            "amqp://alice:s3cret@h?heartbeat=s3cret",
        ] {
            let dsn = Dsn::from(dsn);
            let error = dsn.parse().err().map_or_else(String::new, |error| format!("{error:?}"));
            let shown = format!("{dsn} {dsn:?} {error}");
            assert!(!shown.contains("s3cret") && !shown.contains("alice"), "{shown}");
        }
    }
}
