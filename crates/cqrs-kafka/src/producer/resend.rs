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
    refused: Mutex<Vec<Outgoing>>,
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
        let of_batch = matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge);
        if !of_batch || self.alone.load(Ordering::Acquire) {
            return Some(outgoing);
        }
        self.lock().push(outgoing);
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
        let overtaken: Vec<_> = self.lock().extract_if(.., same_key).collect();
        for Outgoing { pending, .. } in overtaken {
            let detail =
                "its batch was refused as too large, and a newer message of its key was stored";
            pending.fail(PublishErrorKind::NotSent, detail, None);
        }
    }

    /// Takes out the records, in order.
    pub(super) fn take(&self) -> Vec<Outgoing> {
        let mut refused = std::mem::take(&mut *self.lock());
        refused.sort_by_key(|outgoing| outgoing.number);
        refused
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Outgoing>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Resend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resend").field("active", &self.active).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use cqrs_core::Message;
    use cqrs_core::broker::{Intake, Receipt};

    use super::*;

    fn outgoing(intake: &Intake, number: u64, key: &'static str) -> (Outgoing, Receipt) {
        let message = Message::new("t", "body").with_key(key);
        let (pending, receipt) = intake.try_admit(message).unwrap();
        (Outgoing { pending, raw: None, number }, receipt)
    }

    #[tokio::test]
    async fn newer_record_of_the_key_fails_refused_ones() {
        let (intake, resend) = (Intake::default(), Resend::default());
        let (first, overtaken) = outgoing(&intake, 1, "a");
        let (second, _kept) = outgoing(&intake, 2, "b");
        let (third, _stored) = outgoing(&intake, 3, "a");
        for refused in [first, second] {
            assert!(resend.put(refused, Code::MessageSizeTooLarge).is_none());
        }
        resend.overtake(&third);
        assert_eq!(overtaken.await.unwrap_err().kind(), PublishErrorKind::NotSent);
        let left: Vec<_> = resend.take().iter().map(|left| left.number).collect();
        assert_eq!(left, [2]);
    }

    #[test]
    fn refused_records_come_out_in_order() {
        let (intake, resend) = (Intake::default(), Resend::default());
        let put = |number, code| resend.put(outgoing(&intake, number, "a").0, code).is_none();
        assert!(!put(9, Code::TopicAuthorizationFailed) && !resend.is_active());
        assert!(put(3, Code::MessageSizeTooLarge) && resend.is_active());
        assert!(put(1, Code::MessageBatchTooLarge) && !put(5, Code::PurgeQueue));
        let numbers: Vec<_> = resend.take().iter().map(|outgoing| outgoing.number).collect();
        assert_eq!(numbers, [1, 3]);
        resend.set_alone(true);
        assert!(!put(7, Code::MessageSizeTooLarge), "its own verdict");
        resend.end();
        assert!(!resend.is_active() && put(8, Code::MessageSizeTooLarge));
    }
}
