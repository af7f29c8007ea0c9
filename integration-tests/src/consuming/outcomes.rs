//! [`Outcomes`]: the results of a fault test's messages, from the journal of its handlers.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::journal::{Line, Mark, Reader};
use super::work::Id;

/// The published messages.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Those whose publish was begun.
    pub attempted: HashSet<Id>,
    /// Those the broker confirmed.
    pub confirmed: HashSet<Id>,
}

impl Published {
    /// Adds those of `other`.
    pub fn add(&mut self, other: Self) {
        self.attempted.extend(other.attempted);
        self.confirmed.extend(other.confirmed);
    }
}

/// The runs of one message.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// Handlers that started.
    pub starts: u32,
    /// Those that succeeded.
    pub ends: u32,
    /// Those that failed.
    pub fails: u32,
}

/// The results of handlers, read from a journal.
#[derive(Debug)]
pub struct Outcomes {
    reader: Reader,
    entries: HashMap<Id, Entry>,
    handled: usize,
    /// By key: the highest number that was started.
    last: HashMap<Box<str>, u32>,
    out_of_order: usize,
}

impl Outcomes {
    /// The results in the journal of `reader`.
    pub fn new(reader: Reader) -> Self {
        let (entries, last) = (HashMap::new(), HashMap::new());
        Self { reader, entries, handled: 0, last, out_of_order: 0 }
    }

    /// Reads on.
    pub fn refresh(&mut self) -> &mut Self {
        let new = self.reader.refresh();
        for line in &self.reader.lines[new..] {
            let entry = match self.entries.get_mut(&line.id) {
                Some(entry) => entry,
                None => self.entries.entry(line.id.clone()).or_default(),
            };
            match line.mark {
                Mark::Start => {
                    entry.starts += 1;
                    if entry.starts > 1 {
                        continue;
                    }
                    let (key, seq) = &line.id;
                    match self.last.get_mut(key) {
                        Some(last) if *last > *seq => self.out_of_order += 1,
                        Some(last) => *last = *seq,
                        None => drop(self.last.insert(key.clone(), *seq)),
                    }
                }
                Mark::End => {
                    entry.ends += 1;
                    self.handled += usize::from(entry.ends == 1);
                }
                Mark::Fail => entry.fails += 1,
            }
        }
        self
    }

    /// Different messages whose handler succeeded.
    pub fn handled(&self) -> usize {
        self.handled
    }

    /// The runs of a message.
    pub fn entry(&self, id: &Id) -> Entry {
        self.entries.get(id).cloned().unwrap_or_default()
    }

    /// Messages with an unfinished handler.
    pub fn interrupted(&self) -> HashSet<Id> {
        let open = self.entries.iter().filter(|(_, entry)| entry.starts > entry.ends + entry.fails);
        open.map(|(id, _)| id.clone()).collect()
    }

    /// Successful runs beyond the first of each message.
    pub fn duplicates(&self) -> usize {
        self.entries.values().map(|entry| entry.ends.saturating_sub(1) as usize).sum()
    }

    /// All lines.
    pub fn lines(&self) -> &[Line] {
        &self.reader.lines
    }

    /// Processes that said that they consume.
    pub fn ready(&self) -> &[u32] {
        &self.reader.ready
    }

    /// The ends of processes.
    pub fn reports(&self) -> &[(u32, String)] {
        &self.reader.reports
    }

    /// Compares the results with the published messages and the dead letters. Prints and returns the summary.
    pub fn check(&mut self, test: &str, published: &Published, dead: &[Id]) -> Summary {
        self.refresh();
        let died: HashSet<&Id> = dead.iter().collect();
        let ended = |id: &&Id| self.entries.get(*id).is_some_and(|entry| entry.ends > 0);
        let lost: Vec<_> = published
            .confirmed
            .iter()
            .filter(|id| !ended(id) && !died.contains(*id))
            .cloned()
            .collect();
        let unexpected =
            self.entries.keys().chain(dead).filter(|id| !published.attempted.contains(*id));
        let summary = Summary {
            test: test.into(),
            attempted: published.attempted.len(),
            confirmed: published.confirmed.len(),
            handled: self.handled,
            dead: died.len(),
            dead_copies: dead.len() - died.len(),
            handled_and_dead: died.iter().filter(|id| ended(id)).count(),
            lost: lost.len(),
            unexpected: unexpected.count(),
            out_of_order: self.out_of_order,
            duplicates: self.duplicates(),
            interrupted: self
                .entries
                .values()
                .map(|entry| entry.starts.saturating_sub(entry.ends + entry.fails) as usize)
                .sum(),
            most: self.entries.values().map(|entry| entry.ends).max().unwrap_or(0),
            note: String::new(),
        };
        if !lost.is_empty() {
            println!("lost: {:?}", &lost[..lost.len().min(10)]);
        }
        summary
    }
}

/// The summary line of a fault test.
#[derive(Debug)]
pub struct Summary {
    /// The test.
    pub test: String,
    /// Messages whose publish was begun.
    pub attempted: usize,
    /// K: those the broker confirmed.
    pub confirmed: usize,
    /// H: those a handler succeeded with.
    pub handled: usize,
    /// Different dead letters.
    pub dead: usize,
    /// Dead letters beside the first of a message.
    pub dead_copies: usize,
    /// Dead letters of messages that a handler succeeded with.
    pub handled_and_dead: usize,
    /// Confirmed, not handled, not dead.
    pub lost: usize,
    /// Handled or dead, and never attempted.
    pub unexpected: usize,
    /// First starts of a key before one that was published earlier.
    pub out_of_order: usize,
    /// Successes beside the first of a message.
    pub duplicates: usize,
    /// Handlers that started and did not finish.
    pub interrupted: usize,
    /// The most successes of one message.
    pub most: u32,
    /// Further results.
    pub note: String,
}

impl Summary {
    /// Adds further results, prints the line, and checks what must hold after every fault.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn sound(self, note: impl Into<String>) -> Self {
        let summary = self.complete(note);
        assert_eq!(summary.out_of_order, 0, "{summary}");
        summary
    }

    /// As [`sound`](Self::sound), for a broker that may break the order itself.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn complete(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        println!("{self}");
        assert_eq!((self.lost, self.unexpected, self.handled_and_dead), (0, 0, 0), "{self}");
        self
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SUMMARY {}: attempted {} confirmed {} handled {} dead {} (+{}) lost {} unexpected {} \
             out-of-order {} duplicates {} (most {}) interrupted {} | {}",
            self.test,
            self.attempted,
            self.confirmed,
            self.handled,
            self.dead,
            self.dead_copies,
            self.lost,
            self.unexpected,
            self.out_of_order,
            self.duplicates,
            self.most,
            self.interrupted,
            self.note
        )
    }
}
