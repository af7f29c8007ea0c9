//! The in-memory broker under the conformance suite.

use cqrs_testkit::conformance;
use cqrs_testkit::conformance::MemoryHarness;

/// A topic without a group keeps its messages.
mod like_kafka {
    use super::*;

    conformance!(MemoryHarness::new());
}

/// A topic without a group is unroutable; the size is limited.
mod like_rabbitmq {
    use super::*;

    conformance!(MemoryHarness::strict());
}
