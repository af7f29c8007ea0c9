//! The consuming half itself under test: broken brokers must fail their cases, and no others.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod flawed_source;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::Delayed;
use cqrs_core::{Message, MessageBrokerExt, Subscribe};
use cqrs_testkit::Probe;
use cqrs_testkit::conformance::{
    CONSUMING_CASES, ConsumingCapabilities, ConsumingFault, ConsumingHarness,
    MemoryConsumingHarness, block_on, run_consuming,
};
use flawed_source::{Flaw, Flawed, Link, TOMBSTONE};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

struct FlawedHarness {
    memory: MemoryConsumingHarness,
    flaw: Flaw,
    link: watch::Sender<Link>,
}

impl FlawedHarness {
    fn new(flaw: Flaw) -> Self {
        Self { memory: MemoryConsumingHarness::new(), flaw, link: watch::Sender::default() }
    }
}

impl ConsumingHarness for FlawedHarness {
    fn capabilities(&self) -> ConsumingCapabilities {
        let mut capabilities = self.memory.capabilities();
        capabilities.tombstones = true;
        capabilities.crashes = true;
        capabilities.cut = true;
        if self.flaw.is_scheduled() {
            capabilities.delayed = Delayed::Scheduled;
        }
        capabilities.patience = Duration::from_secs(8);
        capabilities
    }

    async fn connect(&self, with_faults: bool) -> Arc<dyn Subscribe> {
        let _sound = self.memory.connect(with_faults).await;
        Arc::new(Flawed::new(self.memory.broker(), self.flaw, self.link.subscribe()))
    }

    async fn fresh_topic(&self) -> String {
        self.memory.fresh_topic().await
    }

    async fn dead_letters(&self, name: &str) -> Probe {
        self.memory.dead_letters(name).await
    }

    async fn publish_tombstone(&self, topic: &str, key: &str) {
        let mut message = Message::new(topic, "").with_key(key.to_owned());
        message.headers.insert(TOMBSTONE, "yes").unwrap();
        self.memory.broker().publish(message).await.unwrap();
    }

    async fn inject(&self, fault: ConsumingFault) {
        self.link.send_modify(|link| match fault {
            ConsumingFault::Cut => link.cuts += 1,
            ConsumingFault::Away => link.away = true,
            ConsumingFault::Back => link.away = false,
            undeclared => panic!("{undeclared:?} is not declared"),
        });
    }
}

fn names(cases: &BTreeSet<&'static str>) -> String {
    cases.iter().map(|case| format!("\n    {case}")).collect()
}

