//! Records of batches that the broker refused as too large, until they are sent again. Filled by the delivery reports
//! ([`context`](super::context)), emptied by [`resend`](super::resend).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cqrs_core::broker::PublishErrorKind;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::outgoing::Outgoing;

/// The broker checks whole batches against `max.message.bytes`. So a refused record is too large only if it was the
/// only one of its batch. Other records are sent again, in smaller batches.
#[derive(Default)]
pub(super) struct OversizedBatches {
    /// Set from the first refusal until all records were sent again.
    active: AtomicBool,
    /// The number of records stored while `active` was set.
    stored: AtomicUsize,
    batches: Mutex<HashMap<TopicPartition, Batch>>,
}

/// `None`: librdkafka did not report the partition.
type TopicPartition = (Arc<str>, Option<i32>);

/// The refused records of one partition.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) records: Vec<Outgoing>,
    /// The number of refused records, overtaken ones included.
    count: usize,
}

impl Batch {
    /// Returns whether it was one batch of one record. librdkafka reports the records of a batch together.
    pub(super) fn is_single(&self) -> bool {
        self.count == 1
    }
}

impl OversizedBatches {
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Ends the resending.
    pub(super) fn end(&self) {
        self.active.store(false, Ordering::Release);
    }

    /// The number of records stored during resends.
    pub(super) fn stored(&self) -> usize {
        self.stored.load(Ordering::Acquire)
    }

    /// Keeps a record whose batch was refused as too large. Returns a record that failed for another reason.
    pub(super) fn put(&self, outgoing: Outgoing, code: Code) -> Option<Outgoing> {
        if !matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) {
            return Some(outgoing);
        }
        let partition = (Arc::clone(&outgoing.pending.message().topic), outgoing.partition);
        let mut all = self.lock();
        let batch = all.entry(partition).or_default();
        batch.count += 1;
        batch.records.push(outgoing);
        drop(all);
        self.active.store(true, Ordering::Release);
        None
    }

    /// The broker stored a record. Refused older records of its key fail: sent now, they would change the order.
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
        for batch in self.lock().values_mut() {
            overtaken.extend(batch.records.extract_if(.., same_key));
        }
        for Outgoing { pending, .. } in overtaken {
            let detail =
                "its batch was refused as too large, and a newer message of its key was stored";
            pending.fail(PublishErrorKind::NotSent, detail, None);
        }
    }

    /// Takes out the records of each partition, in order.
    pub(super) fn take(&self) -> Vec<Batch> {
        let mut all: Vec<_> = std::mem::take(&mut *self.lock()).into_values().collect();
        for batch in &mut all {
            batch.records.sort_by_key(|outgoing| outgoing.number);
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TopicPartition, Batch>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn numbers(taken: &[Batch]) -> Vec<u64> {
        taken.iter().flat_map(|batch| &batch.records).map(|record| record.number).collect()
    }

    #[tokio::test]
    async fn newer_record_of_the_key_fails_refused_ones() {
        let (intake, oversized) = (Intake::default(), OversizedBatches::default());
        let (first, overtaken) = outgoing(&intake, 1, "a");
        let (second, _kept) = outgoing(&intake, 2, "b");
        let (third, _stored) = outgoing(&intake, 3, "a");
        for refused in [first, second] {
            assert!(oversized.put(refused, Code::MessageSizeTooLarge).is_none());
        }
        oversized.overtake(&third);
        assert_eq!(overtaken.await.unwrap_err().kind(), PublishErrorKind::NotSent);
        let taken = oversized.take();
        assert_eq!(numbers(&taken), [2]);
        assert!(!taken[0].is_single(), "it was in a batch with the overtaken one");
    }

    #[test]
    fn refused_records_come_out_in_order() {
        let (intake, oversized) = (Intake::default(), OversizedBatches::default());
        let put = |number, code| oversized.put(outgoing(&intake, number, "a").0, code).is_none();
        assert!(!put(9, Code::TopicAuthorizationFailed) && !oversized.is_active());
        assert!(put(3, Code::MessageSizeTooLarge) && oversized.is_active());
        assert!(put(1, Code::MessageBatchTooLarge) && !put(5, Code::PurgeQueue));
        assert_eq!(numbers(&oversized.take()), [1, 3]);
        oversized.end();
        assert!(!oversized.is_active() && put(8, Code::MessageSizeTooLarge));
        assert!(oversized.take()[0].is_single());
    }
}
