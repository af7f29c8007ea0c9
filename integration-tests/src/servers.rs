//! The addresses of the servers of `scripts/brokers up`: an environment variable, the default port, or a
//! container started by a Docker engine.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::containers;

/// Kafka without TLS and login, as `host:port`. Topics are made on first use, with 4 partitions.
pub fn kafka() -> String {
    reachable("CQRS_TEST_KAFKA", "localhost:9092")
}

/// Kafka's address that is advertised but not listened on: a test puts a proxy there, in front of
/// [`kafka_behind_proxy`].
pub fn kafka_proxied() -> String {
    variable("CQRS_TEST_KAFKA_PROXIED", "localhost:29092")
}

/// The upstream of the proxy of [`kafka_proxied`].
pub fn kafka_behind_proxy() -> String {
    reachable("CQRS_TEST_KAFKA_BEHIND_PROXY", "localhost:19092")
}

/// Kafka with TLS; the authority is `ca.pem` of [`certs`].
pub fn kafka_ssl() -> String {
    reachable("CQRS_TEST_KAFKA_SSL", "localhost:9093")
}

/// Kafka with TLS and login as [`KAFKA_USER`], by PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
pub fn kafka_sasl_ssl() -> String {
    reachable("CQRS_TEST_KAFKA_SASL_SSL", "localhost:9094")
}

/// Kafka with unsigned OAUTHBEARER tokens, without TLS.
pub fn kafka_oauth() -> String {
    reachable("CQRS_TEST_KAFKA_OAUTH", "localhost:9095")
}

/// User and password of [`kafka_sasl_ssl`].
pub const KAFKA_USER: (&str, &str) = ("cqrs", "cqrs-secret");

/// The base URL of the schema registry.
pub fn registry() -> String {
    let url = variable("CQRS_TEST_REGISTRY", "http://localhost:8081/apis/ccompat/v7");
    let address = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    must_connect("CQRS_TEST_REGISTRY", address);
    url
}

/// The URL of PostgreSQL: user `cqrs`, database `cqrs`.
pub fn postgres() -> String {
    let url = variable("CQRS_TEST_POSTGRES", "postgres://cqrs:cqrs@localhost:5432/cqrs");
    let address = url.rsplit('@').next().and_then(|rest| rest.split('/').next());
    must_connect("CQRS_TEST_POSTGRES", address.unwrap_or_default());
    url
}

/// The URL of MariaDB: user `cqrs`, database `cqrs`.
pub fn mariadb() -> String {
    let url = variable("CQRS_TEST_MARIADB", "mysql://cqrs:cqrs@localhost:3306/cqrs");
    let address = url.rsplit('@').next().and_then(|rest| rest.split('/').next());
    must_connect("CQRS_TEST_MARIADB", address.unwrap_or_default());
    url
}

/// The test client's key as PKCS#8 text, encrypted with this password.
pub fn encrypted_client_key(password: &str) -> String {
    let made = Command::new("openssl")
        .args(["pkcs8", "-topk8", "-passout", "env:PASSWORD", "-in"])
        .arg(certs("client.key"))
        .env("PASSWORD", password)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "openssl pkcs8");
    String::from_utf8(made.stdout).expect("PEM")
}

/// A file of the test certificates: `ca.pem`, `client.pem`, `client.key`, `other-ca.pem`.
pub fn certs(file: &str) -> PathBuf {
    let default = || {
        let home = PathBuf::from(variable("HOME", "."));
        let state = std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from);
        let state = state.join("cqrs-brokers");
        std::env::var_os("CQRS_BROKERS_HOME").map_or(state, PathBuf::from).join("certs")
    };
    let path = std::env::var_os("CQRS_TEST_CERTS").map_or_else(default, PathBuf::from).join(file);
    assert!(path.exists(), "no file {path:?} (CQRS_TEST_CERTS): run `./scripts/brokers up`");
    path
}

/// The text of the variable, or the default.
pub fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// The address of a server that must be up: a test without its server fails, it is never skipped.
pub fn reachable(name: &str, default: &str) -> String {
    let address = variable(name, default);
    must_connect(name, &address);
    address
}

/// Connects, with retries: a broker value with a short publish deadline gives a busy server little time to
/// answer.
pub async fn connected<T, E, F>(mut connect: impl FnMut() -> F) -> T
where
    E: fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match connect().await {
            Ok(connected) => return connected,
            Err(error) => assert!(Instant::now() < end, "not connected: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn must_connect(name: &str, address: &str) {
    if !containers::connects(address)
        && let Err(why) = containers::start(address)
    {
        panic!("no server at {address} ({name}): run `./scripts/brokers up` (no container: {why})");
    }
}

/// The options of a connection to PostgreSQL, with `schema` as the only one in the search path.
pub fn postgres_options(schema: &str) -> sqlx::postgres::PgConnectOptions {
    let url = postgres();
    let options: sqlx::postgres::PgConnectOptions = url.parse().expect("CQRS_TEST_POSTGRES");
    options.options([("search_path", schema)])
}
