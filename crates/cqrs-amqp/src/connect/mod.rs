//! From settings to open channels: dialling, the pool of connections, and their topology.
//!
//! One [`Connector`] serves one purpose (publishing; one subscription; its retry copies and dead
//! letters), so that these never share a connection.

mod backoff;
mod connection;
mod connector;
mod dial;
mod frame_filter;
mod pool;
mod socket;
pub(crate) mod topology;

pub(crate) use connection::{Connection, Health};
pub(crate) use connector::{Connector, Link};
