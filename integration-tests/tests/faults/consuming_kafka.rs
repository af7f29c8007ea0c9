//! Consuming from Kafka while consumers, handlers and the server fail.

use integration_tests::consuming::cases::{
    bad, crashes, delays, kills, members, memory, order, outages,
};
use integration_tests::consuming::work::Kind;

use crate::{SERVERS, WORKER};

const KIND: Kind = Kind::Kafka;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_consumer_loses_nothing() {
    let _shared = SERVERS.read().await;
    kills::killed(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_asked_to_end_repeats_nothing() {
    let _shared = SERVERS.read().await;
    kills::terminated(KIND, WORKER, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_with_busy_keys_that_is_asked_to_end_repeats_nothing() {
    let _shared = SERVERS.read().await;
    kills::terminated(KIND, WORKER, 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_over_the_drain_are_cut_off_and_come_back() {
    let _shared = SERVERS.read().await;
    kills::overdue(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_unfinished_is_settled_and_keys_keep_their_order() {
    let _shared = SERVERS.read().await;
    order::audited(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_handled_at_the_same_time() {
    let _alone = SERVERS.write().await;
    order::speed_up(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_poison_message_becomes_one_dead_letter() {
    let _shared = SERVERS.read().await;
    bad::poison(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panics_become_dead_letters_and_end_nothing() {
    let _shared = SERVERS.read().await;
    bad::panics(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_goes_by_its_policy() {
    let _shared = SERVERS.read().await;
    bad::undecodable(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing() {
    let _alone = SERVERS.write().await;
    outages::server_killed(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_settled_before_its_dead_letter_is_stored() {
    let _shared = SERVERS.read().await;
    outages::no_place_for_dead_letters(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_retries_are_never_early_and_survive_a_restart_of_the_server() {
    let _alone = SERVERS.write().await;
    delays::server_restarts(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_over_restarts_of_the_consumer() {
    let _shared = SERVERS.read().await;
    delays::attempts_travel(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_does_not_fill_the_memory() {
    let _alone = SERVERS.write().await;
    memory::backlog(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_ends_the_process_becomes_a_dead_letter() {
    let _shared = SERVERS.read().await;
    crashes::aborts(KIND, WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_end_the_process_are_told_apart_from_the_others() {
    let _shared = SERVERS.read().await;
    crashes::several_abort(WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_or_stopped_consumer_accuses_no_message() {
    let _shared = SERVERS.read().await;
    crashes::ends_accuse_nobody(WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let _shared = SERVERS.read().await;
    members::change(WORKER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handler_keeps_its_partition() {
    let _shared = SERVERS.read().await;
    members::slow_handler(WORKER, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handler_whose_partition_moves_is_run_again_there() {
    let _shared = SERVERS.read().await;
    members::slow_handler(WORKER, true).await;
}
