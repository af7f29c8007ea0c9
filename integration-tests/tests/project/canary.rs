//! Secrets of every way to configure one, searched for in all that a process writes: `Debug` of settings
//! and clients, errors with their causes, panics, logs of every level.
//!
//! The clients run in a process of their own, so that what a library writes past the log is read, too.

mod ways;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use integration_tests::servers;

/// Set in the process that runs the clients: the filter of its log.
const FILTER: &str = "CQRS_CANARY_FILTER";

/// The environment of the ways that read it, with a secret in each variable that holds one.
fn environment() -> Vec<(&'static str, String)> {
    let [kafka, amqp, registry, bearer] =
        ["kafka-env", "amqp-env", "registry-env", "registry-env-token"].map(secret);
    let address = integration_tests::amqp::address();
    vec![
        ("KAFKA_BOOTSTRAP_SERVERS", servers::kafka_sasl_ssl()),
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL".into()),
        ("KAFKA_SASL_MECHANISM", "PLAIN".into()),
        ("KAFKA_SASL_USERNAME", "cqrs".into()),
        ("KAFKA_SASL_PASSWORD", kafka),
        ("KAFKA_TLS_CA", servers::certs("ca.pem").display().to_string()),
        ("KAFKA_TLS_CLIENT_KEY_PASSWORD", secret("kafka-env-key")),
        ("AMQP_DSN", format!("amqp://guest:{amqp}@{address}/%2f")),
        ("SCHEMA_REGISTRY_URL", "http://localhost:8081".into()),
        ("SCHEMA_REGISTRY_USER", "user".into()),
        ("SCHEMA_REGISTRY_PASSWORD", registry),
        ("CANARY_TOKEN", bearer),
    ]
}

/// The secret of one way: as no other text.
fn secret(way: &str) -> String {
    format!("Zq9{}Vx7", way.replace('-', "Qj"))
}

/// The forms in which bytes of `secret` would be seen.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let list = |separator: &str, each: &dyn Fn(&u8) -> String| {
        bytes.iter().map(each).collect::<Vec<_>>().join(separator)
    };
    let mut forms = vec![
        secret.to_owned(),
        list(", ", &|byte| byte.to_string()),
        list("", &|byte| format!("{byte:02x}")),
        list(" ", &|byte| format!("{byte:02x}")),
        list("", &|byte| format!("{byte:02X}")),
    ];
    // In Base64 it begins at one of three places; the characters at the ends depend on the neighbours.
    for before in 0..3 {
        let text = base64(&[&vec![b'x'; before], bytes].concat());
        forms.push(text[(before * 8).div_ceil(6)..(before + bytes.len()) * 8 / 6].to_owned());
    }
    forms
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

/// The filter that the manual's page about logs names, without its level: what holds whatever the level is.
fn documented_filter() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/how-to/logging.md");
    let page = fs::read_to_string(path).expect("logging.md");
    let filter = page.lines().find_map(|line| line.trim().strip_prefix("RUST_LOG=info,"));
    filter.expect("the page names a filter as RUST_LOG=info,...").to_owned()
}

/// Everything that the process wrote which ran all ways with this filter.
fn written(filter: &str) -> String {
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "canary::ways::all", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FILTER, filter)
        .env("RUST_BACKTRACE", "full")
        .envs(environment())
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let text =
        [child.stdout, child.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.concat();
    let end: Vec<_> = text.lines().rev().take(30).collect();
    assert!(child.status.success(), "{end:#?}");
    text
}

/// The ways whose secret is in the text, with one line each, the secret taken out.
fn shown(text: &str, ways: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for way in ways {
        for form in forms(&secret(way)) {
            if let Some(line) = text.lines().find(|line| line.contains(&form)) {
                let line: String = line.replace(&form, "<SECRET>").chars().take(300).collect();
                found.push(format!("{way} as {:.6}...: {line}", form));
            }
        }
    }
    found
}

#[test]
fn no_secret_is_shown_at_any_level() {
    let text = written(&format!("trace,{}", documented_filter()));
    let ways: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("WAY ")).map(str::to_owned).collect();
    for level in ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"] {
        let lines = text.lines().filter(|line| line.contains(level)).count();
        println!("CANARY {level}: {lines} lines");
        assert!(lines > 0, "nothing is logged at {level}: the search is of no use");
    }
    println!("CANARY {} ways: {ways:?}, {} bytes", ways.len(), text.len());
    let end: Vec<_> = text.lines().rev().take(10).collect();
    assert!(text.contains("ALL WAYS TRIED"), "{end:#?}");
    assert!(ways.len() >= 47, "a way is missing");
    let shown = shown(&text, &ways);
    assert!(shown.is_empty(), "{shown:#?}");
}

/// The search finds a login that is shown: in the lines that the documented filter keeps out.
#[test]
fn search_finds_what_the_filter_keeps_out() {
    let ways = BTreeSet::from(["amqp-dsn".to_owned()]);
    let shown = shown(&written("trace"), &ways);
    println!("CANARY without the filter: {shown:#?}");
    assert!(!shown.is_empty(), "the filter is of no use any more: take it out of README");
}

#[test]
fn every_form_of_a_secret_is_found() {
    let ways = BTreeSet::from(["x".to_owned()]);
    let secret = secret("x");
    for text in [
        format!("password={secret}!"),
        format!("{:?}", format!("a{secret}b").as_bytes()),
        base64(format!("user:{secret}").as_bytes()),
        base64(format!("\0u\0{secret}").as_bytes()),
        base64(secret.as_bytes()),
        secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ] {
        assert!(!shown(&text, &ways).is_empty(), "{text}");
    }
    assert!(shown("nothing here", &ways).is_empty());
}
