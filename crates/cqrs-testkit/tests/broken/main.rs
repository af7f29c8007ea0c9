//! The conformance suite itself under test: each broken broker must fail its cases, and no others.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::collections::BTreeSet;
use std::sync::Arc;

use cqrs_testkit::conformance::{Harness, block_on, run};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The names of cases.
macro_rules! cases {
    ([$($case:ident),* $(,)?]) => {
        &[$(stringify!($case)),*] as &[_]
    };
}

/// Defines the flaws of one half, the cases that each must fail, and the test of that.
macro_rules! flaws {
    ($($($flaw:ident),+ fails $cases:tt)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Flaw { $($($flaw),+),* }

        #[test]
        fn every_flaw_fails_its_cases_and_no_others() {
            let flaws = [$($((Flaw::$flaw, cases!($cases))),+),*];
            crate::check(&flaws, CASES, FlawedHarness::new);
        }
    };
}

mod consuming;
mod producing;

fn names(cases: &BTreeSet<&'static str>) -> String {
    cases.iter().map(|case| format!("\n    {case}")).collect()
}

/// Runs all cases with all flaws in one test: the cases mostly wait, so that many can run at once.
fn check<F, H>(flaws: &[(F, &[&'static str])], cases: &'static [&'static str], harness: fn(F) -> H)
where
    F: std::fmt::Debug + Copy,
    H: Harness + 'static,
{
    let mut failed: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); flaws.len()];
    block_on(async {
        let permits = Arc::new(Semaphore::new(48));
        let mut runs = JoinSet::new();
        for (at, &(flaw, _)) in flaws.iter().enumerate() {
            for &case in cases {
                let (permits, harness) = (Arc::clone(&permits), harness(flaw));
                runs.spawn(async move {
                    let _permit = permits.acquire().await.unwrap();
                    let outcome = tokio::spawn(async move { run(case, &harness).await }).await;
                    (at, case, outcome.is_err())
                });
            }
        }
        while let Some(run) = runs.join_next().await {
            let (at, case, has_failed) = run.unwrap();
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
