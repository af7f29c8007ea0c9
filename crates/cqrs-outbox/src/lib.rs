//! Transactional outbox and inbox of the cqrs framework, on sqlx.
