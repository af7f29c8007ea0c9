//! The librdkafka producer, and how a message is given to it. Used by the handle, the supervisor and the resender.

use cqrs_core::Message;
use rdkafka::producer::{BaseProducer, BaseRecord};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::context::Context;
use super::outgoing::Outgoing;
use super::record;
use crate::config::RecordHeaders;

pub(super) type Client = BaseProducer<Context>;

/// Gives a message to librdkafka, without a copy of topic or key (librdkafka copies the bytes itself).
/// Returns a message that librdkafka does not take, with the error code.
pub(super) fn submit(
    client: &Client,
    outgoing: Outgoing,
    message: &Message,
    headers: RecordHeaders,
) -> Result<(), (Outgoing, Code)> {
    if !outgoing.pending.start_sending() {
        // Its receipt has already resolved as not sent.
        return Ok(());
    }
    let record = BaseRecord {
        topic: &message.topic,
        partition: outgoing.partition,
        payload: (!outgoing.raw.as_ref().is_some_and(|raw| raw.is_tombstone))
            .then_some(&*message.body),
        key: message.key.as_deref(),
        timestamp: Some(record::timestamp(message)),
        headers: match &outgoing.raw {
            Some(raw) => raw.headers.clone(),
            None => record::headers(message, headers),
        },
        delivery_opaque: Box::new(outgoing),
    };
    client.send(record).map_err(|(error, record)| {
        (*record.delivery_opaque, error.rdkafka_error_code().unwrap_or(Code::Unknown))
    })
}
