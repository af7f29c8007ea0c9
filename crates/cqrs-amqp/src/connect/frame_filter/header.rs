//! Content headers: the check, and the replacement of one that lapin cannot read; part of the frame filter.

use super::fields::{Fault, Fields};
use crate::headers::{UNREADABLE, UNREADABLE_PROPERTIES};

/// The properties of AMQP 0-9-1 in the order of their flags, from bit 15 down.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content_type", Kind::Short),
    ("content_encoding", Kind::Short),
    ("headers", Kind::Table),
    ("delivery_mode", Kind::Fixed(1)),
    ("priority", Kind::Fixed(1)),
    ("correlation_id", Kind::Short),
    ("reply_to", Kind::Short),
    ("expiration", Kind::Short),
    ("message_id", Kind::Short),
    ("timestamp", Kind::Fixed(8)),
    ("type", Kind::Short),
    ("user_id", Kind::Short),
    ("app_id", Kind::Short),
    ("cluster_id", Kind::Short),
];
/// The indices of the header table and of the message's id among them.
const HEADERS: usize = 2;
const MESSAGE_ID: usize = 8;

#[derive(Clone, Copy)]
enum Kind {
    Short,
    Table,
    Fixed(usize),
}

/// The bit of a property in the flags.
fn bit(index: usize) -> u16 {
    0x8000 >> index
}

/// The payload of a content header frame, parsed as far as possible.
struct Parts<'a> {
    /// Class, weight and body size.
    fixed: &'a [u8],
    /// The original flags and property list.
    properties: &'a [u8],
    /// The raw bytes of each property that lapin can read; the header table has none here.
    readable: [Option<&'a [u8]>; PROPERTIES.len()],
    /// The entries of the header table that lapin can read.
    entries: Vec<&'a [u8]>,
}

/// Class, weight and body size.
const FIXED: usize = 12;

/// The reason for which lapin cannot read this payload of a content header frame, if any.
pub(super) fn fault(payload: &[u8]) -> Option<String> {
    let mut fields = Fields(payload);
    let (Some(_fixed), Some(flags)) = (fields.bytes(FIXED), fields.u16()) else {
        return Some("the content header is cut off".to_owned());
    };
    for (index, (name, kind)) in PROPERTIES.into_iter().enumerate() {
        if flags & bit(index) == 0 {
            continue;
        }
        let fault = match kind {
            Kind::Fixed(size) => fields.bytes(size).map(drop).ok_or(Fault::Malformed),
            Kind::Short => match fields.short() {
                Some(text) if std::str::from_utf8(text).is_ok() => Ok(()),
                Some(_) => return Some(format!("its property {name} is not UTF-8")),
                None => Err(Fault::Malformed),
            },
            Kind::Table => table(&mut fields),
        };
        if let Err(fault) = fault {
            let what = if index == HEADERS { "a header" } else { "its property " };
            let name = if index == HEADERS { "" } else { name };
            return Some(format!("{what}{name} {}", fault.as_str()));
        }
    }
    (!fields.is_empty()).then(|| "bytes follow its properties".to_owned())
}

fn table(fields: &mut Fields<'_>) -> Result<(), Fault> {
    let mut entries = Fields(fields.long().ok_or(Fault::Malformed)?);
    while !entries.is_empty() {
        entries.entry(0)?;
    }
    Ok(())
}

/// The `message_id` in the payload of a content header frame.
pub(in crate::connect) fn message_id(payload: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields(payload);
    fields.bytes(FIXED)?;
    let flags = fields.u16()?;
    for (index, (_, kind)) in PROPERTIES.into_iter().enumerate() {
        if flags & bit(index) == 0 {
            continue;
        }
        let value = match kind {
            Kind::Fixed(size) => fields.bytes(size)?,
            Kind::Short => fields.short()?,
            Kind::Table => fields.long()?,
        };
        if index == MESSAGE_ID {
            return Some(value);
        }
    }
    None
}

