//! Broken consumers, and the cases that each must fail.

mod flawed;
mod settle;
mod source;

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::Delayed;
use cqrs_core::{Message, MessageBrokerExt, Subscribe};
use cqrs_testkit::Probe;
use cqrs_testkit::conformance::{
    CONSUMING_CASES as CASES, Capabilities, Fault, Harness, MemoryHarness, Setup,
};
use tokio::sync::watch;

use flawed::{Connection, Flawed, TOMBSTONE};

struct FlawedHarness {
    memory: MemoryHarness,
    flaw: Flaw,
    connection: watch::Sender<Connection>,
}

impl FlawedHarness {
    fn new(flaw: Flaw) -> Self {
        Self { memory: MemoryHarness::new(), flaw, connection: watch::Sender::default() }
    }
}

impl Harness for FlawedHarness {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.memory.capabilities();
        capabilities.tombstones = true;
        capabilities.crashes = true;
        capabilities.cut = true;
        if self.flaw.is_scheduled() {
            capabilities.delayed = Delayed::Scheduled;
        }
        capabilities.timeout = Duration::from_secs(8);
        capabilities
    }

    async fn connect(&self, mut setup: Setup) -> Arc<dyn Subscribe> {
        // The faults of these cases are of the connection, which is simulated.
        setup.with_faults = false;
        let _sound = self.memory.connect(setup).await;
        Arc::new(Flawed::new(self.memory.broker(), self.flaw, self.connection.subscribe()))
    }

    async fn fresh_topic(&self) -> String {
        self.memory.fresh_topic().await
    }

    async fn probe(&self, topic: &str) -> Probe {
        self.memory.probe(topic).await
    }

    async fn dead_letters(&self, name: &str) -> Probe {
        self.memory.dead_letters(name).await
    }

    async fn publish_tombstone(&self, topic: &str, key: &str) {
        let mut message = Message::new(topic, "").with_key(key.to_owned());
        message.headers.insert(TOMBSTONE, "yes").unwrap();
        self.memory.broker().publish(message).await.unwrap();
    }

    async fn inject(&self, fault: Fault<'_>) {
        self.connection.send_modify(|connection| match fault {
            Fault::Cut => connection.cuts += 1,
            Fault::Disconnect => connection.is_down = true,
            Fault::Reconnect => connection.is_down = false,
            undeclared => panic!("{undeclared:?} is not declared"),
        });
    }
}

