//! The consuming half of the conformance suite: the list of its cases.

mod batches;
mod dead_letters;
mod decoding;
mod draining;
mod groups;
mod handling;
mod manual;
mod receiving;
mod recovery;
mod retries;
mod returning;
mod service;
mod starts;
mod stopping;

use batches::*;
use dead_letters::*;
use decoding::*;
use draining::*;
use groups::*;
use handling::*;
use manual::*;
use receiving::*;
use recovery::*;
use retries::*;
use returning::*;
use starts::*;
use stopping::*;

use super::harness::Harness;

/// The one list of consuming cases.
#[doc(hidden)]
#[macro_export]
macro_rules! __consuming_cases {
    ($callback:ident $(, $argument:expr)?) => {
        $crate::$callback! { $($argument)?;
            a_published_message_is_received_whole
            messages_of_a_key_are_received_in_order
            messages_fetched_together_are_in_order
            several_topics_are_one_subscription
            acked_message_is_not_redelivered
            the_status_becomes_consuming
            new_group_starts_at_earliest_or_at_its_creation
            latest_group_receives_only_new_messages
            latest_group_has_a_position_before_first_message
            start_time_works_or_is_unsupported
            pattern_works_or_is_unsupported
            every_group_gets_every_message
            members_of_a_group_share_the_messages
            absent_group_misses_nothing
            dropped_delivery_is_redelivered
            unsettled_is_redelivered_after_a_crash
            unsettled_is_redelivered_after_a_close
            returned_delivery_is_revoked
            in_flight_stays_within_the_cap
            stopped_source_delivers_nothing
            close_ends_in_time
            close_ends_in_time_when_the_server_hangs
            handled_messages_are_not_redelivered
            message_of_unfinished_handler_is_redelivered
            keys_run_in_parallel_and_each_in_order
            a_busy_key_does_not_stall_the_others
            event_is_published_before_its_cause_is_acked
            failed_messages_are_retried_by_the_schedule
            attempts_are_counted_over_restarts
            retry_delay_holds_over_restarts
            immediate_attempts_count_on_over_restarts
            a_retried_message_is_the_same_to_its_handler
            a_delayed_retry_holds_its_key_or_lets_it_pass
            exhausted_message_becomes_a_dead_letter
            permanent_failure_is_dead_lettered_at_once
            panic_is_a_failure_and_stops_nothing
            dead_letter_keeps_the_message_unchanged
            dead_letter_goes_to_the_named_target
            discarded_dead_letters_are_not_stored
            events_of_unknown_types_become_dead_letters
            undecodable_messages_can_be_skipped
            undecodable_messages_can_be_handled
            undecodable_message_stops_service_and_is_kept
            empty_messages_are_skipped
            tombstone_differs_from_an_empty_message
            manual_handlers_settle_by_themselves
            batches_are_handled_together
            poison_message_of_a_batch_is_dead_lettered_alone
            stop_finishes_running_and_returns_the_rest
            stop_waits_no_longer_than_its_drain
            unfinished_starts_count_as_crashes
            outage_is_reported_and_recovered_from
            cuts_lose_nothing_and_keep_order
        }
    };
}

crate::__consuming_cases!(__conformance_registry);
