//! librdkafka's callbacks of a consumer. All run on the poll thread; the [`session`](super::session) takes out what
//! they leave.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::TopicPartitionList;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError as RdError;
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};

use crate::events::Events;

/// A rebalance of the group. It waits until the session answers with an assign or an unassign.
#[derive(Debug)]
pub(super) enum Rebalance {
    Assign(TopicPartitionList),
    /// `lost`: other members may have the partitions already.
    Revoke {
        list: TopicPartitionList,
        lost: bool,
    },
}

/// An error event of librdkafka, without secrets.
#[derive(Debug, Clone)]
pub(super) struct ReportedError {
    pub(super) code: Code,
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) struct Context {
    pub(super) events: Events,
    rebalances: Mutex<VecDeque<Rebalance>>,
    errors: Mutex<Vec<ReportedError>>,
    /// Set when the client is being destroyed and no session answers rebalances any more.
    leaving: AtomicBool,
}

impl Context {
    pub(super) fn new(events: Events) -> Self {
        Self {
            events,
            rebalances: Mutex::default(),
            errors: Mutex::default(),
            leaving: AtomicBool::new(false),
        }
    }

    pub(super) fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(super) fn has_rebalance(&self) -> bool {
        !self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn take_errors(&self) -> Vec<ReportedError> {
        std::mem::take(&mut *self.errors.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on every rebalance is answered at once, so that the client can be destroyed.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: Level, facility: &str, text: &str) {
        self.events.log(level, facility, text);
    }

    fn error(&self, error: RdError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        let text = self.events.redactor.redact(reason);
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(ReportedError { code, text });
        self.events.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.events.stats_raw(statistics);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.events.generate_oauth_token(config)
    }
}

impl ConsumerContext for Context {
    /// Only queues the rebalance. The session answers it, since the drain and the commit of a revoke take time, and
    /// polling must continue.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        if self.leaving.load(Ordering::Acquire) {
            // An error here cannot be handled, and does not keep the client from being destroyed.
            let _ = answer_empty(consumer, what, list);
            return;
        }
        let list = list.clone();
        let rebalance = match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assign(list),
            _ => Rebalance::Revoke { list, lost: consumer.assignment_lost() },
        };
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).push_back(rebalance);
    }
}

fn answer_empty(
    consumer: &BaseConsumer<Context>,
    what: RDKafkaRespErr,
    list: &TopicPartitionList,
) -> Result<(), RdError> {
    let is_assign = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
    match (consumer.rebalance_protocol(), is_assign) {
        (RebalanceProtocol::Cooperative, true) => {
            consumer.incremental_assign(&TopicPartitionList::new())
        }
        (RebalanceProtocol::Cooperative, false) => consumer.incremental_unassign(list),
        _ => consumer.unassign(),
    }
}
