//! The conformance suite: the promises of every broker, as tests of the producing half of the contract,
//! [`MessageBroker`](cqrs_core::MessageBroker), and of the consuming half,
//! [`Subscribe`](cqrs_core::Subscribe), with the promises of the subscriber runtime on top of it.
//!
//! An author implements [`Harness`] for the broker and writes
//!
//! ```
//! use cqrs_testkit::conformance::MemoryHarness;
//!
//! cqrs_testkit::conformance!(MemoryHarness::new());
//! # fn main() {}
//! ```
//!
//! into a file of `tests/`. That makes one `#[test]` per case, named as in [`PRODUCING_CASES`] and
//! [`CONSUMING_CASES`]; the expression is evaluated once in each of them, on a tokio runtime with several
//! threads, and may `.await`. A case that takes longer than [`CASE_LIMIT`] fails.
//! `conformance!(producing: ...)` and `conformance!(consuming: ...)` make the tests of one half.
//!
//! The differences of brokers are declared in [`Capabilities`]. The names of the cases are the contract in
//! short.

mod adjusted;
mod consuming;
mod fixture;
mod harness;
mod memory;
mod producing;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

pub use adjusted::Adjusted;
pub use consuming::CASES as CONSUMING_CASES;
pub use harness::{Capabilities, Fault, Harness, Setup};
pub use memory::MemoryHarness;
pub use producing::CASES as PRODUCING_CASES;

/// No case takes longer.
pub const CASE_LIMIT: Duration = Duration::from_secs(180);

/// Makes one `#[test]` per case of the suite. See the [module](mod@crate::conformance).
#[macro_export]
macro_rules! conformance {
    (producing: $harness:expr $(,)?) => {
        $crate::__producing_cases!(__conformance_tests, $harness);
    };
    (consuming: $harness:expr $(,)?) => {
        $crate::__consuming_cases!(__conformance_tests, $harness);
    };
    ($harness:expr $(,)?) => {
        $crate::conformance!(producing: $harness);
        $crate::conformance!(consuming: $harness);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($harness:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::conformance::block_on(async {
                    let harness = $harness;
                    $crate::conformance::run(stringify!($case), &harness).await;
                });
            }
        )*
    };
}

/// Makes the list of names and the `run` of one half from its list of cases.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_registry {
    (; $($case:ident)*) => {
        /// The names of all cases of this half.
        pub const CASES: &[&str] = &[$(stringify!($case)),*];

        pub(super) async fn run<H: Harness>(case: &str, harness: &H) {
            match case {
                $(stringify!($case) => $case(harness).await,)*
                unknown => panic!("there is no case {unknown:?}"),
            }
        }
    };
}

/// Runs one case.
///
/// # Panics
/// When the broker fails it, and when there is no case of that name.
pub async fn run<H: Harness>(case: &str, harness: &H) {
    match PRODUCING_CASES.contains(&case) {
        true => producing::run(case, harness).await,
        false => consuming::run(case, harness).await,
    }
}

/// Runs a case on a runtime of its own.
#[doc(hidden)]
pub fn block_on(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a tokio runtime");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let in_time = tokio::time::timeout(CASE_LIMIT, case).await;
            in_time.unwrap_or_else(|_| panic!("the case hangs: not done after {CASE_LIMIT:?}"));
        });
    }));
    // A client's blocking thread must not keep a failed test from ending.
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome.unwrap_or_else(|panic| resume_unwind(panic));
}
