//! Shared parts of the integration tests, which need the servers of `./scripts/brokers up`.

pub mod acl_kafka;
pub mod amqp;
pub mod amqp_frames;
pub mod consuming;
mod containers;
pub mod control;
pub mod database;
pub mod interop;
pub mod kafka;
pub mod kafka_wire;
pub mod log;
pub mod outbox;
pub mod peers;
pub mod postgres;
pub mod rights;
pub mod servers;
