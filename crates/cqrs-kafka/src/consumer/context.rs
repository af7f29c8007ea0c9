//! librdkafka's callbacks for a consumer. All run on the thread that polls.

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

/// What the group asks of this member. It waits until we answer with an assign or an unassign.
#[derive(Debug)]
pub(super) enum Rebalance {
    Assign(TopicPartitionList),
    /// `lost`: others may have the partitions already.
    Revoke {
        list: TopicPartitionList,
        lost: bool,
    },
}

/// A problem that librdkafka told of with its words.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) code: Code,
    pub(super) words: String,
}

#[derive(Debug)]
pub(super) struct Context {
    pub(super) events: Events,
    rebalances: Mutex<VecDeque<Rebalance>>,
    troubles: Mutex<Vec<Trouble>>,
    /// Nobody serves rebalances any more: the client is being destroyed.
    leaving: AtomicBool,
}

impl Context {
    pub(super) fn new(events: Events) -> Self {
        Self {
            events,
            rebalances: Mutex::default(),
            troubles: Mutex::default(),
            leaving: AtomicBool::new(false),
        }
    }

    pub(super) fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(super) fn has_rebalance(&self) -> bool {
        !self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn take_troubles(&self) -> Vec<Trouble> {
        std::mem::take(&mut *self.troubles.lock().unwrap_or_else(PoisonError::into_inner))
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
        let words = self.events.redactor.redact(reason);
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).push(Trouble { code, words });
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
    /// Only notes what is asked: the drain and the commit of a revoke take time, and polling goes on
    /// meanwhile. The session answers.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        if self.leaving.load(Ordering::Acquire) {
            // Nothing can be done about an error here; destroying the client goes on.
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
