//! A checked subscription, ready to be opened. Used by all parts of the consumer; never changes.

use std::time::Duration;

use cqrs_core::consume::{
    SettleError, SubscribeError, SubscribeErrorKind, SubscribeRequest, TopicSet,
};
use rdkafka::ClientConfig;

use super::check;
use crate::config::{DEFAULT_UNSETTLED, KafkaConfig, KafkaSubscription, RetryMode};
use crate::topics;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) request: SubscribeRequest,
    pub(super) subscription: KafkaSubscription,
    pub(super) config: KafkaConfig,
    pub(super) client: ClientConfig,
    /// The topics and patterns for librdkafka's subscribe.
    pub(super) topics: Vec<String>,
    /// The delays that have a retry topic, shortest first. Empty in ordered mode.
    pub(super) delays: Vec<Duration>,
}

impl Plan {
    pub(super) fn new(
        config: &KafkaConfig,
        request: SubscribeRequest,
    ) -> Result<Self, SubscribeError> {
        if let Some(error) = check::check(std::slice::from_ref(&request)).into_iter().next() {
            return Err(error);
        }
        let subscription: KafkaSubscription = request.options.get().cloned().unwrap_or_default();
        let client = config.to_consumer_config(&request, &subscription).map_err(|error| {
            let text = format!("subscription {}: {error}", request.name);
            SubscribeError::new(SubscribeErrorKind::Invalid, text).with_source(error)
        })?;
        let mut delays = match subscription.retry_mode {
            RetryMode::Ordered => Vec::new(),
            RetryMode::Topics => request.retry.delays().to_vec(),
        };
        delays.sort_unstable();
        delays.dedup();
        let topics = topics::subscription(&request.topics, &request.group, &delays);
        Ok(Self { request, subscription, config: config.clone(), client, topics, delays })
    }

    pub(super) fn assignors(&self) -> String {
        let names: Vec<_> = self.subscription.assignors.iter().map(|by| by.as_str()).collect();
        names.join(", ")
    }

    /// The bound on records in flight.
    pub(super) fn max_unsettled(&self) -> usize {
        self.request.max_unsettled.unwrap_or(DEFAULT_UNSETTLED)
    }

    /// The delay of the retry topic in which a record waits for `delay`. `None`: the consumer holds it.
    pub(super) fn retry_delay(&self, delay: Duration) -> Result<Option<Duration>, SettleError> {
        match self.delays.is_empty() {
            true => Ok(None),
            false => self.request.retry.delay_at_least(delay),
        }
    }

    pub(super) fn is_retry(&self, topic: &str) -> bool {
        topics::is_own_retry(topic, &self.request.group, &self.delays)
    }

    /// Returns whether records of `topic` are consumed. A pattern never selects dead-letter topics, and retry topics
    /// of other groups.
    pub(super) fn is_consumed(&self, topic: &str) -> bool {
        matches!(self.request.topics, TopicSet::Named(_))
            || self.is_retry(topic)
            || !topics::is_internal(topic)
    }

    /// The retry topics of named topics, each with its topic.
    pub(super) fn retry_topics(&self) -> Vec<(String, String)> {
        let TopicSet::Named(names) = &self.request.topics else { return Vec::new() };
        let of = |name: &str| {
            let retry = |delay: &Duration| topics::retry_topic(name, &self.request.group, *delay);
            self.delays.iter().map(|delay| (retry(delay), name.to_owned())).collect::<Vec<_>>()
        };
        names.iter().flat_map(|name| of(name)).collect()
    }
}
