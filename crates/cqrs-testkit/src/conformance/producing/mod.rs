//! The producing half of the conformance suite: the list of its cases.

mod arrival;
mod errors;
mod fixture;
mod many;
mod order;
mod recovery;
mod shutdown;
mod window;

use arrival::*;
use errors::*;
use many::*;
use order::*;
use recovery::*;
use shutdown::*;
use window::*;

use super::harness::Harness;

/// The one list of producing cases.
#[doc(hidden)]
#[macro_export]
macro_rules! __producing_cases {
    ($callback:ident $(, $argument:expr)?) => {
        $crate::$callback! { $($argument)?;
            a_confirmed_message_arrives_byte_for_byte
            a_json_message_carries_what_is_declared
            a_bare_message_arrives_without_additions
            an_empty_body_arrives
            any_bytes_arrive
            a_large_body_arrives
            largest_message_arrives_and_larger_is_refused
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
            unroutable_message_is_an_error_unless_opted_out
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

crate::__producing_cases!(__conformance_registry);
