//! cqrs-kafka
