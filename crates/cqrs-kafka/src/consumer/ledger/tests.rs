use std::collections::BTreeSet;

use cqrs_core::Timestamp;
use proptest::prelude::*;

use super::*;

fn ledger() -> Ledger {
    Ledger::new(Some(10), Note::default())
}

fn position(ledger: &Ledger) -> i64 {
    ledger.position().unwrap()
}

#[test]
fn only_the_lowest_unfinished_is_committed() {
    let mut ledger = ledger();
    assert_eq!(ledger.draft(), None, "nothing new");
    for offset in [10, 11, 15] {
        assert!(ledger.add(offset));
    }
    assert!(!ledger.add(11), "it is here");
    assert!(ledger.finish(11) && ledger.finish(15));
    let draft = ledger.draft().unwrap();
    assert_eq!((draft.position, draft.note.to_text().as_str()), (10, "cqrs1;d=b.5"));
    assert!(ledger.finish(10));
    let draft = ledger.draft().unwrap();
    assert_eq!(draft.note.done, []);
    assert_eq!(draft.position, 16, "gaps do not stall it");
    ledger.committed(&draft);
    assert_eq!(ledger.draft(), None);
    assert!(!ledger.finish(10), "only once");
}

#[test]
fn what_was_finished_behind_the_watermark_comes_no_more() {
    let mut first = ledger();
    for offset in 10..14 {
        assert!(first.add(offset));
    }
    first.finish(11);
    first.finish(13);
    let draft = first.close().unwrap();
    let note = Note::parse(&draft.note.to_text());
    let mut second = Ledger::new(Some(draft.position), note);
    let again: Vec<_> = (10..16).filter(|offset| second.add(*offset)).collect();
    assert_eq!(again, [10, 12, 14, 15]);
    assert_eq!(position(&second), 10);
    for offset in again {
        assert!(second.finish(offset));
    }
    assert_eq!(position(&second), 16);
}

#[test]
fn a_commit_that_failed_is_made_again() {
    let mut ledger = ledger();
    ledger.add(10);
    ledger.finish(10);
    assert_eq!(ledger.draft(), ledger.draft());
    let old = ledger.draft().unwrap();
    ledger.add(11);
    ledger.finish(11);
    ledger.committed(&old);
    assert_eq!(ledger.draft().unwrap().position, 12);
}

#[test]
fn closed_books_take_nothing() {
    let mut ledger = ledger();
    ledger.add(10);
    ledger.add(11);
    ledger.finish(10);
    assert_eq!(ledger.close().unwrap().position, 11);
    assert!(!ledger.finish(11));
    assert_eq!(position(&ledger), 11);
}

#[test]
fn attempts_live_until_their_record_is_finished() {
    let state = RetryState::default().failed(Timestamp::from_unix_micros(1_000));
    let mut note = Note::default();
    note.attempts.insert(3, state);
    note.attempts.insert(12, state);
    let mut ledger = Ledger::new(Some(10), note);
    assert_eq!(ledger.attempts(12).attempts, 1);
    assert_eq!(ledger.attempts(3).attempts, 0, "before the committed offset");
    ledger.add(10);
    ledger.add(12);
    ledger.hold(10, state);
    let draft = ledger.draft().unwrap();
    assert_eq!((draft.position, draft.note.attempts.len()), (10, 2));
    ledger.committed(&draft);
    ledger.finish(12);
    assert_eq!(ledger.draft().unwrap().note.attempts.len(), 1);
    ledger.finish(10);
    assert!(!ledger.has_attempts());
}

#[test]
fn a_partition_that_goes_back_is_followed() {
    let mut ledger = ledger();
    for offset in [20, 21] {
        ledger.add(offset);
    }
    ledger.finish(20);
    assert!(ledger.add(5) && ledger.add(20), "finished ones come again");
    assert!(!ledger.add(21), "unfinished ones do not");
    assert_eq!(position(&ledger), 5);
    for offset in [5, 20, 21] {
        assert!(ledger.finish(offset));
    }
    assert_eq!(position(&ledger), 21, "not beyond what was seen after it went back");
}

#[derive(Debug, Clone)]
enum Step {
    Add(i64),
    Finish(usize),
    Attempt(usize),
    Commit { lost: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_i64..5).prop_map(Step::Add),
        4 => any::<usize>().prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Attempt),
        1 => any::<bool>().prop_map(|lost| Step::Commit { lost }),
    ]
}

proptest! {
    #[test]
    fn whatever_the_order_the_watermark_is_right(
        steps in proptest::collection::vec(step(), 0..600),
    ) {
        let mut ledger = Ledger::new(Some(0), Note::default());
        let (mut last, mut committed) = (-1, 0);
        let mut open = BTreeSet::new();
        let pick = |open: &BTreeSet<i64>, n: usize| {
            open.iter().copied().nth(n.checked_rem(open.len())?)
        };
        for step in steps {
            match step {
                Step::Add(gap) => {
                    last += gap;
                    prop_assert!(ledger.add(last));
                    open.insert(last);
                }
                Step::Finish(n) => if let Some(offset) = pick(&open, n) {
                    open.remove(&offset);
                    prop_assert!(ledger.finish(offset));
                },
                Step::Attempt(n) => if let Some(offset) = pick(&open, n) {
                    ledger.hold(offset, RetryState::default().failed(Timestamp::now()));
                },
                Step::Commit { lost } => if let Some(draft) = ledger.draft() {
                    prop_assert!(draft.position >= committed, "it never goes back");
                    prop_assert!(draft.note.attempts.keys().all(|offset| open.contains(offset)));
                    if Note::parse(&draft.note.to_text()) == draft.note {
                        let mut next = Ledger::new(Some(draft.position), draft.note.clone());
                        let again = (draft.position..=last + 3).filter(|offset| next.add(*offset));
                        let expected = open.iter().copied().chain(last + 1..=last + 3);
                        prop_assert!(again.eq(expected), "what was finished comes no more");
                    }
                    if !lost {
                        committed = draft.position;
                        ledger.committed(&draft);
                    }
                },
            }
            let lowest = open.first().copied();
            prop_assert!(committed <= lowest.unwrap_or(last + 1), "nothing is skipped");
            let right = lowest.or(if last < 0 { Some(0) } else { Some(last + 1) });
            prop_assert_eq!(ledger.position(), right, "no stall");
            prop_assert!(ledger.entries.len() <= 2 * open.len() + 65, "memory is bounded");
        }
        for offset in open {
            prop_assert!(ledger.finish(offset));
        }
        prop_assert_eq!(ledger.position(), Some(last + 1).max(Some(0)));
        prop_assert!(ledger.entries.is_empty() && ledger.attempts.is_empty());
    }
}
