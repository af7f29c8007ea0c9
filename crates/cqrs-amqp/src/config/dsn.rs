//! [`Dsn`]: the server's address and the login, part of [`AmqpConfig`](crate::AmqpConfig).

use std::fmt;

use cqrs_config::{Variable, not_text, secret_text};
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use serde::{Deserialize, Deserializer};

use crate::error::AmqpError;

/// The server's address and the login: `amqp://user:password@host:port/vhost`, or `amqps://` for TLS
/// ([RabbitMQ URI specification](https://www.rabbitmq.com/docs/uri-spec)).
///
/// Percent-encode characters with a meaning in a URI (`%2F` for the vhost `/`). An empty vhost
/// (`amqp://host/`) is read as the vhost `/`, as the Python clients do and unlike the specification.
/// Left out, user and password are `guest`, the port is 5672 (5671 with TLS). The query parameters
/// `heartbeat` (seconds), `channel_max`, `frame_max` (bytes; 0, or at least 4,096) and `auth_mechanism`
/// (`plain`, `external`) are understood; any other is an error. One host: for several give a name that
/// resolves to all of them.
///
/// `Debug` and `Display` show neither user nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn(String);

impl<'de> Deserialize<'de> for Dsn {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        secret_text(from).map(Self)
    }
}

/// Checked; the error never shows the address.
impl Variable for Dsn {
    fn from_variable(text: &str) -> Result<Self, String> {
        let dsn = Self::from(text);
        dsn.parse().map(|_| dsn).map_err(|error| error.to_string())
    }
}

