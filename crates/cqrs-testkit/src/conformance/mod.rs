//! What every broker must do, as tests: the producing half of the contract,
//! [`MessageBroker`](cqrs_core::MessageBroker), and the consuming half,
//! [`Subscribe`](cqrs_core::Subscribe), with what the subscriber runtime promises on top of it.
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
//! into a file of `tests/`. That makes one `#[test]` per case, named as in [`CASES`]; the expression is
//! evaluated once in each of them, on a tokio runtime with several threads, and may `.await`. A case
//! that takes longer than [`CASE_LIMIT`] fails.
//!
//! The consuming half is stamped in the same way by [`consuming_conformance!`](crate::consuming_conformance)
//! from a [`ConsumingHarness`]; its cases are the [`CONSUMING_CASES`].
//!
//! What brokers differ in is declared in [`Capabilities`] and [`ConsumingCapabilities`]; what is not
//! declared must be as documented there, which is tested too. The names of the cases are the contract in short.

mod cases;
mod consuming;
mod harness;
mod memory;
mod stage;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

pub use consuming::{
    Adjusted, CONSUMING_CASES, ConsumingCapabilities, ConsumingFault, ConsumingHarness,
    MemoryConsumingHarness, run_consuming,
};
pub use harness::{Capabilities, Fault, Harness, Setup};
pub use memory::MemoryHarness;

/// No case takes longer.
pub const CASE_LIMIT: Duration = Duration::from_secs(180);

/// Stamps one `#[test]` per case of the suite. See the [module](mod@crate::conformance).
#[macro_export]
macro_rules! conformance {
    ($harness:expr $(,)?) => {
        $crate::__conformance_cases!(__conformance_tests, $harness);
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

/// The one list of cases.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ($callback:ident $(, $argument:expr)?) => {
        $crate::$callback! { $($argument)?;
            a_confirmed_message_arrives_byte_for_byte
            a_json_message_carries_what_is_declared
            a_bare_message_arrives_without_additions
            an_empty_body_arrives
            any_bytes_arrive
            a_large_body_arrives
            the_largest_message_arrives_and_a_larger_one_is_refused
            an_id_is_kept_when_published_again
            confirmations_name_the_place
            dropped_receipts_still_arrive
            ten_thousand_messages_arrive_exactly_once
            order_holds_without_awaiting_receipts
            order_holds_across_64_tasks
            order_holds_when_enqueue_waits
            a_full_window_makes_enqueue_wait
            a_full_byte_window_makes_enqueue_wait
            a_message_larger_than_the_byte_window_goes_alone
            a_cancelled_enqueue_sends_nothing
            no_publish_outlives_its_deadline
            an_unroutable_message_is_an_error_and_the_opt_out_is_not
            an_invalid_topic_is_refused
            every_error_gives_the_message_back
            the_state_becomes_ready
            shutdown_flushes_then_refuses
            shutdown_reports_what_was_not_delivered
            cuts_lose_nothing_confirmed_and_keep_order
            a_restart_loses_nothing_confirmed
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_registry {
    (; $($case:ident)*) => {
        /// The names of all cases.
        pub const CASES: &[&str] = &[$(stringify!($case)),*];

        /// Runs one case.
        ///
        /// # Panics
        /// When the broker fails it, and when there is no case of that name.
        pub async fn run<H: Harness>(case: &str, harness: &H) {
            match case {
                $(stringify!($case) => cases::$case(harness).await,)*
                unknown => panic!("there is no case {unknown:?}"),
            }
        }
    };
}

crate::__conformance_cases!(__conformance_registry);

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
