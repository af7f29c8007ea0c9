//! Records of batches that the broker refused as too large, until the driver has sent them again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cqrs_core::broker::PublishErrorKind;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::Outgoing;

/// The broker judges whole batches by `max.message.bytes`. A refusal is a verdict on a record only when the
/// record was alone in its batch; the other records are sent again, in smaller batches.
#[derive(Default)]
pub(crate) struct Resend {
    /// Set from the first refusal until everything was sent again.
    active: AtomicBool,
    /// How many records were stored while it was set.
    stored: AtomicUsize,
    refused: Mutex<HashMap<Place, Refused>>,
}

/// Topic and partition. `None`: librdkafka did not tell the partition.
type Place = (Arc<str>, Option<i32>);

/// What the broker refused of one partition.
#[derive(Default)]
pub(super) struct Refused {
    pub(super) records: Vec<Outgoing>,
    /// How many there were, with those that were overtaken.
    count: usize,
}

impl Refused {
    /// Whether it is one batch of one record. librdkafka reports the records of a batch together.
    pub(super) fn was_alone(&self) -> bool {
        self.count == 1
    }
}

impl Resend {
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Ends the resending.
    pub(super) fn end(&self) {
        self.active.store(false, Ordering::Release);
    }

    /// How many records were stored during resends.
    pub(super) fn stored(&self) -> usize {
        self.stored.load(Ordering::Acquire)
    }

    /// Takes a record that failed with `code` if it is to be sent again, else gives it back.
    pub(super) fn put(&self, outgoing: Outgoing, code: Code) -> Option<Outgoing> {
        if !matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) {
            return Some(outgoing);
        }
        let place = (Arc::clone(&outgoing.pending.message().topic), outgoing.partition);
        let mut all = self.lock();
        let refused = all.entry(place).or_default();
        refused.count += 1;
        refused.records.push(outgoing);
        drop(all);
        self.active.store(true, Ordering::Release);
        None
    }

    /// The broker stored a record. Older ones of its key cannot be sent any more without changing the order:
    /// they fail, and their senders may publish them again.
    pub(super) fn overtake(&self, stored: &Outgoing) {
        self.stored.fetch_add(1, Ordering::AcqRel);
        let stored = stored.pending.message();
        if stored.key.is_none() {
            return;
        }
        let same_key = |outgoing: &mut Outgoing| {
            let message = outgoing.pending.message();
            message.key == stored.key && message.topic == stored.topic
        };
        let mut overtaken = Vec::new();
        for refused in self.lock().values_mut() {
            overtaken.extend(refused.records.extract_if(.., same_key));
        }
        for Outgoing { pending, .. } in overtaken {
            let detail =
                "its batch was refused as too large, and a newer message of its key was stored";
            pending.fail(PublishErrorKind::NotSent, detail, None);
        }
    }

    /// Takes out the records of each partition, in order.
    pub(super) fn take(&self) -> Vec<Refused> {
        let mut all: Vec<_> = std::mem::take(&mut *self.lock()).into_values().collect();
        for refused in &mut all {
            refused.records.sort_by_key(|outgoing| outgoing.number);
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Refused>> {
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
        (Outgoing { pending, raw: None, number, partition: Some(0) }, receipt)
    }

    fn numbers(taken: &[Refused]) -> Vec<u64> {
        taken.iter().flat_map(|refused| &refused.records).map(|record| record.number).collect()
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
        let taken = resend.take();
        assert_eq!(numbers(&taken), [2]);
        assert!(!taken[0].was_alone(), "it was in a batch with the overtaken one");
    }

    #[test]
    fn refused_records_come_out_in_order() {
        let (intake, resend) = (Intake::default(), Resend::default());
        let put = |number, code| resend.put(outgoing(&intake, number, "a").0, code).is_none();
        assert!(!put(9, Code::TopicAuthorizationFailed) && !resend.is_active());
        assert!(put(3, Code::MessageSizeTooLarge) && resend.is_active());
        assert!(put(1, Code::MessageBatchTooLarge) && !put(5, Code::PurgeQueue));
        assert_eq!(numbers(&resend.take()), [1, 3]);
        resend.end();
        assert!(!resend.is_active() && put(8, Code::MessageSizeTooLarge));
        assert!(resend.take()[0].was_alone());
    }
}
