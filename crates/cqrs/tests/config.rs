//! Checks that settings with one name have one form and one meaning for every client.

use std::time::Duration;

use cqrs::amqp::AmqpConfig;
use cqrs::kafka::KafkaConfig;
use cqrs::schema_registry::RegistryConfig;

/// The part of a file that may stand in the table of any client.
const SHARED: &str = "
    [reconnect]
    initial = '250ms'
    max = '1m 30s'
    [tls]
    ca = '/ca.pem'
    client_certificate = '/client.pem'
    client_key = '/client.key'
    client_key_password = 'hush'
";
const OF_BROKERS: &str = "
    publish_timeout = '15s'
    window_messages = 5
    window_bytes = 6
    max_message_size = 7
";

#[test]
fn one_text_sets_every_client() {
    let broker = format!("{OF_BROKERS}{SHARED}");
    let kafka: KafkaConfig = toml::from_str(&broker).unwrap();
    let amqp: AmqpConfig = toml::from_str(&broker).unwrap();
    let registry: RegistryConfig = toml::from_str(SHARED).unwrap();
    assert_eq!(kafka.tls.client_key_password, Some("hush".into()));
    assert_eq!((&kafka.tls, &kafka.tls), (&amqp.tls, &registry.tls));
    assert_eq!(kafka.reconnect.initial, Duration::from_millis(250));
    assert_eq!((kafka.reconnect, kafka.reconnect), (amqp.reconnect, registry.reconnect));
    assert_eq!(kafka.publish_timeout, Duration::from_secs(15));
    assert_eq!(kafka.publish_timeout, amqp.publish_timeout);
    let sizes = (5, 6, 7);
    assert_eq!((kafka.window_messages, kafka.window_bytes, kafka.max_message_size), sizes);
    assert_eq!((amqp.window_messages, amqp.window_bytes, amqp.max_message_size), sizes);
}

#[test]
fn number_is_no_duration_for_any_client() {
    for setting in ["publish_timeout = 30", "reconnect.max = 30", "reconnect.max = '30'"] {
        let kafka = toml::from_str::<KafkaConfig>(setting).unwrap_err();
        let amqp = toml::from_str::<AmqpConfig>(setting).unwrap_err();
        assert_eq!(kafka.message(), amqp.message());
        assert!(kafka.message().contains("write \"30s\" or \"250ms\""), "{kafka}");
    }
    let registry = toml::from_str::<RegistryConfig>("timeout = 30").unwrap_err();
    assert!(registry.message().contains("without a unit"), "{registry}");
}

#[test]
fn every_form_of_address_is_accepted() {
    let one = String::from("a:9092, b:9092");
    let list = vec!["a:9092".to_owned(), "b:9092".to_owned()];
    for config in [
        KafkaConfig::new(&one),
        KafkaConfig::new(&*one),
        KafkaConfig::new(&list),
        KafkaConfig::new(&list[..]),
        KafkaConfig::new(["a:9092", "b:9092"]),
        KafkaConfig::new(one),
    ] {
        assert_eq!(config.bootstrap_servers, list);
    }
    let dsn = String::from("amqp://h/v");
    assert_eq!(AmqpConfig::new(&dsn), AmqpConfig::new(dsn));
    assert_eq!(RegistryConfig::new("http://a, http://b").urls, ["http://a", "http://b"]);
}
