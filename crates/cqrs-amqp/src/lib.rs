//! cqrs-amqp
