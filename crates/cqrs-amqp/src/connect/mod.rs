//! From settings to open channels: dialling, the pool of connections, and their topology.
//!
//! One [`Connector`] serves one purpose (publishing; consuming will have its own), so the two never
//! share a connection.

mod backoff;
mod connection;
mod connector;
mod dial;
mod pool;
mod socket;
mod topology;

pub(crate) use connection::{Connection, Health};
pub(crate) use connector::{Connector, Link};
