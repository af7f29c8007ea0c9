//! Confluent's schema-registry framing, and a client of the registry.
