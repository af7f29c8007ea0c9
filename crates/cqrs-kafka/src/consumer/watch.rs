//! Which records of a partition may have killed a process.
//!
//! A process that dies tells nobody of which record it died. So a record is handed out only when a
//! committed note says that it may have been started ([`Open`]). Whoever finds such a note left behind
//! knows that its predecessor came to no good end, and runs the suspects in few at first, then one by one,
//! each of them named in the note before it starts. A named one that is found has killed its process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Offsets that are granted at once while nobody is suspect.
pub(super) const MANY: i64 = 1 << 18;
/// Suspects that are granted together at first.
pub(super) const FEW: i64 = 256;
/// How long suspects may keep others waiting.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often that is doubled at most: to 16 minutes.
const MOST_WAITS: u32 = 5;

/// An assignment that did not end well, or has not ended: records before `until` may have been started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) until: i64,
    /// How many were granted at once.
    pub(super) step: i64,
    /// Those behind, before this, have been suspect since an earlier assignment.
    pub(super) rest: i64,
    /// How often the patience was doubled, as suspects had outlasted it.
    pub(super) waits: u32,
    /// The record that was started while no other one ran.
    pub(super) alone: Option<i64>,
}

/// What is granted and who is suspect.
///
/// A pure data structure, part of the [`ledger`](super::ledger). Invariants:
///
/// 1. Everything below `granted` stands in a committed note as possibly started; nothing else is handed
///    out.
/// 2. A careful grant (of a suspect) is asked for only while the partition is quiet: all that was handed
///    out is finished, or its first run ended well enough to be told of (`rested`), or it outlasted the
///    patience.
/// 3. At most one record is named; no other first run of the partition was under way when it started, nor,
///    by the [`baton`](super::baton), one of a suspect elsewhere in the process; and none was held, behind
///    which it might wait instead of starting.
/// 4. A crash is counted only for a record that was found named and unfinished, once for each time; the
///    count is dropped when the record is finished or held.
/// 5. A clean close names nobody and accuses nobody. Suspects that were not reached stay suspect, as they
///    were found.
#[derive(Debug, Default)]
pub(super) struct Watch {
    suspects: Option<Suspects>,
    /// What the next note says.
    open: Option<Open>,
    /// How far a grant was asked for.
    asked: Option<i64>,
    granted: Option<i64>,
    /// The version of the books with the last name that may stand in the committed note.
    named: Option<u64>,
    /// By offset; of unfinished records.
    crashes: BTreeMap<i64, u32>,
    /// As it was found, or committed since.
    noted: Noted,
    /// Unfinished suspects that no process dies of any more, as far as one can tell.
    rested: BTreeSet<i64>,
    /// Unfinished suspects that a handler has.
    running: BTreeSet<i64>,
    /// Unfinished suspects that are held for a later attempt: others may wait behind them.
    held: BTreeSet<i64>,
}

/// What a note says of grants and suspects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) open: Option<Open>,
    pub(super) crashes: BTreeMap<i64, u32>,
}

impl Noted {
    /// Nothing at `end` and behind was there to be started.
    pub(super) fn bound(&mut self, end: i64) {
        if let Some(open) = &mut self.open {
            (open.until, open.rest) = (open.until.min(end), open.rest.min(end));
        }
    }
}

/// An assignment of this process that has ended, well or not.
#[derive(Debug, Clone, Default)]
pub(super) struct Former {
    noted: Noted,
    left: Option<Open>,
}

impl Former {
    /// What to go on with when `found` is found now. Where nobody was in between, nobody died: the
    /// membership was lost, or the last commit failed.
    pub(super) fn acquit(self, found: Noted) -> Noted {
        let Noted { open, crashes } = found;
        match self.noted.open == open && self.noted.crashes == crashes {
            true => Noted { open: self.left, crashes },
            false => Noted { open, crashes },
        }
    }
}

