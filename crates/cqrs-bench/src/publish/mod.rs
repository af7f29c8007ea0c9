//! `publish-kafka` and `publish-amqp`: publishing with a window of unconfirmed messages, against the raw clients.

mod amqp;
mod kafka;
mod load;

pub(crate) use self::amqp::{config as amqp_config, run as amqp};
pub(crate) use self::kafka::run as kafka;
pub(crate) use self::load::{Load, Ours, Publisher, WINDOW};

pub(crate) fn tasks(count: usize) -> String {
    format!("{count} task{}", if count == 1 { "" } else { "s" })
}
