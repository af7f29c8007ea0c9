//! What becomes of delivery reports. Runs on the poll thread.

use cqrs_core::broker::Confirmation;
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::{Outgoing, verdict};
use crate::events::Events;

impl ProducerContext for Events {
    type DeliveryOpaque = Box<Outgoing>;

    fn delivery(&self, result: &DeliveryResult<'_>, mut outgoing: Box<Outgoing>) {
        match result {
            Ok(record) => {
                if self.resend.is_active() {
                    self.resend.overtake(&outgoing);
                }
                let pending = outgoing.pending;
                self.health.report_up();
                let (partition, offset) = (record.partition(), record.offset());
                if offset < 0 && self.is_idempotent {
                    return verdict::only_later_ones_confirmed(pending);
                }
                let mut confirmation = Confirmation::at(partition, offset);
                if offset < 0 {
                    // With `acks=0` the broker tells none.
                    confirmation.offset = None;
                }
                pending.confirm(confirmation);
            }
            Err((error, record)) => {
                outgoing.partition = Some(record.partition()).filter(|partition| *partition >= 0);
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                if let Some(outgoing) = self.resend.put(*outgoing, code) {
                    verdict::fail(outgoing.pending, code, self.health.cause());
                }
            }
        }
    }
}
