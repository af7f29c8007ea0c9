//! Picks the broker that an example publishes to: `--broker memory | kafka | amqp`.

#[cfg(feature = "amqp")]
mod amqp;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(any(not(feature = "kafka"), not(feature = "amqp")))]
mod missing;

#[cfg(not(feature = "amqp"))]
use missing::amqp;
#[cfg(not(feature = "kafka"))]
use missing::kafka;

use std::error::Error;
use std::sync::Arc;

use cqrs::{MemoryBroker, MessageBroker};
use cqrs_testkit::Probe;

/// A broker, a topic of this run's own, and a probe that reads the topic back.
pub(crate) struct Wire {
    pub(crate) name: &'static str,
    pub(crate) broker: Arc<dyn MessageBroker>,
    pub(crate) topic: String,
    pub(crate) probe: Probe,
}

impl Wire {
    /// Opens what the command line asks for; the in-memory broker by default.
    pub(crate) async fn open(topic: &str) -> Result<Self, Box<dyn Error>> {
        // A run on a real broker must not see what an earlier one left behind.
        let own = format!("{topic}.{}", std::process::id());
        match wanted()?.as_str() {
            "memory" => {
                let broker = MemoryBroker::new();
                let probe = Probe::memory(&broker, topic);
                let (name, topic) = ("the in-memory broker", topic.to_owned());
                Ok(Self { name, broker: Arc::new(broker), topic, probe })
            }
            "kafka" => kafka::open(own).await,
            "amqp" => amqp::open(own).await,
            other => Err(format!("no broker {other:?}: use memory, kafka or amqp").into()),
        }
    }
}

fn wanted() -> Result<String, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, ..) => Ok("memory".to_owned()),
        (Some("--broker"), Some(broker), None) => Ok(broker),
        _ => Err("usage: [--broker memory|kafka|amqp]".into()),
    }
}
