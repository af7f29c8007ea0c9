//! A subscription, checked and made ready to be opened.

use std::time::Duration;

use cqrs_core::consume::{
    SettleError, SubscribeError, SubscribeErrorKind, SubscribeRequest, TopicSet,
};
use rdkafka::ClientConfig;

use super::check;
use crate::config::{DEFAULT_UNSETTLED, KafkaConfig, KafkaSubscription, RetryMode};
use crate::topics;

/// What a subscription's threads and settlements need to know, and never changes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) request: SubscribeRequest,
    pub(super) subscription: KafkaSubscription,
    pub(super) config: KafkaConfig,
    pub(super) client: ClientConfig,
    /// What librdkafka is told to subscribe to.
    pub(super) topics: Vec<String>,
    /// The delays that have a retry topic, shortest first. None in ordered mode.
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

    pub(super) fn cap(&self) -> usize {
        self.request.max_unsettled.unwrap_or(DEFAULT_UNSETTLED)
    }

    /// The retry topic in which a record waits for `delay`, by its own delay; `None`: it waits with the
    /// consumer.
    pub(super) fn retry_delay(&self, delay: Duration) -> Result<Option<Duration>, SettleError> {
        match self.delays.is_empty() {
            true => Ok(None),
            false => self.request.retry.delay_at_least(delay),
        }
    }

    pub(super) fn is_retry(&self, topic: &str) -> bool {
        topics::is_own_retry(topic, &self.request.group, &self.delays)
    }

    /// Whether records of `topic` are meant: a pattern never means dead letters and retry topics of
    /// other groups.
    pub(super) fn is_meant(&self, topic: &str) -> bool {
        matches!(self.request.topics, TopicSet::Named(_))
            || self.is_retry(topic)
            || !topics::is_internal(topic)
    }

    /// The retry topics that can be named now, each with the topic it belongs to.
    pub(super) fn retry_topics(&self) -> Vec<(String, String)> {
        let TopicSet::Named(names) = &self.request.topics else { return Vec::new() };
        let of = |name: &str| {
            let retry = |delay: &Duration| topics::retry_topic(name, &self.request.group, *delay);
            self.delays.iter().map(|delay| (retry(delay), name.to_owned())).collect::<Vec<_>>()
        };
        names.iter().flat_map(|name| of(name)).collect()
    }
}
