//! Texts, tables and JSON on the standard output. Texts of others are shown without control characters.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use cqrs_core::event::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Writes a line.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Writes a line about work that goes on when nobody reads the output.
pub(crate) fn report(text: &str) -> Result<(), Failure> {
    line(text).or_else(Failure::unless_closed_output)
}

/// Writes a value as one line of JSON.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value);
    line(&text.map_err(|error| Failure::new(format!("writing JSON: {error}")))?)
}

/// A table whose columns are as wide as their widest cell so far.
pub(crate) struct Table<const COLUMNS: usize> {
    widths: [usize; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(crate) fn new(heading: [&str; COLUMNS]) -> Self {
        let mut table = Self { widths: [0; COLUMNS], rows: Vec::new() };
        table.add(heading.map(str::to_owned));
        table
    }

    pub(crate) fn add(&mut self, row: [String; COLUMNS]) {
        for (width, cell) in self.widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.chars().count());
        }
        self.rows.push(row);
    }

    /// The lines of the rows since the last call.
    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        let widths = self.widths;
        let line = |row: [String; COLUMNS]| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        std::mem::take(&mut self.rows).into_iter().map(line).collect()
    }
}

/// A text for a terminal: control characters are escaped.
pub(crate) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// As [`plain`], cut after `max` characters.
pub(crate) fn short(text: &str, max: usize) -> String {
    let shown = plain(text);
    match shown.char_indices().nth(max) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// Bytes as text, or in hexadecimal digits if they are none.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => plain(text),
        Err(_) => format!("0x{}", hex(bytes)),
    }
}

/// Bytes in JSON: a text, or `{"hex": "00ff"}` as in the column of headers.
pub(crate) fn bytes_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // Writing to a string cannot fail.
        let _done = write!(digits, "{byte:02x}");
        digits
    })
}

pub(crate) fn time(time: SystemTime) -> String {
    Timestamp::from(time).to_string()
}

/// A duration in whole seconds; below one second in milliseconds.
pub(crate) fn age(age: Duration) -> String {
    let rounded = match age.as_secs() {
        0 => Duration::from_millis(u64::from(age.subsec_millis())),
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(rounded).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_cannot_control_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\u{9b}é"), "a\\u{1b}[2Jb\\r\\n\\u{9b}é");
        assert_eq!(bytes(b"order-\x07"), "order-\\u{7}");
        assert_eq!(bytes(&[0xff, 0]), "0xff00");
        assert_eq!(short("éééé", 3), "ééé…");
        assert_eq!(short("ééé", 3), "ééé");
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(["ID", "TOPIC"]);
        table.add(["100".to_owned(), "é".to_owned()]);
        assert_eq!(table.take_lines(), ["ID   TOPIC", "100  é"]);
        table.add(["7".to_owned(), "orders".to_owned()]);
        assert_eq!(table.take_lines(), ["7    orders"]);
    }

    #[test]
    fn ages_are_short() {
        assert_eq!(age(Duration::from_micros(1_999)), "1ms");
        assert_eq!(age(Duration::from_millis(90_999)), "1m 30s");
    }
}
