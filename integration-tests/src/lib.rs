//! What the integration tests share. They need the servers of `./scripts/brokers up`.

pub mod amqp;
mod containers;
pub mod kafka;
pub mod log;
pub mod servers;