/// A payload that lapin can read: the readable parts of the original, with the reason and the original's
/// property bytes as headers. `extra` are more headers, of bytes.
///
/// It has at most about `budget` bytes, but 3 KiB of short properties are kept in any case. Headers are kept if
/// they fit into half of it; the original's bytes are cut to the rest.
pub(super) fn readable(
    payload: &[u8],
    reason: &str,
    extra: &[(String, &[u8])],
    budget: usize,
) -> Vec<u8> {
    let parts = Parts::new(payload);
    let mut table = Vec::new();
    for (name, bytes) in extra {
        push(&mut table, name, b'x', bytes);
    }
    push(&mut table, UNREADABLE, b'S', &reason.as_bytes()[..reason.floor_char_boundary(400)]);
    let short: usize = parts.readable.iter().flatten().map(|bytes| bytes.len()).sum();
    let left = budget.saturating_sub(short + table.len() + 64);
    let mut kept = 0;
    for entry in &parts.entries {
        if kept + entry.len() <= left / 2 {
            kept += entry.len();
            table.extend_from_slice(entry);
        }
    }
    let room = (left - kept).min(parts.properties.len());
    push(&mut table, UNREADABLE_PROPERTIES, b'x', &parts.properties[..room]);

    let flags = parts.readable.iter().enumerate().filter(|(_, bytes)| bytes.is_some());
    let flags = flags.fold(bit(HEADERS), |flags, (index, _)| flags | bit(index));
    let mut written = parts.fixed.to_vec();
    written.resize(FIXED, 0);
    written.extend(flags.to_be_bytes());
    for (index, bytes) in parts.readable.iter().enumerate() {
        if index == HEADERS {
            written.extend(length(&table));
            written.extend_from_slice(&table);
        }
        written.extend_from_slice(bytes.unwrap_or_default());
    }
    written
}

impl<'a> Parts<'a> {
    fn new(payload: &'a [u8]) -> Self {
        let (fixed, properties) = payload.split_at(FIXED.min(payload.len()));
        let mut parts =
            Self { fixed, properties, readable: [None; PROPERTIES.len()], entries: Vec::new() };
        // A part of unknown length hides all parts behind it.
        let _or_cut = parts.read();
        parts
    }

    fn read(&mut self) -> Option<()> {
        let mut fields = Fields(self.properties);
        let flags = fields.u16()?;
        for (index, (_, kind)) in PROPERTIES.into_iter().enumerate() {
            if flags & bit(index) == 0 {
                continue;
            }
            let before = fields.0;
            match kind {
                Kind::Fixed(size) => drop(fields.bytes(size)?),
                Kind::Short => {
                    let text = fields.short()?;
                    if std::str::from_utf8(text).is_err() {
                        continue;
                    }
                }
                Kind::Table => {
                    self.read_entries(Fields(fields.long()?));
                    continue;
                }
            }
            self.readable[index] = before.get(..before.len() - fields.0.len());
        }
        Some(())
    }

    fn read_entries(&mut self, mut table: Fields<'a>) {
        while !table.is_empty() {
            let before = table.0;
            match table.entry(0) {
                Ok(()) => {
                    let entry = &before[..before.len() - table.0.len()];
                    if !is_ours(entry) {
                        self.entries.push(entry);
                    }
                }
                Err(_) => {
                    table = Fields(before);
                    if table.skip_entry().is_none() {
                        return;
                    }
                }
            }
        }
    }
}

fn is_ours(entry: &[u8]) -> bool {
    Fields(entry).short().is_some_and(|name| name.starts_with(UNREADABLE.as_bytes()))
}

fn push(table: &mut Vec<u8>, name: &str, kind: u8, value: &[u8]) {
    table.push(u8::try_from(name.len()).unwrap_or_default());
    table.extend_from_slice(name.as_bytes());
    table.push(kind);
    table.extend(length(value));
    table.extend_from_slice(value);
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or_default().to_be_bytes()
}
