use std::collections::HashMap;
use std::sync::Arc;

use cqrs_core::StartAt;
use cqrs_core::consume::{SubscribeError, SubscribeErrorKind, SubscribeRequest};

use super::options::QueueKind;
use super::plan::{Plan, QueuePlan};
use crate::AmqpConfig;

/// AMQP 0-9-1, 4.2.5.3: a short string has one byte for its length.
const SHORT: usize = 255;

/// What is wrong with `requests` taken together, as far as no connection is needed to tell.
pub(super) fn check(requests: &[SubscribeRequest], config: &AmqpConfig) -> Vec<SubscribeError> {
    let mut problems = Vec::new();
    let mut known: HashMap<Arc<str>, (Arc<str>, String)> = HashMap::new();
    for request in requests {
        let plan = match Plan::new(request, config) {
            Ok(plan) => plan,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        problems.extend(alone(request, &plan));
        for queue in &plan.queues {
            let asked = format!("{}; routing keys {:?}", queue.describe(), queue.routing_keys);
            match known.get(&queue.name) {
                Some((other, declared)) if *declared != queue.describe() => {
                    problems.push(invalid(format!(
                        "subscriptions {other:?} and {:?} want one queue {:?} with different \
                         properties ({declared}; {asked}): give them the same, or name the queues \
                         differently",
                        plan.name, queue.name
                    )));
                }
                Some(_) => {}
                None => {
                    let asked = (Arc::clone(&plan.name), queue.describe());
                    known.insert(Arc::clone(&queue.name), asked);
                }
            }
        }
    }
    problems
}

/// What is wrong with one subscription.
pub(super) fn alone(request: &SubscribeRequest, plan: &Plan) -> Vec<SubscribeError> {
    let mut problems: Vec<_> = plan
        .queues
        .iter()
        .flat_map(|queue| queue_problems(request, queue))
        .map(|problem| format!("subscription {:?}: {problem}", plan.name))
        .map(invalid)
        .collect();
    if plan.max_unsettled == 0 {
        problems.push(invalid(format!(
            "subscription {:?}: a prefetch of 0 is no bound at all to RabbitMQ; take at least 1",
            plan.name
        )));
    }
    let long = plan.consumer_tag.as_ref().is_some_and(|tag| tag.len() + 6 > SHORT);
    if long || plan.exchange.name.len() > SHORT {
        problems.push(invalid(format!(
            "subscription {:?}: a name (consumer tag, exchange) is over {SHORT} bytes",
            plan.name
        )));
    }
    let streams = plan.queues.iter().all(|queue| queue.kind == QueueKind::Stream);
    if matches!(request.start, StartAt::Time(_)) && !streams {
        let detail = format!(
            "subscription {:?}: RabbitMQ's queues cannot be read from a point in time, only streams \
             can: take QueueKind::Stream, or start with the oldest",
            plan.name
        );
        problems.push(SubscribeError::new(SubscribeErrorKind::Unsupported, detail));
    }
    problems
}

fn queue_problems(request: &SubscribeRequest, queue: &QueuePlan) -> Vec<String> {
    let mut problems = Vec::new();
    let name = &queue.name;
    let retries = queue.delays.iter().map(|delay| queue.retry_queue(*delay).name);
    let names = retries.chain(queue.dead.iter().map(|dead| dead.name.clone()));
    let names = names.chain([name.to_string()]).chain(queue.routing_keys.iter().cloned());
    for long in names.filter(|name| name.len() > SHORT) {
        problems.push(format!(
            "the name {long:?} has {} bytes, AMQP allows {SHORT}: name the queue with \
             AmqpSubscription::with_queue",
            long.len()
        ));
    }
    let config = &queue.config;
    if queue.kind != QueueKind::Classic {
        let kind = queue.kind.argument();
        for (wrong, what) in [
            (config.exclusive, "exclusive"),
            (config.auto_delete, "auto-delete"),
            (!config.durable, "not durable"),
        ] {
            if wrong {
                problems.push(format!(
                    "queue {name:?} cannot be {what} and a {kind} queue: take QueueKind::Classic"
                ));
            }
        }
    }
    if queue.dead.as_ref().is_some_and(|dead| *dead.name == **name) {
        problems.push(format!(
            "queue {name:?} would get its own dead letters: name another dead-letter queue"
        ));
    }
    let attempts = i64::from(request.retry.max_attempts());
    if let Some(limit) = queue.delivery_limit()
        && limit >= 0
        && limit < attempts
    {
        problems.push(format!(
            "queue {name:?} drops a message after {limit} deliveries, its schedule has {attempts} \
             attempts: raise AmqpSubscription::with_delivery_limit (restarts and lost connections \
             count as well; the default never drops), or shorten the schedule"
        ));
    }
    problems
}

fn invalid(detail: String) -> SubscribeError {
    SubscribeError::new(SubscribeErrorKind::Invalid, detail)
}
