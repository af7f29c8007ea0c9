//! librdkafka's callbacks of a producer. All run on the thread that polls.

use std::error::Error;
use std::sync::Arc;

use cqrs_core::broker::Confirmation;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::error::KafkaError as RdError;
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::delivery_error;
use super::outgoing::Outgoing;
use super::oversized::OversizedBatches;
use crate::events::Events;

#[derive(Clone)]
pub(super) struct Context {
    pub(super) events: Events,
    pub(super) oversized: Arc<OversizedBatches>,
    pub(super) is_idempotent: bool,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: Level, facility: &str, text: &str) {
        self.events.log(level, facility, text);
    }

    fn error(&self, error: RdError, reason: &str) {
        self.events.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.events.stats_raw(statistics);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.events.generate_oauth_token(config)
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Outgoing>;

    fn delivery(&self, result: &DeliveryResult<'_>, mut outgoing: Box<Outgoing>) {
        match result {
            Ok(record) => {
                if self.oversized.is_active() {
                    self.oversized.overtake(&outgoing);
                }
                let pending = outgoing.pending;
                self.events.health.report_up();
                let (partition, offset) = (record.partition(), record.offset());
                if offset < 0 && self.is_idempotent {
                    return delivery_error::fail_implicit_ack(pending);
                }
                let mut confirmation = Confirmation::at(partition, offset);
                if offset < 0 {
                    // With `acks=0` the broker returns no offset.
                    confirmation.offset = None;
                }
                pending.confirm(confirmation);
            }
            Err((error, record)) => {
                outgoing.partition = Some(record.partition()).filter(|partition| *partition >= 0);
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                if let Some(outgoing) = self.oversized.put(*outgoing, code) {
                    delivery_error::fail(outgoing.pending, code, self.events.health.cause());
                }
            }
        }
    }
}
