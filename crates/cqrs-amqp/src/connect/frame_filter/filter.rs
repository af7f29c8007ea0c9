//! Follows the frames of one connection and replaces those that lapin cannot read; part of the frame filter.

use std::collections::HashMap;

use super::header;
use super::method::{self, Method, Replacement};
use crate::connect::confirm_channel::{AnswerReader, ConfirmChannels, Recipient};
use crate::headers::UNREADABLE;

/// Type, channel and size before a frame's payload.
pub(super) const HEAD: usize = 7;
/// Bytes of a frame around its payload.
const ENVELOPE: usize = HEAD + 1;
/// AMQP 0-9-1, 4.2.3.
const FRAME_END: u8 = 0xCE;
pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const HEARTBEAT_FRAME: [u8; 8] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];
/// Class and method of `connection.close-ok`.
const CONNECTION_CLOSE_OK: [u8; 4] = [0, 10, 0, 51];
/// AMQP 0-9-1, 4.2.3 (`frame-min-size`); lapin takes no less.
const FRAME_MIN: usize = 4_096;
/// A larger content header is not buffered: it passes unchanged, and lapin ends the connection.
const MAX_BUFFERED: usize = 16 << 20;
/// The size of a read from the socket.
const READ: usize = 64 << 10;

/// The frames of one connection. Bytes are received into it and taken out of it, in order.
#[derive(Debug)]
pub(super) struct FrameFilter {
    /// Its first `end` bytes were received, the first `checked` may be taken, `taken` of these were.
    buffer: Vec<u8>,
    taken: usize,
    checked: usize,
    end: usize,
    /// The first byte that is not checked; only while bytes are checked, the removed ones are before it.
    next: usize,
    /// Bytes of the current frame that pass without a check and were not received yet.
    passing: u64,
    /// Bytes of the current frame that lapin does not get and that were not received yet.
    removing: u64,
    /// Set once the server has answered lapin's `connection.close`.
    is_over: bool,
    /// Set after bytes that are not a frame: all further bytes pass, and lapin reports it.
    disabled: bool,
    checks: Checks,
    answers: AnswerReader,
}

impl FrameFilter {
    /// `frame_max` is the limit that the client asks for, in bytes; `None` or 0 stands for the server's.
    pub(super) fn new(frame_max: Option<u32>, channels: ConfirmChannels) -> Self {
        Self {
            buffer: Vec::new(),
            taken: 0,
            checked: 0,
            end: 0,
            next: 0,
            passing: 0,
            removing: 0,
            is_over: false,
            disabled: false,
            checks: Checks {
                frame_max: limit(frame_max.unwrap_or_default()),
                renamed: HashMap::new(),
            },
            answers: AnswerReader::new(channels),
        }
    }

