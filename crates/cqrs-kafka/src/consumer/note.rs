//! What stands in the metadata of a commit beside the offset: which records may have been started, how
//! often records killed their process, the attempts of records that failed and are not finished yet, and
//! what is finished behind the offset.
//!
//! A versioned text of sections, each left out when it is empty; numbers are hexadecimal:
//!
//! | section | |
//! |---|---|
//! | `cqrs1` | the version |
//! | `;o=<until>.<step>.<more>.<waits>`, and `.<alone>` if there is one | [`Open`]; its `rest` is `until` + `more` |
//! | `;c=<offset>.<crashes>,…` | each offset counted from the one before |
//! | `;a=<offset>.<attempts>.<first>.<last>,…` | the same; times in microseconds since 1970, the last one counted from the first |
//! | `;d=<gap>.<length>,…` | runs of finished records; the gap is counted from the end of the run before |
//!
//! Sections that are not known are skipped, so that an older reader gets along with a newer writer.
//! Anything else (another client's metadata) reads as no note at all.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use cqrs_core::{RetryState, Timestamp};

use super::watch::{Noted, Open};

/// Brokers take no more (`offset.metadata.max.bytes`), in bytes.
pub(super) const MAX_BYTES: usize = 4_096;

const VERSION: &str = "cqrs1";

/// What a commit says beside its offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Which records may have been started, and how often one killed its process.
    pub(super) noted: Noted,
    /// By offset: what is known of the attempts at a record.
    pub(super) attempts: BTreeMap<i64, RetryState>,
    /// Finished records behind the offset, as ranges in order: they are not handed out again.
    pub(super) done: Vec<Range<i64>>,
}

impl Note {
    /// The text. What does not fit is left out, highest offsets first: those attempts count anew, those
    /// records come again.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::from(VERSION);
        // Writing to a `String` does not fail.
        if let Some(Open { until, step, rest, waits, alone }) = &self.noted.open {
            let _ = write!(text, ";o={until:x}.{step:x}.{:x}.{waits:x}", rest - until);
            if let Some(alone) = alone {
                let _ = write!(text, ".{alone:x}");
            }
        }
        let mut entry = String::new();
        let mut before = 0;
        for (index, (offset, crashes)) in self.noted.crashes.iter().enumerate() {
            entry.clear();
            let lead = if index == 0 { ";c=" } else { "," };
            let _ = write!(entry, "{lead}{:x}.{crashes:x}", offset - before);
            if text.len() + entry.len() > MAX_BYTES {
                break;
            }
            text.push_str(&entry);
            before = *offset;
        }
        let mut before = 0;
        for (index, (offset, state)) in self.attempts.iter().enumerate() {
            entry.clear();
            let first = state.first_failure.map_or(0, Timestamp::unix_micros);
            let last = state.last_failure.map_or(first, Timestamp::unix_micros);
            let lead = if index == 0 { ";a=" } else { "," };
            let _ = write!(
                entry,
                "{lead}{:x}.{:x}.{first:x}.{:x}",
                offset - before,
                state.attempts,
                last.saturating_sub(first).max(0)
            );
            if text.len() + entry.len() > MAX_BYTES {
                break;
            }
            text.push_str(&entry);
            before = *offset;
        }
        let mut before = 0;
        for (index, run) in self.done.iter().enumerate() {
            entry.clear();
            let lead = if index == 0 { ";d=" } else { "," };
            let _ = write!(entry, "{lead}{:x}.{:x}", run.start - before, run.end - run.start);
            if text.len() + entry.len() > MAX_BYTES {
                break;
            }
            text.push_str(&entry);
            before = run.end;
        }
        text
    }

    /// Reads it back; what is foreign or broken reads as an empty note.
    pub(super) fn parse(text: &str) -> Self {
        Self::try_parse(text).unwrap_or_default()
    }

    fn try_parse(text: &str) -> Option<Self> {
        let mut sections = text.split(';');
        if sections.next()? != VERSION {
            return None;
        }
        let mut note = Self::default();
        for section in sections {
            match section.split_once('=')? {
                ("o", open) => note.noted.open = Some(parse_open(open)?),
                ("c", entries) => note.noted.crashes = parse_crashes(entries)?,
                ("a", entries) => note.attempts = parse_attempts(entries)?,
                ("d", runs) => note.done = parse_done(runs)?,
                _ => {}
            }
        }
        Some(note)
    }
}

fn parse_open(open: &str) -> Option<Open> {
    let mut fields = open.split('.');
    let (until, step) = (number(fields.next()?)?, number(fields.next()?)?);
    let rest = until.checked_add(number(fields.next()?)?)?;
    let waits = u32::try_from(number(fields.next()?)?).ok()?;
    let alone = match fields.next() {
        None => None,
        Some(alone) => Some(number(alone)?),
    };
    Some(Open { until, step, rest, waits, alone })
}

fn parse_crashes(entries: &str) -> Option<BTreeMap<i64, u32>> {
    let mut offset = 0_i64;
    let entry = |text: &str| {
        let (gap, count) = text.split_once('.')?;
        offset = offset.checked_add(number(gap)?)?;
        Some((offset, u32::try_from(number(count)?).ok()?))
    };
    entries.split(',').map(entry).collect()
}

