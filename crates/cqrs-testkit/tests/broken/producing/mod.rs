//! Broken producers, and the cases that each must fail.

mod flawed;

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Subscribe;
use cqrs_testkit::Probe;
use cqrs_testkit::conformance::{
    Capabilities, Fault, Harness, MemoryHarness, PRODUCING_CASES as CASES, Setup,
};

use flawed::Flawed;

struct FlawedHarness {
    memory: MemoryHarness,
    flaw: Flaw,
}

impl FlawedHarness {
    fn new(flaw: Flaw) -> Self {
        Self { memory: MemoryHarness::strict(), flaw }
    }
}

impl Harness for FlawedHarness {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.memory.capabilities();
        capabilities.timeout = Duration::from_secs(6);
        capabilities
    }

    async fn connect(&self, mut setup: Setup) -> Arc<dyn Subscribe> {
        match self.flaw {
            Flaw::IgnoresWindow => setup.window_messages = 10_000,
            Flaw::IgnoresByteWindow => setup.window_bytes = 1 << 30,
            Flaw::HangsPastDeadline => setup.publish_timeout = Duration::from_secs(3_600),
            _ => {}
        }
        let _sound = self.memory.connect(setup).await;
        Arc::new(Flawed::new(self.memory.broker(), self.flaw))
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
        self.memory.publish_tombstone(topic, key).await;
    }

    async fn inject(&self, fault: Fault<'_>) {
        self.memory.inject(fault).await;
    }
}

flaws! {
    None fails []
    LostConfirm, DoubleDelivery fails [ten_thousand_messages_arrive_exactly_once]
    WrongOrder fails [
        order_holds_without_awaiting_receipts,
        order_holds_across_64_tasks,
        order_holds_when_enqueue_waits,
    ]
    ForgetsHeaders, ForgetsContentType fails [
        a_confirmed_message_arrives_byte_for_byte,
        a_json_message_carries_what_is_declared,
    ]
    AddsHeader fails [
        a_confirmed_message_arrives_byte_for_byte,
        a_json_message_carries_what_is_declared,
        a_bare_message_arrives_without_additions,
        an_empty_body_arrives,
        any_bytes_arrive,
        a_large_body_arrives,
        largest_message_arrives_and_larger_is_refused,
    ]
    SkipsEmptyBodies fails [an_empty_body_arrives]
    TakesBodiesForText fails [
        any_bytes_arrive,
        a_large_body_arrives,
        largest_message_arrives_and_larger_is_refused,
    ]
    NewIds fails [
        a_confirmed_message_arrives_byte_for_byte,
        a_json_message_carries_what_is_declared,
        a_bare_message_arrives_without_additions,
        an_id_is_kept_when_published_again,
    ]
    WrongPlace fails [confirmations_name_the_place]
    IgnoresWindow fails [a_full_window_makes_enqueue_wait, a_cancelled_enqueue_sends_nothing]
    IgnoresByteWindow fails [a_full_byte_window_makes_enqueue_wait]
    RefusesLarge fails [a_message_larger_than_the_byte_window_goes_alone]
    SendsUnpolled fails [a_cancelled_enqueue_sends_nothing]
    HangsPastDeadline fails [no_publish_outlives_its_deadline]
    SwallowsUnroutable, IgnoresOptOut fails [unroutable_message_is_an_error_unless_opted_out]
    AcceptsTooLarge fails [largest_message_arrives_and_larger_is_refused]
    AcceptsInvalidTopic fails [an_invalid_topic_is_refused]
    LosesMessage fails [every_error_gives_the_message_back]
    NeverReady fails [the_state_becomes_ready]
    AcceptsAfterShutdown, DoesNotFlush fails [shutdown_flushes_then_refuses]
    ReportsNothing fails [shutdown_reports_what_was_not_delivered]
}
