//! Test support for users of the `cqrs` framework and for authors of its brokers.
//!
//! * [`Probe`] reads back what a broker holds: of the in-memory broker always, of Kafka and RabbitMQ
//!   with the features `kafka` and `amqp`.
//! * [`conformance!`] and [`consuming_conformance!`] run the suite that every broker must pass.
//! * [`ServiceTester`] runs a service's own wiring in process: publish, wait until it is handled, assert.
//! * [`FaultProxy`] breaks TCP connections on demand.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod conformance;
pub mod probe;
mod proxy;
mod tester;

pub use probe::{Probe, ProbeError, Received};
pub use proxy::FaultProxy;
pub use tester::{DeadLettered, Retried, RunningService, ServiceTester, TesterBroker, TesterError};
