//! Tests of consuming while consumers, handlers and servers fail.

use integration_tests::consuming::cases::{
    bad, crashes, delays, kills, members, memory, order, outages,
};
use integration_tests::consuming::work::Kind;

use crate::{KAFKA, RABBITMQ, WORKER};

macro_rules! test {
    ($name:ident: $server:ident.$with:ident, $case:expr) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let _server = $server.$with().await;
            $case.await;
        }
    };
}

/// Tests by their names: with `read` beside others of their broker, with `write` alone.
///
/// A name begins with that of the case. So Kafka's tests run while RabbitMQ's wait for each other.
macro_rules! on_both_brokers {
    ($($name:ident: $with:ident, $case:path $(, $more:expr)*;)*) => {$(
        mod $name {
            use super::*;

            test!(amqp: RABBITMQ.$with, $case(Kind::Amqp, WORKER $(, $more)*));
            test!(kafka: KAFKA.$with, $case(Kind::Kafka, WORKER $(, $more)*));
        }
    )*};
}

on_both_brokers! {
    a_killed_consumer_loses_nothing: read, kills::killed;
    stopped_consumer_repeats_nothing: read, kills::terminated, 1_000;
    stopped_consumer_with_busy_keys_repeats_nothing: read, kills::terminated, 50;
    handlers_past_the_drain_are_cut_and_redelivered: read, kills::overdue;
    only_finished_messages_are_settled_in_key_order: read, order::audited;
    one_poison_message_becomes_one_dead_letter: read, bad::poison;
    panics_become_dead_letters_and_end_nothing: read, bad::panics;
    undecodable_message_follows_its_policy: read, bad::undecodable;
    a_killed_server_loses_nothing: write, outages::server_killed;
    ack_waits_until_its_dead_letter_is_stored: read, outages::no_place_for_dead_letters;
    delayed_retries_hold_over_a_server_restart: write, delays::server_restarts;
    attempts_are_counted_over_restarts_of_the_consumer: read, delays::attempts_travel;
    a_backlog_does_not_fill_the_memory: write, memory::backlog;
    message_that_kills_the_process_is_dead_lettered: read, crashes::aborts;
    five_kills_dead_letter_no_message: read, crashes::killed_five_times;
}

mod amqp {
    use super::*;

    test!(a_memory_alarm_stops_publishers_alone: RABBITMQ.write, outages::memory_alarm(WORKER));
}

mod kafka {
    use super::*;

    test!(only_messages_that_kill_are_dead_lettered: KAFKA.read, crashes::several_abort(WORKER));
    test!(
        killed_or_stopped_consumer_condemns_nothing:
            KAFKA.read, crashes::ends_condemn_nothing(WORKER)
    );
    test!(one_kill_slows_nothing: KAFKA.read, crashes::one_kill_slows_nothing(WORKER));
    test!(short_lives_condemn_nothing: KAFKA.read, crashes::short_lives_condemn_nothing(WORKER));
    test!(members_come_and_go: KAFKA.read, members::change(WORKER));
    test!(a_slow_handler_keeps_its_partition: KAFKA.read, members::slow_handler(WORKER, false));
    test!(
        slow_handler_of_a_moved_partition_runs_again: KAFKA.read, members::slow_handler(WORKER, true)
    );

    /// Measures, so nothing runs beside it.
    #[tokio::test(flavor = "multi_thread")]
    async fn keys_are_handled_at_the_same_time() {
        let _servers = (KAFKA.write().await, RABBITMQ.write().await);
        order::speed_up(Kind::Kafka, WORKER).await;
    }
}
