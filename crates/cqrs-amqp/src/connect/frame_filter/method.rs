//! Method frames of the server: replaces short strings that are not UTF-8; part of the frame filter.

use super::fields::Fields;

/// A method frame, as far as the filter is concerned.
pub(super) enum Method {
    /// It passes unchanged.
    Other,
    /// `connection.tune`: the largest frame that the server accepts, in bytes; 0 is no limit.
    Tune { frame_max: u32 },
    /// It has a text that lapin cannot read.
    Unreadable(Replacement),
}

/// A method frame's payload that lapin can read.
pub(super) struct Replacement {
    pub(super) payload: Vec<u8>,
    /// The original bytes of the replaced texts.
    pub(super) originals: Vec<(&'static str, Vec<u8>)>,
    /// Set if a message follows on the same channel.
    pub(super) has_content: bool,
}

#[derive(Clone, Copy)]
enum Field {
    Fixed(usize),
    Text(&'static str),
}
use Field::{Fixed, Text};

/// The methods with names chosen by other clients, or with a text of the server.
fn layout(class: u16, method: u16) -> Option<(&'static [Field], bool)> {
    Some(match (class, method) {
        // connection.close, channel.close
        (10, 50) | (20, 40) => (&[Fixed(2), Text("reply_text"), Fixed(4)], false),
        // connection.blocked
        (10, 60) => (&[Text("reason")], false),
        // basic.return
        (60, 50) => (&[Fixed(2), Text("reply_text"), Text("exchange"), Text("routing_key")], true),
        // basic.deliver
        (60, 60) => {
            (&[Text("consumer_tag"), Fixed(9), Text("exchange"), Text("routing_key")], true)
        }
        // basic.get-ok
        (60, 71) => (&[Fixed(9), Text("exchange"), Text("routing_key"), Fixed(4)], true),
        _ => return None,
    })
}

/// Checks the payload of a method frame.
pub(super) fn check(payload: &[u8]) -> Method {
    read(payload).unwrap_or(Method::Other)
}

fn read(payload: &[u8]) -> Option<Method> {
    let mut fields = Fields(payload);
    let (class, method) = (fields.u16()?, fields.u16()?);
    if (class, method) == (10, 30) {
        let _channel_max = fields.u16()?;
        return Some(Method::Tune { frame_max: fields.u32()? });
    }
    let (layout, has_content) = layout(class, method)?;
    let arguments = fields;
    let mut unreadable = false;
    for field in layout {
        match field {
            Fixed(size) => drop(fields.bytes(*size)?),
            Text(_) => unreadable |= std::str::from_utf8(fields.short()?).is_err(),
        }
    }
    match unreadable && fields.is_empty() {
        true => replace(payload, arguments, layout, has_content).map(Method::Unreadable),
        false => None,
    }
}

fn replace(
    payload: &[u8],
    mut fields: Fields<'_>,
    layout: &[Field],
    has_content: bool,
) -> Option<Replacement> {
    let mut written = payload.get(..4)?.to_vec();
    let mut originals = Vec::new();
    for field in layout {
        match field {
            Fixed(size) => written.extend_from_slice(fields.bytes(*size)?),
            Text(name) => {
                let original = fields.short()?;
                let text = String::from_utf8_lossy(original);
                if matches!(text, std::borrow::Cow::Owned(_)) {
                    originals.push((*name, original.to_vec()));
                }
                let text = &text[..text.floor_char_boundary(255)];
                written.push(u8::try_from(text.len()).unwrap_or_default());
                written.extend_from_slice(text.as_bytes());
            }
        }
    }
    Some(Replacement { payload: written, originals, has_content })
}
