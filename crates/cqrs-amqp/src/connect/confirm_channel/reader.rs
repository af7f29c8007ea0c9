//! Takes the answers to the messages of confirm channels out of what lapin reads; part of the frame filter.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::channel::{Answer, ConfirmChannels, OpenChannels, Returned};
use crate::connect::frame_filter::{Fields, message_id};

/// The reading half of a connection: finds the frames that concern messages of confirm channels.
#[derive(Debug)]
pub(in crate::connect) struct AnswerReader {
    channels: ConfirmChannels,
    open: OpenChannels,
    /// The returns whose content header has not come yet, by channel.
    returning: Vec<(u16, Returned)>,
    /// Set if answers were added since the publishers were woken.
    answered: bool,
    /// The time of the last frame that lapin got in the place of answers.
    heartbeat: Instant,
    /// Set once the time was looked at, for the frames that were read together.
    heartbeat_checked: bool,
}

/// The recipient of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::connect) enum Recipient {
    Lapin,
    /// The publisher of a confirm channel: lapin does not get the frame.
    Publisher,
}

const CONNECTION_BLOCKED: (u16, u16) = (10, 60);
const CONNECTION_UNBLOCKED: (u16, u16) = (10, 61);
const CHANNEL_CLOSE: (u16, u16) = (20, 40);
const CHANNEL_CLOSE_OK: (u16, u16) = (20, 41);
const BASIC_RETURN: (u16, u16) = (60, 50);
const BASIC_ACK: (u16, u16) = (60, 80);
const BASIC_NACK: (u16, u16) = (60, 120);

impl AnswerReader {
    pub(in crate::connect) fn new(channels: ConfirmChannels) -> Self {
        Self {
            channels,
            open: OpenChannels::default(),
            returning: Vec::new(),
            answered: false,
            heartbeat: Instant::now(),
            heartbeat_checked: false,
        }
    }

    /// To be called before the frames that were read together.
    pub(in crate::connect) fn begin(&mut self) {
        self.channels.refresh(&mut self.open);
        self.heartbeat_checked = false;
    }

    /// Wakes the publishers for the frames since [`begin`](Self::begin).
    pub(in crate::connect) fn finish(&mut self) {
        if std::mem::take(&mut self.answered) {
            for channel in &self.open.open {
                channel.wake_publisher();
            }
        }
    }

    /// True once a second: lapin must get a frame in the place of one that it does not get.
    pub(in crate::connect) fn needs_heartbeat(&mut self) -> bool {
        /// lapin's shortest limit for a silent server is 2 s.
        const INTERVAL: Duration = Duration::from_secs(1);
        if std::mem::replace(&mut self.heartbeat_checked, true) {
            return false;
        }
        let now = Instant::now();
        let due = now.duration_since(self.heartbeat) >= INTERVAL;
        if due {
            self.heartbeat = now;
        }
        due
    }

    /// Reads the payload of a method frame.
    pub(in crate::connect) fn method(&mut self, channel: u16, payload: &[u8]) -> Recipient {
        if channel == 0 {
            match method_of(payload) {
                Some((CONNECTION_BLOCKED, _)) => self.channels.set_blocked(true),
                Some((CONNECTION_UNBLOCKED, _)) => self.channels.set_blocked(false),
                _ => {}
            }
            return Recipient::Lapin;
        }
        let Some(queues) = self.open.get(channel) else { return Recipient::Lapin };
        let Some((method, mut fields)) = method_of(payload) else { return Recipient::Lapin };
        match method {
            BASIC_ACK | BASIC_NACK => {
                let (Some(tag), Some(flags)) = (fields.u64(), fields.u8()) else {
                    return Recipient::Lapin;
                };
                let ack = method == BASIC_ACK;
                queues.push(Answer::Confirm { tag, multiple: flags & 1 != 0, ack });
            }
            BASIC_RETURN => {
                // lapin ends the connection over one that cannot be read.
                let Some(returned) = read_return(fields) else { return Recipient::Lapin };
                self.returning.retain(|(of, _)| *of != channel);
                self.returning.push((channel, returned));
                return Recipient::Publisher;
            }
            CHANNEL_CLOSE => {
                let code = fields.u16().unwrap_or_default();
                let text = text(fields.short().unwrap_or_default()).into_owned();
                queues.discard();
                queues.push(Answer::Closed { code, text });
                queues.wake_publisher();
                self.forget(channel);
                return Recipient::Lapin;
            }
            CHANNEL_CLOSE_OK => {
                self.forget(channel);
                return Recipient::Lapin;
            }
            _ => return Recipient::Lapin,
        }
        self.answered = true;
        Recipient::Publisher
    }

    /// Reads the payload of a content header frame: that of a return on a confirm channel.
    pub(in crate::connect) fn header(&mut self, channel: u16, payload: &[u8]) -> Recipient {
        let Some(queues) = self.open.get(channel) else { return Recipient::Lapin };
        if let Some(index) = self.returning.iter().position(|(of, _)| *of == channel) {
            let (_, mut returned) = self.returning.swap_remove(index);
            let id = message_id(payload).and_then(|id| std::str::from_utf8(id).ok());
            returned.id = id.and_then(|id| id.parse().ok());
            queues.push(Answer::Returned(Box::new(returned)));
            self.answered = true;
        }
        Recipient::Publisher
    }

    /// The recipient of a body frame.
    pub(in crate::connect) fn body(&self, channel: u16) -> Recipient {
        match self.open.get(channel) {
            Some(_) => Recipient::Publisher,
            None => Recipient::Lapin,
        }
    }

    fn forget(&mut self, channel: u16) {
        self.channels.closed(channel);
        self.channels.refresh(&mut self.open);
        self.returning.retain(|(of, _)| *of != channel);
    }
}

/// The class and method of a method frame's payload, and its arguments.
fn method_of(payload: &[u8]) -> Option<((u16, u16), Fields<'_>)> {
    let mut fields = Fields(payload);
    Some(((fields.u16()?, fields.u16()?), fields))
}

fn read_return(mut fields: Fields<'_>) -> Option<Returned> {
    let (code, reply) = (fields.u16()?, text(fields.short()?));
    let (exchange, routing_key) = (text(fields.short()?), text(fields.short()?));
    let reason = format!(
        "no queue is bound to exchange {exchange:?} for routing key {routing_key:?} (the server says {code}: \
         {reply}): start its consumer first, declare queue and binding in the config (`queues`, \
         `bindings`), or set `mandatory = false` for this event"
    );
    Some(Returned { id: None, topic: routing_key.into_owned(), reason })
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