/// All flaws in one test: the cases mostly wait, so that many can run at once.
fn check(flaws: &[(Flaw, &[&'static str])]) {
    let tested: Vec<_> = flaws.iter().map(|(flaw, _)| *flaw).collect();
    assert_eq!(tested, Flaw::ALL);
    let mut failed: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); flaws.len()];
    block_on(async {
        let at_once = Arc::new(Semaphore::new(64));
        let mut cases = JoinSet::new();
        for (at, &(flaw, _)) in flaws.iter().enumerate() {
            for &case in CONSUMING_CASES {
                let at_once = Arc::clone(&at_once);
                cases.spawn(async move {
                    let _permit = at_once.acquire().await.unwrap();
                    let harness = FlawedHarness::new(flaw);
                    let outcome = tokio::spawn(async move { run_consuming(case, &harness).await });
                    (at, case, outcome.await.is_err())
                });
            }
        }
        while let Some(case) = cases.join_next().await {
            let (at, case, has_failed) = case.unwrap();
            failed[at].extend(has_failed.then_some(case));
        }
    });
    let mut wrong = String::new();
    for ((flaw, expected), failed) in flaws.iter().zip(failed) {
        let expected = expected.iter().copied().collect();
        if failed != expected {
            let (failed, expected) = (names(&failed), names(&expected));
            wrong += &format!("{flaw:?} fails{failed}\n  and should fail{expected}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

macro_rules! flaws {
    ($($flaw:ident fails [$($case:ident),* $(,)?])*) => {
        #[test]
        fn every_flaw_fails_its_cases_and_no_others() {
            check(&[$((Flaw::$flaw, &[$(stringify!($case)),*])),*]);
        }
    };
}

flaws! {
    None fails []
    NoneScheduled fails []
    AcksOnReceive fails [
        a_dropped_delivery_comes_again,
        a_message_whose_handler_did_not_end_comes_again,
        a_stop_finishes_what_runs_and_gives_back_the_rest,
        a_stop_waits_no_longer_than_its_drain,
        attempts_are_counted_over_restarts,
        starts_that_came_to_no_end_are_counted,
        undecodable_messages_can_stop_the_service_and_stay,
        what_is_unsettled_comes_again_after_a_close,
        what_is_unsettled_comes_again_after_a_crash,
        what_was_given_back_is_no_longer_ones_own,
        retry_delay_holds_over_restarts,
        immediate_attempts_count_on_over_restarts,
    ]
    LosesDropped fails [
        a_dropped_delivery_comes_again,
        a_stop_finishes_what_runs_and_gives_back_the_rest,
        a_stop_waits_no_longer_than_its_drain,
        attempts_are_counted_over_restarts,
        undecodable_messages_can_stop_the_service_and_stay,
        retry_delay_holds_over_restarts,
        immediate_attempts_count_on_over_restarts,
    ]
    LosesOnCrash fails [
        a_message_whose_handler_did_not_end_comes_again,
        starts_that_came_to_no_end_are_counted,
        what_is_unsettled_comes_again_after_a_close,
        what_is_unsettled_comes_again_after_a_crash,
        what_was_given_back_is_no_longer_ones_own,
    ]
    RedeliversAcked fails [
        cuts_lose_nothing_and_keep_order,
        handled_messages_do_not_come_again,
        keys_run_in_parallel_and_each_in_order,
        members_of_a_group_share_the_messages,
    ]
    ReordersKey fails [
        cuts_lose_nothing_and_keep_order,
        every_group_gets_every_message,
        handled_messages_do_not_come_again,
        keys_run_in_parallel_and_each_in_order,
        messages_of_a_key_come_in_order,
    ]
    IgnoresCap fails [
        no_more_are_out_than_the_cap,
    ]
    ForgetsHeaders fails [
        a_dead_letter_holds_the_message_as_it_came,
        a_published_message_is_received_whole,
        a_retried_message_is_the_same_to_its_handler,
    ]
    ForgetsKey fails [
        a_busy_key_does_not_stall_the_others,
        a_dead_letter_goes_where_it_is_told,
        a_dead_letter_holds_the_message_as_it_came,
        a_delayed_retry_holds_its_key_or_lets_it_pass,
        a_published_message_is_received_whole,
        cuts_lose_nothing_and_keep_order,
        keys_run_in_parallel_and_each_in_order,
        messages_of_a_key_come_in_order,
        a_retried_message_is_the_same_to_its_handler,
    ]
    HidesRedelivery fails [
        a_dropped_delivery_comes_again,
        what_is_unsettled_comes_again_after_a_close,
        what_is_unsettled_comes_again_after_a_crash,
    ]
    SkipsEmpty fails [
        a_tombstone_is_told_from_an_empty_message,
        empty_messages_are_skipped,
    ]
    TombstoneIsEmpty fails [
        a_tombstone_is_told_from_an_empty_message,
    ]
    IgnoresEarliest fails [
        a_group_begins_with_the_oldest_or_when_it_is_made,
    ]
    IgnoresLatest fails [
        a_group_that_begins_with_the_latest_gets_what_comes,
        latest_group_has_a_place_before_its_first_message,
    ]
    ForgetsUnusedGroup fails [
        a_group_that_begins_with_the_latest_gets_what_comes,
        latest_group_has_a_place_before_its_first_message,
    ]
    ChecksNothing fails [
        a_group_can_begin_at_a_time_or_is_told_that_it_cannot,
        a_pattern_is_subscribed_to_or_refused,
    ]
    FirstTopicOnly fails [
        several_topics_are_one_subscription,
    ]
    GroupsShare fails [
        a_group_that_begins_with_the_latest_gets_what_comes,
        every_group_gets_every_message,
        latest_group_has_a_place_before_its_first_message,
    ]
    MembersCopy fails [
        members_of_a_group_share_the_messages,
    ]
    BeginLies fails [
        starts_that_came_to_no_end_are_counted,
        what_was_given_back_is_no_longer_ones_own,
    ]
    StopKeepsDelivering fails [
        a_stopped_source_hands_out_nothing_more,
    ]
    CloseHangs fails [
        close_ends_in_time,
        what_is_unsettled_comes_again_after_a_close,
        what_was_given_back_is_no_longer_ones_own,
    ]
    NeverTellsOfOutage fails [
        an_outage_is_told_and_mended,
    ]
    StaysDisconnected fails [
        an_outage_is_told_and_mended,
        cuts_lose_nothing_and_keep_order,
    ]
    LosesOnCut fails [
        an_outage_is_told_and_mended,
        cuts_lose_nothing_and_keep_order,
    ]
    DeadLetterNotWritten fails [
        a_dead_letter_goes_where_it_is_told,
        a_dead_letter_holds_the_message_as_it_came,
        a_message_that_fails_for_good_becomes_a_dead_letter,
        a_panic_is_a_failure_and_stops_nothing,
        a_permanent_failure_is_dead_at_once,
        a_poison_message_of_a_batch_is_dead_alone,
        attempts_are_counted_over_restarts,
        events_of_unknown_types_become_dead_letters,
        manual_handlers_settle_by_themselves,
        a_retried_message_is_the_same_to_its_handler,
    ]
    DeadLetterBodyChanged fails [
        a_dead_letter_holds_the_message_as_it_came,
    ]
    DeadLetterKeyLost fails [
        a_dead_letter_goes_where_it_is_told,
        a_dead_letter_holds_the_message_as_it_came,
        a_retried_message_is_the_same_to_its_handler,
    ]
    DeadLetterHeadersLost fails [
        a_dead_letter_holds_the_message_as_it_came,
        a_retried_message_is_the_same_to_its_handler,
    ]
    DeadLetterUntold fails [
        a_dead_letter_goes_where_it_is_told,
        a_dead_letter_holds_the_message_as_it_came,
        a_message_that_fails_for_good_becomes_a_dead_letter,
        a_panic_is_a_failure_and_stops_nothing,
        a_permanent_failure_is_dead_at_once,
        a_poison_message_of_a_batch_is_dead_alone,
        attempts_are_counted_over_restarts,
        events_of_unknown_types_become_dead_letters,
        manual_handlers_settle_by_themselves,
        a_retried_message_is_the_same_to_its_handler,
    ]
    DeadLetterAttemptsLost fails [
        a_message_that_fails_for_good_becomes_a_dead_letter,
        a_panic_is_a_failure_and_stops_nothing,
        a_permanent_failure_is_dead_at_once,
        a_poison_message_of_a_batch_is_dead_alone,
        attempts_are_counted_over_restarts,
        manual_handlers_settle_by_themselves,
        a_retried_message_is_the_same_to_its_handler,
    ]
    IgnoresDeadLetterName fails [
        a_dead_letter_goes_where_it_is_told,
    ]
    HoldForgetsAttempts fails [
        attempts_are_counted_over_restarts,
        retry_delay_holds_over_restarts,
    ]
    RetryForgetsAttempts fails [
        a_delayed_retry_holds_its_key_or_lets_it_pass,
        a_message_that_fails_for_good_becomes_a_dead_letter,
        attempts_are_counted_over_restarts,
        failed_messages_are_tried_again_by_the_schedule,
        manual_handlers_settle_by_themselves,
        a_retried_message_is_the_same_to_its_handler,
        retry_delay_holds_over_restarts,
    ]
    RetryTooEarly fails [
        a_delayed_retry_holds_its_key_or_lets_it_pass,
        a_message_that_fails_for_good_becomes_a_dead_letter,
        attempts_are_counted_over_restarts,
        failed_messages_are_tried_again_by_the_schedule,
        retry_delay_holds_over_restarts,
    ]
    RetryNeverComes fails [
        a_delayed_retry_holds_its_key_or_lets_it_pass,
        a_message_that_fails_for_good_becomes_a_dead_letter,
        attempts_are_counted_over_restarts,
        failed_messages_are_tried_again_by_the_schedule,
        manual_handlers_settle_by_themselves,
        a_retried_message_is_the_same_to_its_handler,
        retry_delay_holds_over_restarts,
    ]
    RetryHolds fails [
        a_delayed_retry_holds_its_key_or_lets_it_pass,
    ]
    RetryShowsItself fails [
        a_retried_message_is_the_same_to_its_handler,
    ]
    ForgetsCrashes fails [
        starts_that_came_to_no_end_are_counted,
    ]
    ForgetsFailedAttempts fails [
        immediate_attempts_count_on_over_restarts,
    ]
    ForgetsLastFailure fails [
        retry_delay_holds_over_restarts,
    ]
}