    /// The buffer for the next bytes from the socket; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.taken == self.end {
            (self.taken, self.checked, self.end) = (0, 0, 0);
            self.buffer.truncate(4 * READ);
        }
        if self.taken > 0 && self.buffer.len() - self.end < READ {
            self.buffer.copy_within(self.taken..self.end, 0);
            self.checked -= self.taken;
            self.end -= self.taken;
            self.taken = 0;
        }
        if self.buffer.len() - self.end < READ / 2 {
            // Grows with the bytes received, not with the size in a frame's head.
            self.buffer.resize((2 * self.end).max(READ), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// The first `count` bytes of [`space`](Self::space) were received.
    pub(super) fn received(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
        self.next = self.checked;
        self.answers.begin();
        while self.advance() {}
        self.answers.finish();
        if self.taken == self.checked {
            (self.taken, self.checked) = (self.next, self.next);
        } else if self.checked < self.next {
            self.buffer.copy_within(self.next..self.end, self.checked);
            self.end -= self.next - self.checked;
        }
    }

    /// The socket ended: the rest of a frame passes.
    pub(super) fn finish(&mut self) {
        self.checked = self.end;
    }

    /// Moves checked bytes to `out` and returns how many. 0: more must be received first.
    pub(super) fn take(&mut self, out: &mut [u8]) -> usize {
        let ready = &self.buffer[self.taken..self.checked];
        let count = ready.len().min(out.len());
        out[..count].copy_from_slice(&ready[..count]);
        self.taken += count;
        count
    }

    /// True once the last frame of the connection has passed.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The number of next bytes that may bypass an empty filter: those of a large body.
    pub(super) fn may_bypass(&self) -> usize {
        match self.taken == self.end {
            true if self.disabled => usize::MAX,
            true => usize::try_from(self.passing).unwrap_or(usize::MAX),
            false => 0,
        }
    }

    /// `count` bytes bypassed the filter.
    pub(super) fn bypassed(&mut self, count: usize) {
        self.passing = self.passing.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Checks the next frame, or passes the received part of a body. False if more must be received.
    fn advance(&mut self) -> bool {
        let rest = &self.buffer[self.next..self.end];
        if rest.is_empty() {
            return false;
        }
        if self.disabled {
            self.keep(rest.len());
            return false;
        }
        if self.passing > 0 {
            let count = rest.len().min(usize::try_from(self.passing).unwrap_or(usize::MAX));
            self.keep(count);
            self.bypassed(count);
            return true;
        }
        if self.removing > 0 {
            let count = rest.len().min(usize::try_from(self.removing).unwrap_or(usize::MAX));
            self.removing -= count as u64;
            self.next += count;
            return true;
        }
        // Also the answer of a server of another protocol version: `AMQP0091`.
        if !matches!(rest[0], METHOD | HEADER | BODY | HEARTBEAT) {
            self.disabled = true;
            return true;
        }
        let Some(&[kind, c1, c0, s3, s2, s1, s0]) = rest.first_chunk::<HEAD>() else {
            return false;
        };
        let size = u32::from_be_bytes([s3, s2, s1, s0]);
        let channel = u16::from_be_bytes([c1, c0]);
        if matches!(kind, BODY | HEARTBEAT) {
            let total = u64::from(size) + ENVELOPE as u64;
            match kind == BODY && self.answers.body(channel) == Recipient::Publisher {
                true => self.removing = total,
                false => self.passing = total,
            }
            return true;
        }
        let total = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(ENVELOPE);
        self.disabled = total > MAX_BUFFERED;
        let Some(frame) = rest.get(..total) else { return self.disabled };
        if frame[total - 1] != FRAME_END {
            self.disabled = true;
            return true;
        }
        let payload = &frame[HEAD..total - 1];
        self.is_over |= kind == METHOD && channel == 0 && payload.starts_with(&CONNECTION_CLOSE_OK);
        let recipient = match kind {
            METHOD => self.answers.method(channel, payload),
            _ => self.answers.header(channel, payload),
        };
        if recipient == Recipient::Publisher {
            // Shorter than any frame that is removed.
            let kept = match self.answers.needs_heartbeat() {
                true => HEARTBEAT_FRAME.len(),
                false => 0,
            };
            self.buffer[self.next..self.next + kept].copy_from_slice(&HEARTBEAT_FRAME[..kept]);
            self.keep(kept);
            self.next += total - kept;
            return true;
        }
        let replaced = match kind {
            METHOD => self.checks.method(channel, payload),
            _ => self.checks.header(channel, payload),
        };
        match replaced {
            None => self.keep(total),
            Some(payload) => {
                let frame = frame_of(kind, channel, &payload);
                let length = frame.len();
                drop(self.buffer.splice(self.next..self.next + total, frame));
                self.end = self.end - total + length;
                self.keep(length);
            }
        }
        true
    }

    /// The next `count` bytes may be taken.
    fn keep(&mut self, count: usize) {
        if self.checked < self.next {
            self.buffer.copy_within(self.next..self.next + count, self.checked);
        }
        self.checked += count;
        self.next += count;
    }
}

/// The state of the checks of a connection's frames.
#[derive(Debug)]
struct Checks {
    /// The largest frame that lapin accepts, in bytes; without a limit until the server sends its own.
    frame_max: usize,
    /// Texts that were replaced in a method frame, until the content header on their channel.
    renamed: HashMap<u16, Vec<(&'static str, Vec<u8>)>>,
}

impl Checks {
    /// The replacement of a method frame's payload, if lapin cannot read it.
    fn method(&mut self, channel: u16, payload: &[u8]) -> Option<Vec<u8>> {
        match method::check(payload) {
            Method::Other => None,
            Method::Tune { frame_max } => {
                self.frame_max = self.frame_max.min(limit(frame_max));
                None
            }
            Method::Unreadable(Replacement { payload, originals, has_content }) => {
                if has_content {
                    self.renamed.insert(channel, originals);
                }
                Some(payload)
            }
        }
    }

    /// The replacement of a content header's payload, if lapin cannot read it.
    fn header(&mut self, channel: u16, payload: &[u8]) -> Option<Vec<u8>> {
        let renamed = match self.renamed.is_empty() {
            true => None,
            false => self.renamed.remove(&channel),
        };
        let size = payload.len() + ENVELOPE;
        let reason = match (header::fault(payload), &renamed) {
            (Some(fault), _) => fault,
            (None, Some(renamed)) => {
                let (name, _) = renamed.first()?;
                format!("its {name} is not UTF-8")
            }
            (None, None) if size > self.frame_max => {
                format!(
                    "its properties and headers take a frame of {size} bytes, this connection takes {}",
                    self.frame_max
                )
            }
            (None, None) => return None,
        };
        let extra: Vec<_> = renamed
            .iter()
            .flatten()
            .map(|(name, bytes)| (format!("{UNREADABLE}-{}", name.replace('_', "-")), &bytes[..]))
            .collect();
        Some(header::readable(payload, &reason, &extra, budget(self.frame_max)))
    }
}

/// `frame_max` as negotiated: 0 is no limit.
fn limit(frame_max: u32) -> usize {
    match usize::try_from(frame_max) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(frame_max) => frame_max.max(FRAME_MIN),
    }
}

/// The limit of a replaced content header in bytes: its dead letter, which has more headers, should fit into a
/// frame too.
fn budget(frame_max: usize) -> usize {
    /// The most that a dead letter adds, and the bytes reserved for the server.
    const ADDED: usize = 8 << 10;
    match frame_max.min(MAX_BUFFERED) {
        large if large > 2 * ADDED => large - ADDED,
        small => small / 4,
    }
}

pub(super) fn frame_of(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(payload.len() + ENVELOPE);
    frame.push(kind);
    frame.extend(channel.to_be_bytes());
    frame.extend(size.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.push(FRAME_END);
    frame
}
