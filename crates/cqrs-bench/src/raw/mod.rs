//! The raw clients, with the settings of ours and the same work for each message.

pub(crate) mod amqp;
pub(crate) mod kafka;
pub(crate) mod memory;
