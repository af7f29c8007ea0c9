//! Tests of the offset tracker, with property tests of its position.

use std::collections::BTreeSet;

use cqrs_core::event::Timestamp;
use proptest::prelude::*;

use super::*;

fn tracker() -> OffsetTracker {
    at(10, CommitMetadata::default())
}

fn at(position: i64, metadata: CommitMetadata) -> OffsetTracker {
    OffsetTracker::new(
        Takeover { position, end: i64::MAX, metadata, ..Takeover::default() },
        QuarantineOptions::off(),
    )
}

fn metadata(draft: &Draft) -> &CommitMetadata {
    draft.metadata.as_ref().unwrap()
}

#[test]
fn lowest_unfinished_offset_is_committed() {
    let mut tracker = tracker();
    assert_eq!(tracker.draft(), None, "nothing new");
    for offset in [10, 11, 15] {
        assert!(tracker.add(offset));
    }
    assert!(!tracker.add(11), "it is here");
    assert!(tracker.finish(11) && tracker.finish(15));
    let draft = tracker.draft().unwrap();
    assert_eq!((draft.position, metadata(&draft).to_text().as_str()), (10, "cqrs1;d=b.5"));
    assert!(tracker.finish(10));
    let draft = tracker.draft().unwrap();
    assert_eq!(metadata(&draft).done, []);
    assert_eq!(draft.position, 16, "gaps do not stall it");
    tracker.committed(&draft);
    assert_eq!(tracker.draft(), None);
    assert!(!tracker.finish(10), "only once");
}

#[test]
fn finished_record_is_not_redelivered() {
    let mut first = tracker();
    for offset in 10..14 {
        assert!(first.add(offset));
    }
    first.finish(11);
    first.finish(13);
    let draft = first.close(0).unwrap();
    let found = CommitMetadata::parse(&metadata(&draft).to_text());
    let mut second = at(draft.position, found);
    let added: Vec<_> = (10..16).filter(|offset| second.add(*offset)).collect();
    assert_eq!(added, [10, 12, 14, 15]);
    assert_eq!(second.position(), 10);
    for offset in added {
        assert!(second.finish(offset));
    }
    assert_eq!(second.position(), 16);
}

#[test]
fn failed_commit_is_retried() {
    let mut tracker = tracker();
    tracker.add(10);
    tracker.finish(10);
    assert_eq!(tracker.draft(), tracker.draft());
    let old = tracker.draft().unwrap();
    tracker.add(11);
    tracker.finish(11);
    tracker.committed(&old);
    assert_eq!(tracker.draft().unwrap().position, 12);
}

#[test]
fn closed_tracker_finishes_nothing() {
    let mut tracker = tracker();
    tracker.add(10);
    tracker.add(11);
    tracker.finish(10);
    assert_eq!(tracker.close(0).unwrap().position, 11);
    assert!(!tracker.finish(11));
    assert_eq!(tracker.position(), 11);
}

#[test]
fn attempts_are_kept_until_their_record_is_finished() {
    let state = RetryState::default().failed(Timestamp::from_unix_micros(1_000));
    let mut found = CommitMetadata::default();
    found.attempts.insert(3, state);
    found.attempts.insert(12, state);
    let mut tracker = at(10, found);
    assert_eq!(tracker.attempts(12).attempts, 1);
    assert_eq!(tracker.attempts(3).attempts, 0, "before the committed offset");
    tracker.add(10);
    tracker.add(12);
    tracker.hold(10, None, state);
    let draft = tracker.draft().unwrap();
    assert_eq!((draft.position, metadata(&draft).attempts.len()), (10, 2));
    tracker.committed(&draft);
    tracker.finish(12);
    assert_eq!(metadata(&tracker.draft().unwrap()).attempts.len(), 1);
    tracker.finish(10);
    assert!(!tracker.has_attempts());
}

#[test]
fn earlier_offset_after_truncation_is_followed() {
    let mut tracker = tracker();
    for offset in [20, 21] {
        tracker.add(offset);
    }
    tracker.finish(20);
    assert!(tracker.add(5) && tracker.add(20), "finished ones are redelivered");
    assert!(!tracker.add(21), "unfinished ones are not");
    assert_eq!(tracker.position(), 5);
    for offset in [5, 20, 21] {
        assert!(tracker.finish(offset));
    }
    assert_eq!(tracker.position(), 21, "not beyond the offsets added after the truncation");
}

#[test]
fn truncated_log_forgets_finished_records() {
    let found = CommitMetadata { done: vec![12..14, 20..22], ..CommitMetadata::default() };
    let mut tracker = at(10, found);
    for offset in [10, 11] {
        assert!(tracker.add(offset) && tracker.finish(offset));
    }
    assert!(!tracker.add(12) && !tracker.add(13));
    assert!(tracker.add(12), "the log was truncated: it is another record");
    assert!(tracker.add(20), "so is the record there");
    assert_eq!(tracker.position(), 12);
}

