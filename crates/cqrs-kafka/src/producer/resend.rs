//! Records of batches that the broker refused as too large, until the driver has sent them again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cqrs_core::broker::PublishErrorKind;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::Outgoing;

/// The broker judges whole batches by `max.message.bytes`. A refusal is a verdict on a record only when the
/// record was alone in its batch; the other records are sent again, in smaller batches.
#[derive(Default)]
pub(crate) struct Resend {
    /// Set from the first refusal until everything was sent again.
    active: AtomicBool,
    /// Set while librdkafka has one record only.
    alone: AtomicBool,
    refused: Mutex<Refused>,
}

#[derive(Default)]
pub(super) struct Refused {
    pub(super) records: Vec<Outgoing>,
    /// How many of them the broker refused; librdkafka had not sent the others.
    pub(super) by_broker: usize,
}

impl Resend {
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(super) fn set_alone(&self, alone: bool) {
        self.alone.store(alone, Ordering::Release);
    }

    /// Ends the resending.
    pub(super) fn end(&self) {
        self.alone.store(false, Ordering::Release);
        self.active.store(false, Ordering::Release);
    }

    /// Takes a record that failed with `code` if it is to be sent again, else gives it back.
    pub(super) fn put(&self, outgoing: Outgoing, code: Code) -> Option<Outgoing> {
        let by_broker = match code {
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
                !self.alone.load(Ordering::Acquire)
            }
            Code::PurgeQueue if self.is_active() => false,
            _ => return Some(outgoing),
        };
        if !by_broker && code != Code::PurgeQueue {
            return Some(outgoing);
        }
        let mut refused = self.lock();
        refused.records.push(outgoing);
        refused.by_broker += usize::from(by_broker);
        self.active.store(true, Ordering::Release);
        None
    }

    /// The broker stored a record. Older ones of its key cannot be sent any more without changing the order:
    /// they fail, and their senders may publish them again.
    pub(super) fn overtake(&self, stored: &Outgoing) {
        let stored = stored.pending.message();
        if stored.key.is_none() {
            return;
        }
        let same_key = |outgoing: &mut Outgoing| {
            let message = outgoing.pending.message();
            message.key == stored.key && message.topic == stored.topic
        };
        let overtaken: Vec<_> = self.lock().records.extract_if(.., same_key).collect();
        for Outgoing { pending, .. } in overtaken {
            let detail =
                "its batch was refused as too large, and a newer message of its key was stored";
            pending.fail(PublishErrorKind::NotSent, detail, None);
        }
    }

    /// Takes out the records, in order.
    pub(super) fn take(&self) -> Refused {
        let mut refused = std::mem::take(&mut *self.lock());
        refused.records.sort_by_key(|outgoing| outgoing.number);
        refused
    }

    fn lock(&self) -> MutexGuard<'_, Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Resend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resend").field("active", &self.active).finish_non_exhaustive()
    }
}
