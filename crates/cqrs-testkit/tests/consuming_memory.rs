//! The in-memory broker under the consuming half of the conformance suite.

use cqrs_testkit::conformance::MemoryConsumingHarness;
use cqrs_testkit::consuming_conformance;

/// A key waits for its retries.
mod like_kafka {
    use super::*;

    consuming_conformance!(MemoryConsumingHarness::new());
}

/// A message that waits for its retry waits aside.
mod like_rabbitmq {
    use super::*;

    consuming_conformance!(MemoryConsumingHarness::scheduled());
}
