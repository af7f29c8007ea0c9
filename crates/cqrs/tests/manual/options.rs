//! Tests that the reference of options has every option, with its variable and its default, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use cqrs::amqp::AmqpConfig;
use cqrs::kafka::KafkaConfig;
use cqrs::schema_registry::RegistryConfig;
use serde::de::DeserializeOwned;

use super::{code, files, quoted, read, root, rows};

/// The options of `C` as keys of a file, such as `tls.ca`: those that an unknown key's error lists.
fn options<C: DeserializeOwned>(table: &str) -> BTreeSet<String> {
    let file = match table {
        "" => "unknown_key = 0".to_owned(),
        table => format!("[{table}]\nunknown_key = 0"),
    };
    let error = toml::from_str::<C>(&file).err().map(|error| error.message().to_owned());
    let list = error.as_deref().and_then(|text| text.split_once("unknown field `unknown_key`, "));
    let Some((_, list)) = list else { return BTreeSet::from([table.to_owned()]) };
    let key =
        |name: &str| if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
    quoted(list).into_iter().flat_map(|name| options::<C>(&key(name))).collect()
}

/// Of a page: each option with its variables, and a file of all defaults.
fn documented(page: &str) -> (BTreeMap<String, Vec<String>>, String) {
    let (mut options, mut defaults) = (BTreeMap::new(), String::new());
    for row in rows(&read(page)).iter().filter(|row| row.len() == 4 && row[0].starts_with('`')) {
        let option = row[0].trim_matches('`').to_owned();
        if row[2].starts_with('`') {
            defaults += &format!("{option} = {}\n", row[2].trim_matches('`'));
        }
        let variables = quoted(&row[1]).into_iter().map(str::to_owned).collect();
        assert!(options.insert(option, variables).is_none(), "{page} has {} twice", row[0]);
    }
    (options, defaults)
}

/// The variables that a crate reads: the names in capitals, the fields of `read_fields!`, and those of TLS.
fn variables(of: &str, prefix: &str) -> BTreeSet<String> {
    let file = files(&format!("crates/{of}/src"), "env.rs").pop().expect("a file of variables");
    let text = read(file);
    let text = text.split("#[cfg(test)]").next().expect("code");
    let is_name = |name: &&str| {
        name.len() > 2 && name.chars().all(|c| c.is_ascii_uppercase() || "_".contains(c))
    };
    let names = text.split('"').skip(1).step_by(2).filter(is_name).filter(|name| *name != prefix);
    let fields = text.split("read_fields!(").skip(1).filter_map(|rest| rest.split(')').next());
    let fields =
        fields.filter_map(|list| list.split_once(':')).flat_map(|(_, list)| list.split(','));
    let fields = fields.map(|field| field.trim().to_uppercase().replace('.', "_"));
    let fields = fields.filter(|field| !field.is_empty());
    let names = names.map(str::to_owned).chain(fields).map(|name| format!("{prefix}{name}"));
    let tls = ["CA", "CLIENT_CERTIFICATE", "CLIENT_KEY", "CLIENT_KEY_PASSWORD"];
    names.chain(tls.map(|name| format!("{prefix}TLS_{name}"))).collect()
}

fn check<C: DeserializeOwned + Debug>(page: &str, crate_name: &str, prefix: &str, default: &C) {
    let (documented, defaults) = documented(page);
    let known: BTreeSet<_> = documented.keys().cloned().collect();
    assert_eq!(known, options::<C>(""), "{page}: its options and those of the type");

    let defaults: C = toml::from_str(&defaults).unwrap_or_else(|error| panic!("{page}: {error}"));
    assert_eq!(format!("{defaults:?}"), format!("{default:?}"), "{page}: the defaults");

    let named = documented.values().flatten();
    let named: BTreeSet<_> = named.map(|name| name.replace("<OPTION>", "")).collect();
    assert_eq!(named, variables(crate_name, prefix), "{page}: its variables and those read");
}

#[test]
fn kafka_page_has_every_option_and_default() {
    check("docs/reference/kafka.md", "cqrs-kafka", "KAFKA_", &KafkaConfig::default());
}

