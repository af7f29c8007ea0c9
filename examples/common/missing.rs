//! Stands in for a broker that this build has no feature for.

use std::convert::Infallible;
use std::sync::Arc;

use cqrs::prelude::*;
use cqrs_testkit::Probe;

use super::Fallible;

/// `--broker kafka` without the feature.
pub(crate) mod kafka {
    use super::*;

    /// There is none.
    pub(crate) struct Server(Infallible);

    pub(crate) async fn open() -> Fallible<(Arc<dyn Subscribe>, Server)> {
        Err("this build has no Kafka: add `--features kafka` before the `--`".into())
    }

    impl Server {
        pub(crate) async fn create(&self, _topic: String) -> Fallible<String> {
            match self.0 {}
        }

        pub(crate) async fn probe(&self, _topic: &str) -> Fallible<Probe> {
            match self.0 {}
        }

        pub(crate) async fn delete(&self, _topics: &[String], _group: &str) -> Fallible<()> {
            match self.0 {}
        }
    }
}

/// `--broker amqp` without the feature.
pub(crate) mod amqp {
    use super::*;

    /// There is none.
    pub(crate) struct Server(Infallible);

    pub(crate) async fn open() -> Fallible<(Arc<dyn Subscribe>, Server)> {
        Err("this build has no RabbitMQ: add `--features amqp` before the `--`".into())
    }

    impl Server {
        pub(crate) async fn probe(&self, _queue: &str) -> Fallible<Probe> {
            match self.0 {}
        }

        pub(crate) async fn delete(
            &self,
            _topics: &[String],
            _group: &str,
            _retry: &Retry,
        ) -> Fallible<()> {
            match self.0 {}
        }
    }
}
