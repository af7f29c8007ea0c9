//! The suite itself under test: broken brokers must fail their cases, and no others.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod flawed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::MessageBroker;
use cqrs_testkit::Probe;
use cqrs_testkit::conformance::{
    CASES, Capabilities, Fault, Harness, MemoryHarness, Setup, block_on, run,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use flawed::{Flaw, Flawed};

struct FlawedHarness {
    memory: MemoryHarness,
    flaw: Flaw,
}

impl Harness for FlawedHarness {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.memory.capabilities();
        capabilities.patience = Duration::from_secs(6);
        capabilities
    }

    async fn connect(&self, mut setup: Setup) -> Arc<dyn MessageBroker> {
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

    async fn inject(&self, fault: Fault<'_>) {
        self.memory.inject(fault).await;
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
        let at_once = Arc::new(Semaphore::new(48));
        let mut cases = JoinSet::new();
        for (at, &(flaw, _)) in flaws.iter().enumerate() {
            for &case in CASES {
                let harness = FlawedHarness { memory: MemoryHarness::strict(), flaw };
                let at_once = Arc::clone(&at_once);
                cases.spawn(async move {
                    let _permit = at_once.acquire().await.unwrap();
                    let outcome = tokio::spawn(async move { run(case, &harness).await }).await;
                    (at, case, outcome.is_err())
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
    LostConfirm fails [ten_thousand_messages_arrive_exactly_once]
    DoubleDelivery fails [ten_thousand_messages_arrive_exactly_once]
    WrongOrder fails [
        order_holds_without_awaiting_receipts,
        order_holds_across_64_tasks,
        order_holds_when_enqueue_waits,
    ]
    ForgetsHeaders fails [
        a_confirmed_message_arrives_byte_for_byte,
        a_json_message_carries_what_is_declared,
    ]
    ForgetsContentType fails [
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
        the_largest_message_arrives_and_a_larger_one_is_refused,
    ]
    SkipsEmptyBodies fails [an_empty_body_arrives]
    TakesBodiesForText fails [
        any_bytes_arrive,
        a_large_body_arrives,
        the_largest_message_arrives_and_a_larger_one_is_refused,
    ]
    NewIds fails [
        a_confirmed_message_arrives_byte_for_byte,
        a_json_message_carries_what_is_declared,
        a_bare_message_arrives_without_additions,
        an_id_is_kept_when_published_again,
    ]
    WrongPlace fails [confirmations_name_the_place]
    IgnoresWindow fails [
        a_full_window_makes_enqueue_wait,
        a_cancelled_enqueue_sends_nothing,
    ]
    IgnoresByteWindow fails [a_full_byte_window_makes_enqueue_wait]
    RefusesLarge fails [
        a_message_larger_than_the_byte_window_goes_alone,
    ]
    SendsUnpolled fails [a_cancelled_enqueue_sends_nothing]
    HangsPastDeadline fails [no_publish_outlives_its_deadline]
    SwallowsUnroutable fails [
        an_unroutable_message_is_an_error_and_the_opt_out_is_not,
    ]
    IgnoresOptOut fails [
        an_unroutable_message_is_an_error_and_the_opt_out_is_not,
    ]
    AcceptsTooLarge fails [
        the_largest_message_arrives_and_a_larger_one_is_refused,
    ]
    AcceptsInvalidTopic fails [an_invalid_topic_is_refused]
    LosesMessage fails [every_error_gives_the_message_back]
    NeverReady fails [the_state_becomes_ready]
    AcceptsAfterShutdown fails [shutdown_flushes_then_refuses]
    ReportsNothing fails [shutdown_reports_what_was_not_delivered]
    DoesNotFlush fails [shutdown_flushes_then_refuses]
}
