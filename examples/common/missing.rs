//! Stands in for a broker that this build has no feature for.
#![allow(dead_code)] // one of the two may be there

/// `--broker kafka` without the feature.
pub(crate) mod kafka {
    pub(crate) async fn open(
        _topic: String,
    ) -> Result<crate::common::Wire, Box<dyn std::error::Error>> {
        Err("this build has no Kafka: add `--features kafka` before the `--`".into())
    }
}

/// `--broker amqp` without the feature.
pub(crate) mod amqp {
    pub(crate) async fn open(
        _topic: String,
    ) -> Result<crate::common::Wire, Box<dyn std::error::Error>> {
        Err("this build has no RabbitMQ: add `--features amqp` before the `--`".into())
    }
}
