//! The in-memory broker under the conformance suite.

use cqrs_testkit::conformance;
use cqrs_testkit::conformance::MemoryHarness;

/// A topic without a group keeps its messages; a key waits for its retries.
mod like_kafka {
    use super::*;

    conformance!(MemoryHarness::new());
}

/// A topic without a group is unroutable; the size is limited; a retry is a scheduled copy.
mod like_rabbitmq {
    use super::*;

    conformance!(producing: MemoryHarness::strict());
    conformance!(consuming: MemoryHarness::scheduled());
}