fn parse_attempts(entries: &str) -> Option<BTreeMap<i64, RetryState>> {
    let mut attempts = BTreeMap::new();
    let mut offset = 0_i64;
    for entry in entries.split(',') {
        let mut fields = entry.split('.');
        offset = offset.checked_add(number(fields.next()?)?)?;
        let count = u32::try_from(number(fields.next()?)?).ok()?;
        let first = number(fields.next()?)?;
        let last = first.checked_add(number(fields.next()?)?)?;
        let mut state = RetryState::default();
        state.attempts = count;
        if count > 0 && first > 0 {
            state.first_failure = Some(Timestamp::from_unix_micros(first));
            state.last_failure = Some(Timestamp::from_unix_micros(last));
        }
        attempts.insert(offset, state);
    }
    Some(attempts)
}

fn parse_done(runs: &str) -> Option<Vec<Range<i64>>> {
    let mut end = 0_i64;
    let run = |text: &str| {
        let (gap, length) = text.split_once('.')?;
        let start = end.checked_add(number(gap)?)?;
        end = start.checked_add(number(length)?)?;
        Some(start..end)
    };
    runs.split(',').map(run).collect()
}

fn number(text: &str) -> Option<i64> {
    // `from_str_radix` takes a sign; ours never has one.
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    i64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(attempts: u32, first: i64, last: i64) -> RetryState {
        let mut state = RetryState::default();
        if attempts > 0 {
            state = state.failed(Timestamp::from_unix_micros(first));
            state = state.failed(Timestamp::from_unix_micros(last));
        }
        state.attempts = attempts;
        state
    }

    #[test]
    fn the_text_is_short_and_stable() {
        let mut note = Note::default();
        assert_eq!(note.to_text(), "cqrs1");
        note.attempts.insert(4096, state(2, 0x10, 0x30));
        note.attempts.insert(4106, state(0, 0, 0));
        note.done = vec![4097..4099, 4110..4200];
        assert_eq!(note.to_text(), "cqrs1;a=1000.2.10.20,a.0.0.0;d=1001.2,b.5a");
        assert_eq!(Note::parse(&note.to_text()), note);
        let mut note = Note::default();
        note.noted.open =
            Some(Open { until: 4098, step: 1, rest: 4099, waits: 2, alone: Some(4096) });
        note.noted.crashes = BTreeMap::from([(4096, 2), (4100, 1)]);
        assert_eq!(note.to_text(), "cqrs1;o=1002.1.1.2.1000;c=1000.2,4.1");
        assert_eq!(Note::parse(&note.to_text()), note);
        note.noted.open = Some(Open { until: 4097, step: 256, rest: 4097, waits: 0, alone: None });
        assert_eq!(note.to_text(), "cqrs1;o=1001.100.0.0;c=1000.2,4.1");
        assert_eq!(Note::parse(&note.to_text()), note);
    }

    #[test]
    fn what_is_foreign_or_broken_is_ignored() {
        for text in [
            "",
            "x",
            "cqrs2;a=1.1.1.1",
            "cqrs1;a=",
            "cqrs1;a=1.1",
            "cqrs1;a=-1.1.1.1",
            "cqrs1;a=1.+1.1.1",
            "cqrs1;a",
            "{\"a\":1}",
            "cqrs1;a=ffffffffffffffffff.1.1.1",
            "cqrs1;a=7fffffffffffffff.1.1.1,1.1.1.1",
            "cqrs1;a=1.1.7fffffffffffffff.1",
            "cqrs1;d=1",
            "cqrs1;d=1.2,",
            "cqrs1;d=7fffffffffffffff.1",
            "cqrs1;o=1",
            "cqrs1;o=1.2",
            "cqrs1;o=1.2.3",
            "cqrs1;o=1.2.3.4.",
            "cqrs1;o=1.2.3.100000000",
            "cqrs1;o=7fffffffffffffff.1.1.1",
            "cqrs1;o=-1.2.3.4",
            "cqrs1;c=",
            "cqrs1;c=1.100000000",
            "cqrs1;c=7fffffffffffffff.1,1.1",
        ] {
            assert_eq!(Note::parse(text), Note::default(), "{text}");
        }
        let newer = Note::parse("cqrs1;z=whatever;a=1.2.3.4");
        assert_eq!(newer.attempts[&1].attempts, 2, "unknown sections are skipped");
    }

    proptest! {
        #[test]
        fn it_is_read_back_and_never_too_long(
            entries in proptest::collection::btree_map(
                0..i64::MAX / 2, (1..u32::MAX, 1..i64::MAX / 4, 0..i64::MAX / 4), 0..300),
            crashes in proptest::collection::btree_map(0..i64::MAX / 2, any::<u32>(), 0..60),
            open in proptest::option::of((0..i64::MAX / 2, 0..i64::MAX / 2, any::<u32>(),
                proptest::option::of(0..i64::MAX))),
            runs in 0..800_i64,
        ) {
            let attempts = entries
                .into_iter()
                .map(|(offset, (count, first, more))| {
                    (offset, state(count, first, first + more))
                })
                .collect();
            let done = (0..runs).map(|run| 20 * run + 7..20 * run + 9).collect();
            let open = open.map(|(until, more, waits, alone)| {
                Open { until, step: 1, rest: until + more, waits, alone }
            });
            let note = Note { noted: Noted { open, crashes }, attempts, done };
            let text = note.to_text();
            prop_assert!(text.len() <= MAX_BYTES);
            let read = Note::parse(&text);
            prop_assert_eq!(&note.noted, &read.noted);
            prop_assert!(note.done.starts_with(&read.done));
            // The lowest offsets are kept: those at the watermark.
            prop_assert!(note.attempts.iter().take(read.attempts.len()).eq(read.attempts.iter()));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", tail in "[;acdo=f0-9.,-]*") {
            Note::parse(&text);
            Note::parse(&format!("cqrs1;{tail}"));
        }
    }
}
