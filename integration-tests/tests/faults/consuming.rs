//! Tests of consuming while consumers, handlers and servers fail.

use integration_tests::consuming::cases::{
    bad, crashes, delays, kills, members, memory, order, outages,
};
use integration_tests::consuming::work::Kind;

use crate::{SERVERS, WORKER};

/// Tests by their names: with `read` beside others, with `write` alone.
macro_rules! tests {
    ($($name:ident: $with:ident, $case:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let _servers = SERVERS.$with().await;
            $case.await;
        }
    )*};
}

/// The tests of both brokers.
macro_rules! tests_of_both {
    ($kind:expr) => {
        tests! {
            a_killed_consumer_loses_nothing: read, kills::killed($kind, WORKER);
            stopped_consumer_repeats_nothing:
                read, kills::terminated($kind, WORKER, 1_000);
            stopped_consumer_with_busy_keys_repeats_nothing:
                read, kills::terminated($kind, WORKER, 50);
            handlers_past_the_drain_are_cut_and_redelivered: read, kills::overdue($kind, WORKER);
            only_finished_messages_are_settled_in_key_order:
                read, order::audited($kind, WORKER);
            one_poison_message_becomes_one_dead_letter: read, bad::poison($kind, WORKER);
            panics_become_dead_letters_and_end_nothing: read, bad::panics($kind, WORKER);
            undecodable_message_follows_its_policy: read, bad::undecodable($kind, WORKER);
            a_killed_server_loses_nothing: write, outages::server_killed($kind, WORKER);
            ack_waits_until_its_dead_letter_is_stored:
                read, outages::no_place_for_dead_letters($kind, WORKER);
            delayed_retries_hold_over_a_server_restart:
                write, delays::server_restarts($kind, WORKER);
            attempts_are_counted_over_restarts_of_the_consumer:
                read, delays::attempts_travel($kind, WORKER);
            a_backlog_does_not_fill_the_memory: write, memory::backlog($kind, WORKER);
            message_that_kills_the_process_is_dead_lettered:
                read, crashes::aborts($kind, WORKER);
        }
    };
}

mod kafka {
    use super::*;

    tests_of_both!(Kind::Kafka);

    tests! {
        keys_are_handled_at_the_same_time: write, order::speed_up(Kind::Kafka, WORKER);
        only_messages_that_kill_are_dead_lettered:
            read, crashes::several_abort(WORKER);
        killed_or_stopped_consumer_condemns_nothing: read, crashes::ends_condemn_nothing(WORKER);
        one_kill_slows_nothing: read, crashes::one_kill_slows_nothing(WORKER);
        five_kills_dead_letter_no_message:
            read, crashes::killed_five_times(Kind::Kafka, WORKER);
        short_lives_condemn_nothing: read, crashes::short_lives_condemn_nothing(WORKER);
        members_come_and_go: read, members::change(WORKER);
        a_slow_handler_keeps_its_partition: read, members::slow_handler(WORKER, false);
        slow_handler_of_a_moved_partition_runs_again:
            read, members::slow_handler(WORKER, true);
    }
}

mod amqp {
    use super::*;

    tests_of_both!(Kind::Amqp);

    tests! {
        a_memory_alarm_stops_publishers_alone: write, outages::memory_alarm(WORKER);
        five_kills_dead_letter_no_message: read, crashes::killed_five_times(Kind::Amqp, WORKER);
    }
}
