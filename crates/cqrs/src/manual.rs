//! The programs of the manual, as doctests: every Rust snippet of these pages compiles, and most run.

macro_rules! pages {
    ($($name:ident = $page:literal,)+) => {
        $(
            #[doc = include_str!($page)]
            struct $name;
        )+
    };
}

pages! {
    Agents = "../../../AGENTS.md",
    Configuration = "../../../docs/how-to/configuration.md",
    Http = "../../../docs/how-to/http.md",
    Errors = "../../../docs/how-to/errors.md",
    Shutdown = "../../../docs/how-to/shutdown.md",
    Probes = "../../../docs/how-to/probes.md",
    Transactions = "../../../docs/how-to/transactions.md",
    Outbox = "../../../docs/how-to/outbox.md",
    Idempotency = "../../../docs/how-to/idempotency.md",
    DeadLetters = "../../../docs/how-to/dead-letters.md",
    Logging = "../../../docs/how-to/logging.md",
    Rabbitmq = "../../../docs/how-to/rabbitmq.md",
    Kafka = "../../../docs/how-to/kafka.md",
    Testing = "../../../docs/how-to/testing.md",
    PlainJson = "../../../docs/how-to/plain-json.md",
    Protobuf = "../../../docs/how-to/protobuf.md",
    Python = "../../../docs/how-to/python.md",
    BrokerCrate = "../../../docs/how-to/broker-crate.md",
    KafkaOptions = "../../../docs/reference/kafka.md",
    SubscriptionOptions = "../../../docs/reference/subscription.md",
    PythonNames = "../../../docs/reference/python.md",
    Wire = "../../../docs/reference/wire.md",
}

/// The programs of the guide, and that what it shows of `users.rs` is that file.
///
/// ```
/// let guide = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/from-python-cqrs.md"));
/// assert!(guide.contains(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/users.rs"))));
/// ```
///
#[doc = include_str!("../../../docs/from-python-cqrs.md")]
struct Guide;
