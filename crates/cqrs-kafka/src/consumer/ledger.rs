//! The books of one partition: what was handed in, what of it is finished, and so what may be committed.
//!
//! # Crashes
//! Kafka does not count deliveries. So that a record whose handling kills the process is found, every
//! commit carries a *fence*: no record at or behind it was handed out. The fence is moved, and committed,
//! before records behind it are handed out; the last commit of an assignment that ends in good order has
//! none. An assignment that finds one knows that the process before it died, and that what killed it is
//! a record before the fence: a *suspect*. The first time that may be an accident, and everything goes on
//! as ever. The second time in a row without getting past the fence, the suspects are handed out
//! [alone](Ledger::start_alone), one after the other, each start committed before it happens: what was
//! started and never ended did it, and nothing else is blamed.

use std::collections::{BTreeMap, VecDeque};

use cqrs_core::RetryState;

use super::note::Note;

/// The lowest unfinished offset of a partition, and what is known of attempts at unfinished records.
///
/// A pure data structure. Its size is bounded by the records that are unfinished, however far they are
/// apart: finished ones are forgotten, in batches.
///
/// Invariants: `entries` ascends by offset; its first one is unfinished; `unfinished` counts those that
/// are; every offset in `attempts` is unfinished, or was not handed in yet.
#[derive(Debug)]
pub(super) struct Ledger {
    entries: VecDeque<Entry>,
    unfinished: usize,
    /// Where the partition goes on when everything is finished. `None` until that is known.
    next: Option<i64>,
    attempts: BTreeMap<i64, RetryState>,
    /// Grows with every change of what a commit would say.
    version: u64,
    /// The version that was committed last.
    committed: u64,
    /// Whether the books are closed: the assignment ended, nothing is finished any more.
    closed: bool,
    /// No record at or behind it is handed out before it is moved. `None`: nothing was handed out.
    fence: Option<i64>,
    /// The fence that is committed: it holds.
    fence_committed: i64,
    /// Records before it are suspects.
    suspects: i64,
    /// How often in a row the suspects' process died.
    unclean: u32,
    /// The suspect that is out alone, and the version that says so.
    alone: Option<(i64, u64)>,
}

/// After how many deaths in a row suspects are handed out alone.
const ALONE_AFTER: u32 = 2;

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    finished: bool,
}

/// A commit to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    /// The offset to go on with.
    pub(super) position: i64,
    /// What stands beside it.
    pub(super) note: Note,
    version: u64,
}

impl Ledger {
    /// The books of an assignment that begins where `committed` says, with the attempts of `note`.
    pub(super) fn new(committed: Option<i64>, note: Note) -> Self {
        let mut attempts = note.attempts;
        let suspects = note.fence.filter(|fence| committed.is_some_and(|at| at < *fence));
        let unclean = suspects.map_or(0, |_| note.unclean.saturating_add(1));
        if let Some(committed) = committed {
            attempts = attempts.split_off(&committed);
        }
        Self {
            entries: VecDeque::new(),
            unfinished: 0,
            next: committed,
            attempts,
            version: 0,
            committed: 0,
            closed: false,
            fence: suspects,
            fence_committed: 0,
            suspects: suspects.unwrap_or(0),
            unclean,
            alone: None,
        }
    }

    /// Takes in a fetched record. `false`: it is here already, unfinished; hand out no second one.
    pub(super) fn add(&mut self, offset: i64) -> bool {
        let entry = Entry { offset, finished: false };
        match self.entries.back() {
            Some(last) if last.offset >= offset => {
                // The partition went back: its log was truncated, or the position was reset.
                match self.find(offset) {
                    Ok(at) if !self.entries[at].finished => return false,
                    Ok(at) => self.entries[at].finished = false,
                    Err(at) => self.entries.insert(at, entry),
                }
            }
            _ => self.entries.push_back(entry),
        }
        self.unfinished += 1;
        self.next = Some(offset + 1);
        true
    }

    /// Marks a record as finished. `false`: that does not count, the assignment is over (or the record
    /// is not known).
    pub(super) fn finish(&mut self, offset: i64) -> bool {
        if self.closed {
            return false;
        }
        let Ok(at) = self.find(offset) else { return false };
        if self.entries[at].finished {
            return false;
        }
        self.entries[at].finished = true;
        self.unfinished -= 1;
        if !self.attempts.is_empty() && self.attempts.remove(&offset).is_some() {
            self.version += 1;
        }
        if self.is_alone(offset) {
            self.alone = None;
        }
        if at == 0 {
            self.version += 1;
            while self.entries.front().is_some_and(|entry| entry.finished) {
                self.entries.pop_front();
            }
        }
        if self.entries.len() > 2 * self.unfinished + 64 {
            self.entries.retain(|entry| !entry.finished);
        }
        true
    }

