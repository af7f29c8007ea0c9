//! Open channels on a pool of connections, and their topology; used by the producer and the consumer.
//!
//! One [`Connector`] serves one purpose (publishing; one subscription; its retry copies and dead
//! letters), so that these never share a connection.

mod backoff;
mod confirm_channel;
mod connection;
mod connector;
mod dial;
mod frame_filter;
mod pool;
mod socket;
pub(crate) mod topology;

pub(crate) use confirm_channel::{Answer, ConfirmChannel, ConfirmChannels, Returned};
pub(crate) use connection::{Connection, Health, lost};
pub(crate) use connector::{Connector, PooledChannel};
