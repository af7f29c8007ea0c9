//! [`Journal`]: the file in which the handlers of several processes record their runs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cqrs_core::Received;

use super::work::{Id, Work};

/// Writes lines, each by one write to the end of the file, so that those of several processes do not mix
/// and their order is that of the writes.
#[derive(Debug)]
pub struct Journal(File);

/// The event of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A handler started.
    Start,
    /// It succeeded.
    End,
    /// It failed.
    Fail,
}

/// A line of a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The event.
    pub mark: Mark,
    /// The message.
    pub id: Id,
    /// The attempt.
    pub attempt: u32,
    /// Kafka's partition and offset.
    pub place: Option<(i32, i64)>,
    /// The process.
    pub pid: u32,
    /// The time since 1970.
    pub at: Duration,
}

/// Now, since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Journal {
    /// Opens the file at `path`, which is made when it is missing.
    ///
    /// # Errors
    /// As the file system has them.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self)
    }

    /// Records a handler's event.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write(&self, mark: Mark, work: &Work, received: &Received) {
        let mark = match mark {
            Mark::Start => 'S',
            Mark::End => 'E',
            Mark::Fail => 'F',
        };
        let (partition, offset) = (received.partition, received.offset);
        let (partition, offset) = (partition.unwrap_or(-1), offset.unwrap_or(-1));
        let (key, seq, attempt) = (&work.key, work.seq, received.attempt());
        let (pid, at) = (std::process::id(), now().as_micros());
        self.append(&format!("{mark} {key} {seq} {attempt} {partition} {offset} {pid} {at}\n"));
    }

    /// Records that this process consumes.
    pub fn ready(&self) {
        self.append(&format!("R {}\n", std::process::id()));
    }

    /// Records the end of this process.
    pub fn report(&self, text: &str) {
        self.append(&format!("X {} {text}\n", std::process::id()));
    }

    fn append(&self, line: &str) {
        let written = (&self.0).write(line.as_bytes()).expect("the journal can be written");
        assert_eq!(written, line.len(), "a line is written at once");
    }
}

/// Reads a journal while it is written.
#[derive(Debug)]
pub struct Reader {
    file: File,
    /// The beginning of an incomplete line.
    rest: String,
    /// The handlers' lines so far.
    pub lines: Vec<Line>,
    /// The processes that consume, in order.
    pub ready: Vec<u32>,
    /// The ends of processes.
    pub reports: Vec<(u32, String)>,
}

impl Reader {
    /// Reads the file at `path`, which is made when it is missing.
    ///
    /// # Errors
    /// As the file system has them.
    pub fn open(path: &Path) -> io::Result<Self> {
        drop(Journal::open(path)?);
        let file = File::open(path)?;
        let (rest, lines) = (String::new(), Vec::new());
        Ok(Self { file, rest, lines, ready: Vec::new(), reports: Vec::new() })
    }

    /// Reads on. Returns where in `lines` the new ones begin.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn refresh(&mut self) -> usize {
        let mut text = std::mem::take(&mut self.rest);
        let before = self.lines.len();
        self.file.read_to_string(&mut text).expect("the journal can be read");
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            self.line(line).unwrap_or_else(|| panic!("a line of the journal: {line:?}"));
        }
        self.rest = text.split_off(whole);
        before
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let (mark, rest) = line.split_once(' ')?;
        let mark = match mark {
            "S" => Mark::Start,
            "E" => Mark::End,
            "F" => Mark::Fail,
            "R" => {
                self.ready.push(rest.parse().ok()?);
                return Some(());
            }
            "X" => {
                let (pid, text) = rest.split_once(' ')?;
                self.reports.push((pid.parse().ok()?, text.to_owned()));
                return Some(());
            }
            _ => return None,
        };
        let mut fields = rest.split(' ');
        let mut next = || fields.next();
        let (key, seq, attempt) = (next()?, next()?.parse().ok()?, next()?.parse().ok()?);
        let (partition, offset) = (next()?.parse().ok()?, next()?.parse().ok()?);
        let (pid, at) = (next()?.parse().ok()?, next()?.parse().ok()?);
        let place = (partition >= 0).then_some((partition, offset));
        let (id, at) = ((key.into(), seq), Duration::from_micros(at));
        self.lines.push(Line { mark, id, attempt, place, pid, at });
        Some(())
    }
}