    fn find(&self, offset: i64) -> Result<usize, usize> {
        // Most partitions have no gaps.
        let front = self.entries.front().ok_or(0_usize)?;
        let guess = usize::try_from(offset - front.offset).unwrap_or(0);
        if self.entries.get(guess).is_some_and(|entry| entry.offset == offset) {
            return Ok(guess);
        }
        self.entries.binary_search_by_key(&offset, |entry| entry.offset)
    }

    /// What may be committed: the lowest unfinished offset, or the one after the last when all are
    /// finished.
    pub(super) fn position(&self) -> Option<i64> {
        let next = self.next?;
        Some(self.entries.front().map_or(next, |lowest| lowest.offset.min(next)))
    }

    /// Remembers the attempts at a record.
    pub(super) fn note_attempts(&mut self, offset: i64, state: RetryState) {
        if !self.closed {
            self.end_alone(offset);
            self.attempts.insert(offset, state);
            self.version += 1;
        }
    }

    /// What is known of the attempts at a record, without the start that it is out for.
    pub(super) fn attempts(&self, offset: i64) -> RetryState {
        let mut state = self.attempts.get(&offset).copied().unwrap_or_default();
        if self.is_alone(offset) {
            state.crashes = state.crashes.saturating_sub(1);
        }
        state
    }

    /// Where the group begins, when nothing was ever committed: at its first record.
    pub(super) fn begin_at(&mut self, offset: i64) {
        self.next.get_or_insert(offset);
    }

    /// Moves the fence. It never goes back.
    pub(super) fn move_fence(&mut self, fence: i64) {
        if !self.closed && self.fence.is_none_or(|known| known < fence) {
            self.fence = Some(fence);
            self.version += 1;
        }
    }

    /// The fence that holds.
    pub(super) fn fence_committed(&self) -> i64 {
        self.fence_committed
    }

    /// Until where records are handed out alone, if they are.
    pub(super) fn alone_until(&self) -> Option<i64> {
        (self.unclean >= ALONE_AFTER).then_some(self.suspects)
    }

    /// A suspect is about to be handed out alone: its start counts until it ends.
    pub(super) fn start_alone(&mut self, offset: i64) {
        if !self.closed {
            let state = self.attempts.entry(offset).or_default();
            state.crashes = state.crashes.saturating_add(1);
            self.version += 1;
            self.alone = Some((offset, self.version));
        }
    }

    /// Whether the start of the suspect that is out alone is committed.
    pub(super) fn alone_is_committed(&self) -> bool {
        self.alone.is_some_and(|(_, version)| self.committed >= version)
    }

    /// The start of a suspect came to an end that is not the process's: it does not count.
    pub(super) fn end_alone(&mut self, offset: i64) {
        if !self.is_alone(offset) {
            return;
        }
        self.alone = None;
        self.version += 1;
        if let Some(state) = self.attempts.get_mut(&offset) {
            state.crashes = state.crashes.saturating_sub(1);
            if *state == RetryState::default() {
                self.attempts.remove(&offset);
            }
        }
    }

    pub(super) fn is_alone(&self, offset: i64) -> bool {
        self.alone.is_some_and(|(alone, _)| alone == offset)
    }

    /// The suspects are cleared: none of them killed the process, as far as they came.
    pub(super) fn clear_suspects(&mut self) {
        if self.unclean > 0 {
            self.unclean = 0;
            self.version += 1;
        }
    }

    /// Whether anything is known of attempts.
    pub(super) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// The commit to make, if there is something new to say.
    pub(super) fn draft(&self) -> Option<Draft> {
        if self.version == self.committed {
            return None;
        }
        let position = self.position()?;
        let unclean = if position < self.suspects { self.unclean } else { 0 };
        let fence = self.fence.filter(|fence| !self.closed && position < *fence);
        let unclean = if fence.is_some() { unclean } else { 0 };
        let note = Note { attempts: self.attempts.clone(), fence, unclean };
        Some(Draft { position, note, version: self.version })
    }

    /// Closes the books: the last commit of this assignment, if one is needed. Nothing is finished
    /// from here on.
    pub(super) fn close(&mut self) -> Option<Draft> {
        if self.closed {
            return None;
        }
        if let Some((offset, _)) = self.alone {
            self.end_alone(offset);
        }
        if self.fence.is_some() {
            // The last commit says that this is a good end.
            self.version += 1;
        }
        self.closed = true;
        self.draft()
    }

