//! The raw clients, with the settings of ours and the same work for each message.

#[cfg(feature = "servers")]
pub(crate) mod amqp;
#[cfg(feature = "servers")]
pub(crate) mod kafka;
pub(crate) mod memory;
