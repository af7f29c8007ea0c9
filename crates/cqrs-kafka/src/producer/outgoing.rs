//! A message between its admission and its delivery report. Used by all modules of the producer.

use cqrs_core::broker::PendingConfirm;
use rdkafka::message::OwnedHeaders;

/// An admitted message, from enqueueing to its delivery report.
pub(crate) struct Outgoing {
    pub(super) pending: PendingConfirm,
    pub(super) raw: Option<Raw>,
    /// Its position in the order of enqueueing.
    pub(super) number: u64,
    /// The partition that librdkafka chose, if the record is sent again.
    pub(super) partition: Option<i32>,
}

/// The parts of a copy of a consumed record that a [`Message`](cqrs_core::Message) cannot hold.
#[derive(Debug)]
pub(crate) struct Raw {
    /// All its headers, in place of the message's.
    pub(crate) headers: Option<OwnedHeaders>,
    /// Bytes of the record, with the headers that can be read.
    pub(crate) size: usize,
    /// Set if the record has no value.
    pub(crate) is_tombstone: bool,
}

impl Outgoing {
    /// Its bytes, without those that librdkafka adds.
    pub(super) fn size(&self) -> usize {
        let size = self.raw.as_ref().map(|raw| raw.size);
        size.unwrap_or_else(|| self.pending.message().size())
    }
}