    /// A draft was committed.
    pub(super) fn committed(&mut self, draft: &Draft) {
        if self.committed <= draft.version {
            self.committed = draft.version;
            self.fence_committed = draft.note.fence.unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!((position(&ledger), ledger.draft()), (10, None));
        assert!(ledger.finish(10));
        let draft = ledger.draft().unwrap();
        assert_eq!(draft.position, 16, "gaps do not stall it");
        ledger.committed(&draft);
        assert_eq!(ledger.draft(), None);
        assert!(!ledger.finish(10), "only once");
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
        ledger.note_attempts(10, state);
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

    /// What a process that dies leaves behind, taken up by the next one.
    fn after_death(ledger: &Ledger, committed: &Draft) -> Ledger {
        let _ = ledger;
        Ledger::new(Some(committed.position), Note::parse(&committed.note.to_text()))
    }

    fn commit(ledger: &mut Ledger) -> Draft {
        let draft = ledger.draft().unwrap();
        ledger.committed(&draft);
        draft
    }

    #[test]
    fn a_good_end_leaves_no_suspects() {
        let mut ledger = ledger();
        assert_eq!(ledger.fence_committed(), 0, "nothing may be handed out");
        ledger.move_fence(15);
        let draft = commit(&mut ledger);
        assert_eq!(
            (draft.position, draft.note.fence, ledger.fence_committed()),
            (10, Some(15), 15)
        );
        ledger.add(10);
        ledger.finish(10);
        let last = ledger.close().unwrap();
        assert_eq!((last.position, &last.note), (11, &Note::default()));
        assert_eq!(after_death(&ledger, &last).alone_until(), None);
        assert_eq!(ledger.close(), None, "once");
    }

    #[test]
    fn a_record_that_kills_the_process_is_found_and_nothing_else() {
        let mut ledger = ledger();
        ledger.move_fence(15);
        let first = commit(&mut ledger);
        let mut ledger = after_death(&ledger, &first);
        assert_eq!(ledger.alone_until(), None, "it may have been an accident");
        ledger.move_fence(13);
        let second = ledger.draft();
        assert_eq!(second, None, "the fence is not moved back");
        ledger.move_fence(16);
        let second = commit(&mut ledger);
        assert_eq!(second.note.unclean, 1);
        let mut ledger = after_death(&ledger, &second);
        assert_eq!(ledger.alone_until(), Some(16));
        // 10 is innocent, 11 is not.
        ledger.start_alone(10);
        assert!(!ledger.alone_is_committed());
        commit(&mut ledger);
        assert!(ledger.alone_is_committed());
        assert_eq!(ledger.attempts(10).crashes, 0, "this start does not count yet");
        ledger.add(10);
        ledger.finish(10);
        ledger.start_alone(11);
        let third = commit(&mut ledger);
        let ledger = after_death(&ledger, &third);
        assert_eq!((ledger.attempts(11).crashes, ledger.alone_until()), (1, Some(16)));
        assert_eq!(ledger.attempts.len(), 1);
    }

    #[test]
    fn a_start_that_ends_otherwise_does_not_count() {
        let note = Note { fence: Some(20), unclean: 1, ..Note::default() };
        let mut ledger = Ledger::new(Some(10), note);
        ledger.start_alone(10);
        ledger.add(10);
        ledger.end_alone(10);
        assert!(!ledger.has_attempts());
        ledger.start_alone(10);
        let state = RetryState::default().failed(Timestamp::now());
        ledger.note_attempts(10, state);
        assert_eq!(ledger.attempts(10), state, "held");
        ledger.start_alone(11);
        let last = ledger.close().unwrap();
        assert_eq!((last.note.fence, last.note.unclean), (None, 0));
        assert_eq!(last.note.attempts.keys().collect::<Vec<_>>(), [&10]);
    }

    #[test]
    fn getting_past_the_suspects_clears_them() {
        let note = Note { fence: Some(12), unclean: 4, ..Note::default() };
        let mut ledger = Ledger::new(Some(10), note.clone());
        ledger.move_fence(110);
        assert_eq!(commit(&mut ledger).note.unclean, 5);
        for offset in [10, 11] {
            ledger.add(offset);
            ledger.finish(offset);
        }
        assert_eq!(commit(&mut ledger).note.unclean, 0);
        let mut ledger = Ledger::new(Some(10), note);
        ledger.clear_suspects();
        assert_eq!((ledger.alone_until(), commit(&mut ledger).note.unclean), (None, 0));
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
                        ledger.note_attempts(offset, RetryState::default().failed(Timestamp::now()));
                    },
                    Step::Commit { lost } => if let Some(draft) = ledger.draft() {
                        prop_assert!(draft.position >= committed, "it never goes back");
                        prop_assert!(draft.note.attempts.keys().all(|offset| open.contains(offset)));
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
}