/// All unfinished records before `until`, to be run `step` by `step`; then those before `rest`.
#[derive(Debug, Clone, Copy)]
struct Suspects {
    until: i64,
    step: i64,
    rest: i64,
    /// The step that was found.
    found: i64,
    waits: u32,
    /// Whether some of them outlasted the patience.
    outlasted: bool,
}

impl Suspects {
    /// Those that a record belongs to.
    fn of(self, offset: i64) -> Option<Self> {
        match self {
            Self { until, .. } if offset < until => Some(self),
            Self { rest, .. } if offset < rest => {
                Some(Self { until: rest, step: FEW, found: MANY, ..self })
            }
            _ => None,
        }
    }

    fn waits(&self) -> u32 {
        self.waits.saturating_add(u32::from(self.outlasted))
    }
}

impl Watch {
    /// The watch of an assignment that begins at `position`, with what was found there.
    pub(super) fn new(position: Option<i64>, found: Noted, is_done: impl Fn(i64) -> bool) -> Self {
        let Some(position) = position else { return Self::default() };
        let mut crashes = found.crashes.clone();
        crashes = crashes.split_off(&position);
        crashes.retain(|offset, _| !is_done(*offset));
        let open = found.open.clone();
        let mut watch = Self { crashes, noted: found, ..Self::default() };
        let Some(mut open) = open.filter(|open| open.rest > position) else { return watch };
        if let Some(alone) = open.alone.take()
            && (position..open.until).contains(&alone)
            && !is_done(alone)
        {
            let count = watch.crashes.entry(alone).or_default();
            *count = count.saturating_add(1);
            // To be committed in any case, or the next one would count it again.
            watch.named = Some(0);
        }
        let Open { until, step: found, rest, waits, .. } = open;
        let step = if found > FEW { FEW } else { 1 };
        let suspects = Suspects { until, step, rest, found, waits, outlasted: false };
        watch.suspects = suspects.of(position);
        watch.open = Some(open);
        watch
    }

    /// What stands in the committed note, where that is not what this watch goes on with.
    pub(super) fn found(&mut self, noted: Noted) {
        self.noted = noted;
    }

    /// Records before may be suspect.
    pub(super) fn suspects_until(&self) -> Option<i64> {
        self.suspects.map(|suspects| suspects.rest)
    }

    fn is_careful(&self) -> bool {
        self.suspects.is_some()
    }

    /// How often a record killed its process.
    pub(super) fn crashes(&self, offset: i64) -> u32 {
        self.crashes.get(&offset).copied().unwrap_or(0)
    }

    pub(super) fn has_crashes(&self) -> bool {
        !self.crashes.is_empty()
    }

    /// Asks for a grant of `head` and some behind it, in the books' version `version`. A suspect alone is
    /// named only when it `may_name`. Returns up to where.
    pub(super) fn ask(&mut self, head: i64, may_name: bool, version: u64) -> i64 {
        self.suspects = self.suspects.and_then(|suspects| suspects.of(head));
        let Some(suspects) = self.suspects else {
            for set in [&mut self.rested, &mut self.running, &mut self.held] {
                set.clear();
            }
            let until = head.saturating_add(MANY).max(self.asked.unwrap_or(0));
            self.asked = Some(until);
            self.open = Some(Open { until, step: MANY, rest: until, waits: 0, alone: None });
            return until;
        };
        let Suspects { step, rest, .. } = suspects;
        let asked = head.saturating_add(step).min(suspects.until);
        self.asked = Some(asked);
        // Those that were to run alone stay so when the process dies of something else.
        let until = if step == 1 { suspects.until } else { asked };
        // Behind a held one of its key it would not start, and be found named when that one kills.
        let nobody_else = !self.has_strays() && self.held.is_empty();
        let is_named = step == 1 && may_name && nobody_else;
        if is_named {
            self.named = Some(version);
        }
        let alone = is_named.then_some(head);
        self.open = Some(Open { until, step, rest, waits: suspects.waits(), alone });
        asked
    }

    /// Up to where a grant was asked for.
    pub(super) fn asked(&self) -> Option<i64> {
        self.asked
    }

