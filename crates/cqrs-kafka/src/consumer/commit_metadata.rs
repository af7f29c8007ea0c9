//! The commit metadata: the text that a commit carries beside the offset, for the next owner of the partition.
//! Written by the [`offset_tracker`](super::offset_tracker), read with the committed offsets.
//!
//! A versioned text of sections, each left out when it is empty; numbers are hexadecimal:
//!
//! | section | |
//! |---|---|
//! | `cqrs1` | the version |
//! | `;p=<partitions>` | the number of partitions that the topic had when the group began with its start option |
//! | `;u=<count>.<process>` | [`UncleanEnds`]: the number in a row, and the process that has the partition |
//! | `;until=<offset>` | its `until` |
//! | `;n=<offset>` | its `named` |
//! | `;c=<offset>.<crashes>,…` | its `crashes`; each offset counted from the one before |
//! | `;a=<offset>.<attempts>.<first>.<last>,…` | the same; times in microseconds since 1970, the last one counted from the first |
//! | `;d=<gap>.<length>,…` | runs of finished records; the gap is counted from the end of the run before |
//!
//! Unknown sections are skipped, so that readers and writers of several versions work together. Any other text
//! (another client's metadata) reads as no metadata.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use cqrs_core::consume::RetryState;
use cqrs_core::event::Timestamp;

/// The brokers' limit in bytes (`offset.metadata.max.bytes`).
pub(super) const MAX_BYTES: usize = 4_096;

const VERSION: &str = "cqrs1";

/// The unclean ends of a partition, for its [`quarantine`](super::quarantine).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UncleanEnds {
    /// The number in a row, if this assignment has no last commit. 0: it had one, or no crashes are counted.
    pub(super) count: u32,
    /// The process that has the partition. While it lives, the end of an assignment is no death.
    pub(super) process: i64,
    /// Records below may have been delivered. `None`: all may.
    pub(super) until: Option<i64>,
    /// The record that was started while no other quarantined record ran.
    pub(super) named: Option<i64>,
    /// By offset: the number of times the process died while the record ran alone.
    pub(super) crashes: BTreeMap<i64, u32>,
}

/// The metadata of one commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CommitMetadata {
    /// The number of partitions that the topic had when the group began with its start option.
    pub(super) partitions: Option<i32>,
    pub(super) unclean: UncleanEnds,
    /// By offset: the failed attempts at a record.
    pub(super) attempts: BTreeMap<i64, RetryState>,
    /// Finished records behind the offset, as ranges in order: they are not redelivered.
    pub(super) done: Vec<Range<i64>>,
}

impl CommitMetadata {
    /// The text. Entries that do not fit are left out, highest offsets first: their attempts count from zero, their
    /// records are redelivered.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::from(VERSION);
        // Writing to a `String` does not fail.
        if let Some(partitions) = self.partitions {
            let _ = write!(text, ";p={partitions:x}");
        }
        let UncleanEnds { count, process, until, named, crashes } = &self.unclean;
        if *count > 0 {
            let _ = write!(text, ";u={count:x}.{process:x}");
        }
        if let Some(until) = until {
            let _ = write!(text, ";until={until:x}");
        }
        if let Some(named) = named {
            let _ = write!(text, ";n={named:x}");
        }
        let mut before = 0;
        list(&mut text, "c", crashes, |entry, (offset, crashes)| {
            let _ = write!(entry, "{:x}.{crashes:x}", offset - before);
            before = *offset;
        });
        let mut before = 0;
        list(&mut text, "a", &self.attempts, |entry, (offset, state)| {
            let first = state.first_failure.map_or(0, Timestamp::unix_micros);
            let last = state.last_failure.map_or(first, Timestamp::unix_micros);
            let (gap, last) = (offset - before, last.saturating_sub(first).max(0));
            let _ = write!(entry, "{gap:x}.{:x}.{first:x}.{last:x}", state.attempts);
            before = *offset;
        });
        let mut before = 0;
        list(&mut text, "d", &self.done, |entry, run| {
            let _ = write!(entry, "{:x}.{:x}", run.start - before, run.end - run.start);
            before = run.end;
        });
        text
    }

    /// Parses the text. Foreign or broken metadata reads as none.
    pub(super) fn parse(text: &str) -> Self {
        Self::try_parse(text).unwrap_or_default()
    }

    fn try_parse(text: &str) -> Option<Self> {
        let mut sections = text.split(';');
        if sections.next()? != VERSION {
            return None;
        }
        let mut metadata = Self::default();
        for section in sections {
            match section.split_once('=')? {
                ("p", count) => metadata.partitions = Some(i32::try_from(number(count)?).ok()?),
                ("u", unclean) => {
                    let (count, process) = unclean.split_once('.')?;
                    metadata.unclean.count = u32::try_from(number(count)?).ok()?;
                    metadata.unclean.process = number(process)?;
                }
                ("until", until) => metadata.unclean.until = Some(number(until)?),
                ("n", named) => metadata.unclean.named = Some(number(named)?),
                ("c", entries) => metadata.unclean.crashes = parse_crashes(entries)?,
                ("a", entries) => metadata.attempts = parse_attempts(entries)?,
                ("d", runs) => metadata.done = parse_done(runs)?,
                _ => {}
            }
        }
        Some(metadata)
    }
}

