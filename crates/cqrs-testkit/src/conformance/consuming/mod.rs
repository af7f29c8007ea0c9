//! The consuming half: [`Subscribe`](cqrs_core::Subscribe),
//! [`Source`](cqrs_core::consume::Source), [`Settle`](cqrs_core::consume::Settle), and what the
//! [`Service`](cqrs_core::Service) promises on top of them.

mod adjusted;
mod cases;
mod harness;
mod memory;
mod opened;
mod service;
mod stage;

pub use adjusted::Adjusted;
pub use harness::{ConsumingCapabilities, ConsumingFault, ConsumingHarness};
pub use memory::MemoryConsumingHarness;

/// Stamps one `#[test]` per case of the suite's consuming half. See the
/// [module](mod@crate::conformance).
#[macro_export]
macro_rules! consuming_conformance {
    ($harness:expr $(,)?) => {
        $crate::__consuming_cases!(__consuming_tests, $harness);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __consuming_tests {
    ($harness:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::conformance::block_on(async {
                    let harness = $harness;
                    $crate::conformance::run_consuming(stringify!($case), &harness).await;
                });
            }
        )*
    };
}

/// The one list of cases.
#[doc(hidden)]
#[macro_export]
macro_rules! __consuming_cases {
    ($callback:ident $(, $argument:expr)?) => {
        $crate::$callback! { $($argument)?;
            a_published_message_is_received_whole
            messages_of_a_key_come_in_order
            several_topics_are_one_subscription
            an_acked_message_does_not_come_again
            the_status_becomes_consuming
            a_group_begins_with_the_oldest_or_when_it_is_made
            a_group_that_begins_with_the_latest_gets_what_comes
            latest_group_has_a_place_before_its_first_message
            a_group_can_begin_at_a_time_or_is_told_that_it_cannot
            a_pattern_is_subscribed_to_or_refused
            every_group_gets_every_message
            members_of_a_group_share_the_messages
            a_group_that_is_away_misses_nothing
            a_dropped_delivery_comes_again
            what_is_unsettled_comes_again_after_a_crash
            what_is_unsettled_comes_again_after_a_close
            what_was_given_back_is_no_longer_ones_own
            no_more_are_out_than_the_cap
            a_stopped_source_hands_out_nothing_more
            close_ends_in_time
            close_ends_in_time_when_the_server_is_mute
            handled_messages_do_not_come_again
            a_message_whose_handler_did_not_end_comes_again
            keys_run_in_parallel_and_each_in_order
            a_busy_key_does_not_stall_the_others
            failed_messages_are_tried_again_by_the_schedule
            attempts_are_counted_over_restarts
            retry_delay_holds_over_restarts
            immediate_attempts_count_on_over_restarts
            a_retried_message_is_the_same_to_its_handler
            a_delayed_retry_holds_its_key_or_lets_it_pass
            a_message_that_fails_for_good_becomes_a_dead_letter
            a_permanent_failure_is_dead_at_once
            a_panic_is_a_failure_and_stops_nothing
            a_dead_letter_holds_the_message_as_it_came
            a_dead_letter_goes_where_it_is_told
            discarded_dead_letters_are_nowhere
            events_of_unknown_types_become_dead_letters
            undecodable_messages_can_be_skipped
            undecodable_messages_can_be_handed_over
            undecodable_messages_can_stop_the_service_and_stay
            empty_messages_are_skipped
            a_tombstone_is_told_from_an_empty_message
            manual_handlers_settle_by_themselves
            batches_are_handled_together
            a_poison_message_of_a_batch_is_dead_alone
            a_stop_finishes_what_runs_and_gives_back_the_rest
            a_stop_waits_no_longer_than_its_drain
            starts_that_came_to_no_end_are_counted
            an_outage_is_told_and_mended
            cuts_lose_nothing_and_keep_order
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __consuming_registry {
    (; $($case:ident)*) => {
        /// The names of all cases of the consuming half.
        pub const CONSUMING_CASES: &[&str] = &[$(stringify!($case)),*];

        /// Runs one case of the consuming half.
        ///
        /// # Panics
        /// When the broker fails it, and when there is no case of that name.
        pub async fn run_consuming<H: ConsumingHarness>(case: &str, harness: &H) {
            match case {
                $(stringify!($case) => cases::$case(harness).await,)*
                unknown => panic!("there is no case {unknown:?}"),
            }
        }
    };
}

crate::__consuming_cases!(__consuming_registry);
