//! cqrs-testkit