    /// Whether a grant was asked for that is not committed.
    pub(super) fn is_asking(&self) -> bool {
        self.asked > self.granted
    }

    /// A note of the books' version `version` was committed, with what had been asked for until then.
    pub(super) fn committed(&mut self, asked: Option<i64>, note: &Noted, version: u64) {
        self.granted = self.granted.max(asked);
        self.noted.clone_from(note);
        let names = note.open.as_ref().is_some_and(|open| open.alone.is_some());
        if !names && self.named.is_some_and(|named| named <= version) {
            self.named = None;
        }
    }

    /// Records below may be handed out.
    pub(super) fn granted(&self) -> i64 {
        self.granted.unwrap_or(i64::MIN)
    }

    /// What the note says while everything before `position` is finished.
    pub(super) fn note(&self, position: i64) -> Noted {
        let open = self.open.clone().filter(|open| open.rest > position);
        Noted { open, crashes: self.crashes.clone() }
    }

    /// A record is finished.
    pub(super) fn finish(&mut self, offset: i64) {
        if !self.is_careful() && !self.has_crashes() {
            return;
        }
        self.absolve(offset);
        for set in [&mut self.rested, &mut self.running, &mut self.held] {
            set.remove(&offset);
        }
    }

    /// A handler starts with a record.
    pub(super) fn begin(&mut self, offset: i64) {
        if self.is_careful() {
            self.running.insert(offset);
        }
    }

    /// The handling of a record came to an end, and it is held for a later attempt.
    pub(super) fn hold(&mut self, offset: i64) {
        self.absolve(offset);
        self.rest(offset);
        if self.is_careful() {
            self.held.insert(offset);
        }
    }

    /// A record is given back: its run is over, or was cut off.
    pub(super) fn rest(&mut self, offset: i64) {
        self.withdraw(|alone| alone == offset);
        self.running.remove(&offset);
        if self.is_careful() {
            self.rested.insert(offset);
        }
    }

    /// Its handling came to an end.
    fn absolve(&mut self, offset: i64) {
        self.crashes.remove(&offset);
        self.withdraw(|alone| alone == offset);
    }

    fn withdraw(&mut self, which: impl Fn(i64) -> bool) {
        if let Some(open) = &mut self.open {
            open.alone = open.alone.filter(|alone| !which(*alone));
        }
    }

    /// Suspects ran for longer than the patience: `unfinished` keep nobody waiting any more, nor are they
    /// accused. Should the process die of them, the next one is more patient.
    pub(super) fn outlast(&mut self, unfinished: impl Iterator<Item = i64>) {
        self.rested.extend(unfinished);
        self.withdraw(|_| true);
        if let Some(suspects) = &mut self.suspects {
            suspects.outlasted = true;
            if let Some(open) = &mut self.open {
                open.waits = suspects.waits();
            }
        }
    }

    /// How long suspects may keep others waiting.
    pub(super) fn patience(&self) -> Duration {
        let waits = self.suspects.map_or(0, |suspects| suspects.waits);
        PATIENCE * (1 << waits.min(MOST_WAITS))
    }

    /// How many unfinished records are not waited for.
    pub(super) fn rested(&self) -> usize {
        self.rested.len()
    }

    /// Whether suspects that nobody waits for run on, or again.
    pub(super) fn has_strays(&self) -> bool {
        self.running.iter().any(|offset| self.rested.contains(offset))
    }

    /// Whether the committed note may have a name.
    pub(super) fn is_named(&self) -> bool {
        self.named.is_some()
    }

    /// The assignment ends well. Whether that changes the note.
    pub(super) fn close(&mut self) -> bool {
        let left = self.suspects.map(|Suspects { until, found: step, rest, waits, .. }| Open {
            until,
            step,
            rest,
            waits,
            alone: None,
        });
        let changed = self.open != left;
        self.open = left;
        changed
    }

    /// What is to be remembered of it when it is closed.
    pub(super) fn former(&self) -> Former {
        Former { noted: self.noted.clone(), left: self.open.clone() }
    }
}

#[cfg(test)]
mod tests;