/// Writes a section of entries, as many as fit.
fn list<T>(
    text: &mut String,
    section: &str,
    entries: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    let mut entry = format!(";{section}=");
    for value in entries {
        write(&mut entry, value);
        if text.len() + entry.len() > MAX_BYTES {
            return;
        }
        text.push_str(&entry);
        entry.clear();
        entry.push(',');
    }
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
    // `from_str_radix` accepts a sign, which is never written here.
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
    fn text_is_short_and_stable() {
        let mut metadata = CommitMetadata::default();
        assert_eq!(metadata.to_text(), "cqrs1");
        metadata.attempts.insert(4096, state(2, 0x10, 0x30));
        metadata.attempts.insert(4106, state(0, 0, 0));
        metadata.done = vec![4097..4099, 4110..4200];
        assert_eq!(metadata.to_text(), "cqrs1;a=1000.2.10.20,a.0.0.0;d=1001.2,b.5a");
        assert_eq!(CommitMetadata::parse(&metadata.to_text()), metadata);
        let mut metadata = CommitMetadata { partitions: Some(12), ..CommitMetadata::default() };
        metadata.unclean = UncleanEnds {
            count: 3,
            process: 0xabc,
            until: Some(4098),
            named: Some(4096),
            crashes: BTreeMap::from([(4096, 2), (4100, 1)]),
        };
        assert_eq!(metadata.to_text(), "cqrs1;p=c;u=3.abc;until=1002;n=1000;c=1000.2,4.1");
        assert_eq!(CommitMetadata::parse(&metadata.to_text()), metadata);
    }

    #[test]
    fn earlier_version_is_read_without_its_limits() {
        let metadata =
            CommitMetadata::parse("cqrs1;o=1002.1.1.2.1000;c=1000.2;a=1000.2.10.20;d=1001.2,b.5a");
        assert_eq!(metadata.unclean.crashes, BTreeMap::from([(4096, 2)]));
        assert_eq!((metadata.unclean.count, metadata.unclean.named), (0, None));
        assert_eq!((metadata.attempts.len(), metadata.done), (1, vec![4097..4099, 4110..4200]));
    }

    #[test]
    fn foreign_or_broken_text_is_ignored() {
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
            "cqrs1;p=",
            "cqrs1;p=80000000",
            "cqrs1;u=1",
            "cqrs1;u=.1",
            "cqrs1;u=1.8000000000000000",
            "cqrs1;u=100000000.1",
            "cqrs1;until=-1",
            "cqrs1;n=",
            "cqrs1;c=",
            "cqrs1;c=1.100000000",
            "cqrs1;c=7fffffffffffffff.1,1.1",
        ] {
            assert_eq!(CommitMetadata::parse(text), CommitMetadata::default(), "{text}");
        }
        let newer = CommitMetadata::parse("cqrs1;z=whatever;a=1.2.3.4");
        assert_eq!(newer.attempts[&1].attempts, 2, "unknown sections are skipped");
    }

    proptest! {
        #[test]
        fn text_is_read_back_and_never_too_long(
            entries in proptest::collection::btree_map(
                0..i64::MAX / 2, (1..u32::MAX, 1..i64::MAX / 4, 0..i64::MAX / 4), 0..300),
            crashes in proptest::collection::btree_map(0..i64::MAX / 2, any::<u32>(), 0..60),
            unclean in proptest::option::of((1..u32::MAX, 0..i64::MAX, 0..i64::MAX,
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
            let mut found = UncleanEnds { crashes, ..UncleanEnds::default() };
            if let Some((count, process, until, named)) = unclean {
                found = UncleanEnds { count, process, until: Some(until), named, ..found };
            }
            let metadata = CommitMetadata { partitions: None, unclean: found, attempts, done };
            let text = metadata.to_text();
            prop_assert!(text.len() <= MAX_BYTES);
            let read = CommitMetadata::parse(&text);
            prop_assert_eq!(&metadata.unclean, &read.unclean);
            prop_assert!(metadata.done.starts_with(&read.done));
            // The lowest offsets are kept: those at the watermark.
            prop_assert!(metadata.attempts.iter().take(read.attempts.len()).eq(read.attempts.iter()));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", tail in "[;acdunptil=f0-9.,-]*") {
            CommitMetadata::parse(&text);
            CommitMetadata::parse(&format!("cqrs1;{tail}"));
        }
    }
}