#[test]
fn rabbitmq_page_has_every_option_and_default() {
    check("docs/reference/rabbitmq.md", "cqrs-amqp", "AMQP_", &AmqpConfig::default());
}

#[test]
fn registry_page_has_every_option_and_default() {
    let default = RegistryConfig::default();
    check("docs/reference/registry.md", "cqrs-schema-registry", "SCHEMA_REGISTRY_", &default);
}

/// The methods in the impls of `file` that take and return the builder. Those in `setters!` say neither.
fn setters(file: &str) -> BTreeSet<String> {
    let text = read(file);
    let methods = text.split("    pub fn ").skip(1).filter_map(|rest| {
        let signature: String = rest.split('{').next()?.split_whitespace().collect();
        let is_setter = signature.contains("(mutself")
            || signature.contains("(self")
            || !signature.contains("->");
        let name = signature.split(['<', '(']).next()?;
        (is_setter && name != "build").then(|| name.to_owned())
    });
    methods.collect()
}

/// The names in the first cells of the tables of `page` below the heading.
fn first_cells(page: &str, heading: &str) -> BTreeSet<String> {
    let text = read(page);
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("the heading");
    let section = section.split("\n## ").next().expect("a section");
    let rows = rows(section);
    rows.iter().flat_map(|row| quoted(&row[0])).map(str::to_owned).collect()
}

#[test]
fn pages_have_every_option_of_a_subscription() {
    let of_kafka = first_cells("docs/reference/kafka.md", "One subscription");
    let kafka = setters("crates/cqrs-kafka/src/config/subscription.rs");
    // Those of `NewTopics`, in the same file.
    let (of_topics, kafka): (BTreeSet<_>, BTreeSet<_>) = kafka
        .into_iter()
        .partition(|name| ["with_partitions", "with_replication"].contains(&name.as_str()));
    assert_eq!((of_topics.len(), of_kafka), (2, kafka));

    let of_amqp = first_cells("docs/reference/rabbitmq.md", "One subscription");
    assert_eq!(of_amqp, setters("crates/cqrs-amqp/src/config/subscription.rs"));

    let mut of_all = first_cells("docs/reference/subscription.md", "Subscription");
    for not_a_setter in ["to", "to_all", "pattern"] {
        assert!(of_all.remove(not_a_setter), "{not_a_setter}");
    }
    of_all.retain(|name| !name.contains(['(', '.', ' ']) && name != "EventMediator");
    assert_eq!(of_all, setters("crates/cqrs-core/src/service/subscription.rs"));
}

#[test]
fn page_has_every_option_of_the_mediators() {
    let mut of_page = first_cells("docs/reference/subscription.md", "Mediators");
    of_page.retain(|name| !name.contains(' '));
    assert_eq!(of_page, setters("crates/cqrs-core/src/mediator/bootstrap.rs"));
}

#[test]
fn page_has_every_header_that_is_written() {
    let page = read("docs/reference/headers.md");
    let documented: BTreeSet<_> =
        rows(&page).iter().flat_map(|row| quoted(&row[0])).map(str::to_owned).collect();
    let crates = ["cqrs-core", "cqrs-kafka", "cqrs-amqp", "cqrs-protobuf", "cqrs-schema-registry"];
    let code: String = crates.map(code).concat();
    let texts = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let texts = texts.flat_map(|line| line.split('"').skip(1).step_by(2));
    // Not the names of crates, and of Kafka's threads.
    let is_ours = |text: &str| {
        text.starts_with("cqrs-")
            && !text.contains(' ')
            && !text.ends_with('-')
            && !text.starts_with("cqrs-kafka-")
            && !root().join("crates").join(text).exists()
    };
    let is_header = |text: &&str| *text == "__value_schema_id" || is_ours(text);
    let written: BTreeSet<_> = texts.filter(is_header).map(str::to_owned).collect();
    let missing: Vec<_> = written.difference(&documented).collect();
    assert!(missing.is_empty(), "headers that the page lacks: {missing:?}");
    let ours = documented.iter().filter(|name| name.starts_with("cqrs-"));
    let gone: Vec<_> = ours.filter(|name| !written.contains(*name)).collect();
    assert!(gone.is_empty(), "headers that nobody writes: {gone:?}");
}
