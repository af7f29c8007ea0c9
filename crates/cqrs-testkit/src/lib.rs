//! Test support for users of the `cqrs` framework and for authors of its brokers.
//!
//! * [`Probe`] reads back what a broker holds: of the in-memory broker always, of Kafka and RabbitMQ
//!   with the features `kafka` and `amqp`.
//! * [`conformance!`] runs the suite that every broker must pass.
//! * [`TestSource`] is a source that a test polls in the runtime's place.
//! * [`ServiceTester`] runs a service's own wiring in process: publish, wait until it is handled, assert.
//! * [`FaultProxy`] breaks TCP connections on demand.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod conformance;
pub mod probe;
mod proxy;
pub mod source;
mod tester;

pub use cqrs_core::consume::support::error_chain;
pub use probe::{Probe, ProbeError, StoredMessage};
pub use proxy::FaultProxy;
pub use source::TestSource;
pub use tester::{
    DeadLettered, Retried, RunningService, ServiceTester, TesterBroker, TesterError, TesterEvents,
};