#[test]
fn log_that_ends_before_the_offset_is_another_log() {
    let mut metadata = CommitMetadata::parse("cqrs1;u=2.1;until=12;n=b;c=b.2;d=c.2");
    let state = RetryState::default().failed(Timestamp::from_unix_micros(1_000));
    metadata.attempts.insert(11, state);
    let of = |end| {
        let options = QuarantineOptions { max_crashes: 3, ..QuarantineOptions::off() };
        let takeover = Takeover { position: 10, end, metadata: metadata.clone(), is_new: false };
        let tracker = OffsetTracker::new(takeover, options);
        (tracker.attempts(11).attempts, tracker.attempts(11).crashes, tracker.was_done(12))
    };
    assert_eq!(of(20), (1, 3, true));
    assert_eq!(of(9), (0, 0, false));
}

#[test]
fn position_passes_offsets_without_a_record() {
    let mut tracker = tracker();
    tracker.add(10);
    tracker.pass(12);
    assert_eq!(tracker.position(), 10, "it is unfinished");
    tracker.finish(10);
    assert_eq!(tracker.position(), 12);
    tracker.committed(&tracker.draft().unwrap());
    tracker.pass(12);
    tracker.pass(11);
    assert_eq!(tracker.draft(), None, "nothing new");
    tracker.pass(14);
    assert_eq!(tracker.draft().unwrap().position, 14);
    assert!(tracker.add(14), "records behind are taken in");
    tracker.close(0);
    tracker.pass(20);
    assert_eq!(tracker.position(), 14);
}

#[test]
fn new_group_commits_before_delivery() {
    let takeover = Takeover { position: 7, end: 9, is_new: true, ..Takeover::default() };
    let mut tracker = OffsetTracker::new(takeover, QuarantineOptions::off());
    assert_eq!(tracker.delivery_limit(), i64::MIN);
    let draft = tracker.draft().unwrap();
    assert_eq!((draft.position, metadata(&draft).to_text().as_str()), (7, "cqrs1"));
    tracker.committed(&draft);
    assert_eq!((tracker.delivery_limit(), tracker.draft()), (i64::MAX, None));
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
    fn position_is_right_in_every_order(
        steps in proptest::collection::vec(step(), 0..600),
    ) {
        let mut tracker = at(0, CommitMetadata::default());
        let (mut last, mut committed) = (-1, 0);
        let mut open = BTreeSet::new();
        let pick = |open: &BTreeSet<i64>, n: usize| {
            open.iter().copied().nth(n.checked_rem(open.len())?)
        };
        for step in steps {
            match step {
                Step::Add(gap) => {
                    last += gap;
                    prop_assert!(tracker.add(last));
                    open.insert(last);
                }
                Step::Finish(n) => if let Some(offset) = pick(&open, n) {
                    open.remove(&offset);
                    prop_assert!(tracker.finish(offset));
                },
                Step::Attempt(n) => if let Some(offset) = pick(&open, n) {
                    tracker.hold(offset, None, RetryState::default().failed(Timestamp::now()));
                },
                Step::Commit { lost } => if let Some(draft) = tracker.draft() {
                    prop_assert!(draft.position >= committed, "it never goes back");
                    prop_assert!(metadata(&draft).attempts.keys().all(|offset| open.contains(offset)));
                    if CommitMetadata::parse(&metadata(&draft).to_text()) == *metadata(&draft) {
                        let mut next = at(draft.position, metadata(&draft).clone());
                        let added = (draft.position..=last + 3).filter(|offset| next.add(*offset));
                        let expected = open.iter().copied().chain(last + 1..=last + 3);
                        prop_assert!(added.eq(expected), "finished records are not redelivered");
                    }
                    if !lost {
                        committed = draft.position;
                        tracker.committed(&draft);
                    }
                },
            }
            let lowest = open.first().copied();
            prop_assert!(committed <= lowest.unwrap_or(last + 1), "nothing is skipped");
            let right = lowest.unwrap_or(if last < 0 { 0 } else { last + 1 });
            prop_assert_eq!(tracker.position(), right, "no stall");
            prop_assert!(tracker.entries.len() <= 2 * open.len() + 65, "memory is bounded");
        }
        for offset in open {
            prop_assert!(tracker.finish(offset));
        }
        prop_assert_eq!(tracker.position(), (last + 1).max(0));
        prop_assert!(tracker.entries.is_empty() && tracker.attempts.is_empty());
    }
}