flaws! {
    None, NoneScheduled fails []
    AcksOnReceive fails [
        dropped_delivery_is_redelivered,
        message_of_unfinished_handler_is_redelivered,
        stop_finishes_running_and_returns_the_rest,
        stop_waits_no_longer_than_its_drain,
        attempts_are_counted_over_restarts,
        unfinished_starts_count_as_crashes,
        undecodable_message_stops_service_and_is_kept,
        unsettled_is_redelivered_after_a_close,
        unsettled_is_redelivered_after_a_crash,
        returned_delivery_is_revoked,
        retry_delay_holds_over_restarts,
        immediate_attempts_count_on_over_restarts,
    ]
    LosesDropped fails [
        dropped_delivery_is_redelivered,
        stop_finishes_running_and_returns_the_rest,
        stop_waits_no_longer_than_its_drain,
        attempts_are_counted_over_restarts,
        undecodable_message_stops_service_and_is_kept,
        retry_delay_holds_over_restarts,
        immediate_attempts_count_on_over_restarts,
    ]
    LosesOnCrash fails [
        message_of_unfinished_handler_is_redelivered,
        unfinished_starts_count_as_crashes,
        unsettled_is_redelivered_after_a_close,
        unsettled_is_redelivered_after_a_crash,
        returned_delivery_is_revoked,
    ]
    RedeliversAcked fails [
        cuts_lose_nothing_and_keep_order,
        handled_messages_are_not_redelivered,
        keys_run_in_parallel_and_each_in_order,
        members_of_a_group_share_the_messages,
    ]
    ReordersKey fails [
        cuts_lose_nothing_and_keep_order,
        every_group_gets_every_message,
        handled_messages_are_not_redelivered,
        keys_run_in_parallel_and_each_in_order,
        messages_of_a_key_are_received_in_order,
        messages_fetched_together_are_in_order,
    ]
    ReversesFullFetch fails [messages_fetched_together_are_in_order]
    IgnoresRoom fails [messages_of_a_key_are_received_in_order, messages_fetched_together_are_in_order]
    IgnoresCap fails [in_flight_stays_within_the_cap]
    ForgetsHeaders fails [
        dead_letter_keeps_the_message_unchanged,
        a_published_message_is_received_whole,
        a_retried_message_is_the_same_to_its_handler,
    ]
    ForgetsKey fails [
        a_busy_key_does_not_stall_the_others,
        dead_letter_goes_to_the_named_target,
        dead_letter_keeps_the_message_unchanged,
        a_delayed_retry_holds_its_key_or_lets_it_pass,
        a_published_message_is_received_whole,
        cuts_lose_nothing_and_keep_order,
        keys_run_in_parallel_and_each_in_order,
        messages_of_a_key_are_received_in_order,
        messages_fetched_together_are_in_order,
        a_retried_message_is_the_same_to_its_handler,
    ]
    HidesRedelivery fails [
        dropped_delivery_is_redelivered,
        unsettled_is_redelivered_after_a_close,
        unsettled_is_redelivered_after_a_crash,
    ]
    SkipsEmpty fails [tombstone_differs_from_an_empty_message, empty_messages_are_skipped]
    TombstoneIsEmpty fails [tombstone_differs_from_an_empty_message]
    IgnoresEarliest fails [
        event_is_published_before_its_cause_is_acked,
        new_group_starts_at_earliest_or_at_its_creation,
        start_time_works_or_is_unsupported,
    ]
    IgnoresLatest fails [
        latest_group_receives_only_new_messages,
        latest_group_has_a_position_before_first_message,
        start_time_works_or_is_unsupported,
    ]
    ForgetsUnusedGroup fails [
        latest_group_receives_only_new_messages,
        latest_group_has_a_position_before_first_message,
    ]
    ChecksNothing fails [pattern_works_or_is_unsupported]
    FirstTopicOnly fails [several_topics_are_one_subscription]
    GroupsShare fails [
        latest_group_receives_only_new_messages,
        every_group_gets_every_message,
        latest_group_has_a_position_before_first_message,
        start_time_works_or_is_unsupported,
    ]
    MembersCopy fails [members_of_a_group_share_the_messages]
    BeginLies fails [unfinished_starts_count_as_crashes, returned_delivery_is_revoked]
    StopKeepsDelivering fails [stopped_source_delivers_nothing]
    CloseHangs fails [
        close_ends_in_time,
        unsettled_is_redelivered_after_a_close,
        returned_delivery_is_revoked,
    ]
    HidesOutage fails [outage_is_reported_and_recovered_from]
    StaysDisconnected, LosesOnCut fails [
        outage_is_reported_and_recovered_from,
        cuts_lose_nothing_and_keep_order,
    ]
    DeadLetterNotWritten, DeadLetterHasNoReason fails [
        dead_letter_goes_to_the_named_target,
        dead_letter_keeps_the_message_unchanged,
        exhausted_message_becomes_a_dead_letter,
        panic_is_a_failure_and_stops_nothing,
        permanent_failure_is_dead_lettered_at_once,
        poison_message_of_a_batch_is_dead_lettered_alone,
        attempts_are_counted_over_restarts,
        events_of_unknown_types_become_dead_letters,
        manual_handlers_settle_by_themselves,
        a_retried_message_is_the_same_to_its_handler,
    ]
    DeadLetterBodyChanged fails [dead_letter_keeps_the_message_unchanged]
    DeadLetterKeyLost fails [
        dead_letter_goes_to_the_named_target,
        dead_letter_keeps_the_message_unchanged,
        a_retried_message_is_the_same_to_its_handler,
    ]
    DeadLetterHeadersLost fails [
        dead_letter_keeps_the_message_unchanged,
        a_retried_message_is_the_same_to_its_handler,
    ]
    DeadLetterAttemptsLost fails [
        exhausted_message_becomes_a_dead_letter,
        panic_is_a_failure_and_stops_nothing,
        permanent_failure_is_dead_lettered_at_once,
        poison_message_of_a_batch_is_dead_lettered_alone,
        attempts_are_counted_over_restarts,
        manual_handlers_settle_by_themselves,
        a_retried_message_is_the_same_to_its_handler,
    ]
    IgnoresDeadLetterName fails [dead_letter_goes_to_the_named_target]
    HoldForgetsAttempts fails [attempts_are_counted_over_restarts, retry_delay_holds_over_restarts]
    RetryForgetsAttempts, RetryNeverComes fails [
        a_delayed_retry_holds_its_key_or_lets_it_pass,
        exhausted_message_becomes_a_dead_letter,
        attempts_are_counted_over_restarts,
        failed_messages_are_retried_by_the_schedule,
        manual_handlers_settle_by_themselves,
        a_retried_message_is_the_same_to_its_handler,
        retry_delay_holds_over_restarts,
    ]
    RetryTooEarly fails [
        a_delayed_retry_holds_its_key_or_lets_it_pass,
        exhausted_message_becomes_a_dead_letter,
        attempts_are_counted_over_restarts,
        failed_messages_are_retried_by_the_schedule,
        retry_delay_holds_over_restarts,
    ]
    RetryHolds fails [a_delayed_retry_holds_its_key_or_lets_it_pass]
    RetryLeavesHeaders fails [a_retried_message_is_the_same_to_its_handler]
    ForgetsCrashes fails [unfinished_starts_count_as_crashes]
    ForgetsFailedAttempts fails [immediate_attempts_count_on_over_restarts]
    ForgetsLastFailure fails [retry_delay_holds_over_restarts]
}