impl Dsn {
    /// Reads the address; the error never shows it.
    pub(crate) fn parse(&self) -> Result<AMQPUri, AmqpError> {
        let invalid = || {
            AmqpError::config(
                "the dsn is not of the form amqp[s]://user:password@host:port/vhost \
                 (percent-encode special characters)",
            )
        };
        if let Some(what) = not_text(&self.0) {
            let text = format!("the dsn is {what}; write it as a text, in quotes");
            return Err(AmqpError::config(text));
        }
        if self.host_and_port().is_some_and(|host| host.contains([',', ';'])) {
            return Err(AmqpError::config(
                "the dsn names several hosts: give one (a DNS name may resolve to several addresses)",
            ));
        }
        self.check_parameters()?;
        if self.has_at_sign_after_host() {
            return Err(invalid());
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

    fn host_and_port(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
    }

    /// True if an `@` follows the host: then host and vhost may be a part of the password and are not shown.
    fn has_at_sign_after_host(&self) -> bool {
        self.0.split_once("://").is_some_and(|(_, rest)| {
            rest.split_once(['/', '?', '#']).is_some_and(|(_, behind)| behind.contains('@'))
        })
    }

    fn ipv6(&self) -> Option<&str> {
        let host = self.host_and_port()?.strip_prefix('[')?;
        host.split_once(']').map(|(address, _port)| address)
    }

    /// Refuses wrong parameters, which lapin would ignore; the error names the parameter, never its value.
    fn check_parameters(&self) -> Result<(), AmqpError> {
        let Some((before, behind)) = self.0.split_once('?') else { return Ok(()) };
        // A question mark in the fragment begins no query.
        if before.contains('#') {
            return Ok(());
        }
        let query = behind.split('#').next().unwrap_or_default();
        let refuse = |detail: String| Err(AmqpError::config(detail));
        for (name, value) in query.split('&').filter(|part| !part.is_empty()).map(name_and_value) {
            let largest = match name {
                "heartbeat" | "channel_max" => u64::from(u16::MAX),
                "frame_max" => u64::from(u32::MAX),
                "auth_mechanism" if value.parse::<SASLMechanism>().is_ok() => continue,
                "auth_mechanism" => {
                    return refuse("the dsn's `auth_mechanism` must be plain or external".into());
                }
                "connection_timeout" => {
                    return refuse(format!(
                        "the dsn's `{name}` is not understood: set AmqpConfig::attempt_timeout"
                    ));
                }
                // Possibly a password with a question mark in it.
                _ if behind.contains('@') => {
                    return refuse(format!("a parameter of the dsn is not understood; {KNOWN}"));
                }
                _ => {
                    return refuse(format!(
                        "the dsn's `{name}` is not understood; {KNOWN}; TLS is set up with \
                         AmqpConfig::tls"
                    ));
                }
            };
            match value.parse::<u64>() {
                Ok(number) if number > largest => {}
                Ok(1..MIN_FRAME_MAX) if name == "frame_max" => {
                    return refuse(format!("the dsn's `{name}` must be at least {MIN_FRAME_MAX}"));
                }
                Ok(_) => continue,
                Err(_) => {}
            }
            return refuse(format!(
                "the dsn's `{name}` must be a whole number from 0 to {largest}"
            ));
        }
        Ok(())
    }
}

/// AMQP 0-9-1, 4.2.3 (`frame-min-size`).
const MIN_FRAME_MAX: u64 = 4_096;
const KNOWN: &str = "the parameters are heartbeat, channel_max, frame_max, auth_mechanism";

fn name_and_value(parameter: &str) -> (&str, &str) {
    parameter.split_once('=').unwrap_or((parameter, ""))
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

cqrs_core::from_values! { Dsn:
    String = |dsn| Self(dsn),
    &String = |dsn| Self(dsn.clone()),
    &str = |dsn| Self(dsn.into()),
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
    fn bad_parameter_is_named_in_the_error() {
        for (dsn, words) in [
            ("amqp://h?heartbeat=70000", "`heartbeat` must be a whole number from 0 to 65535"),
            ("amqp://h?heartbeat=0.5", "`heartbeat` must be a whole number"),
            ("amqp://h/v?heartbeat=3&channel_max=-1", "`channel_max` must be a whole number"),
            ("amqp://h?frame_max=x", "`frame_max` must be a whole number"),
            ("amqp://h?frame_max=64", "`frame_max` must be at least 4096"),
            ("amqp://h?auth_mechanism=none", "`auth_mechanism` must be"),
            ("amqps://h?verify=verify_none", "`verify` is not understood"),
            ("amqps://h?verify=verify_none", "AmqpConfig::tls"),
            ("amqps://h?cacertfile=/ca.pem&heartbeat=3", "`cacertfile` is not understood"),
            ("amqp://h?connection_timeout=500", "AmqpConfig::attempt_timeout"),
            ("amqp://h1,h2/v", "several hosts"),
            ("amqp://u:p@h1:5672,h2:5672/v", "several hosts"),
            ("amqp://u:p@h1,amqp://u:p@h2", "several hosts"),
            ("amqp://u:a?b=c@h", "a parameter of the dsn is not understood"),
        ] {
            let error = Dsn::from(dsn).parse().expect_err(dsn).to_string();
            assert!(error.contains(words), "{dsn}: {error}");
        }
        for dsn in [
            "amqp://u:p,q@h/v?",
            "amqp://h?heartbeat=0&channel_max=8&frame_max=0&auth_mechanism=External",
            "amqp://h/a,b?heartbeat=65535&frame_max=4096#fragment",
        ] {
            assert!(Dsn::from(dsn).parse().is_ok(), "{dsn}");
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
            "amqp://h/v?password=s3cret&alice",
            "amqp://alice:1?s3cret=1@h",
            "amqp://alice:1?s3cret#2@h",
            "amqp://alice:1/s3cret@h",
            "amqp://alice:1#s3cret@h",
            "amqp://alice:p@s3cret/word@h",
            "amqp://bob:p@1/s3cret@h",
            "amqp://alice:s3cret@h,alice:s3cret@i",
        ] {
            let dsn = Dsn::from(dsn);
            let error = dsn.parse().err().map_or_else(String::new, |error| format!("{error:?}"));
            let shown = format!("{dsn} {dsn:?} {error}");
            assert!(!shown.contains("s3cret") && !shown.contains("alice"), "{shown}");
        }
    }
}
