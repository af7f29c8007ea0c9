//! Checks subscriptions without a connection; part of the consumer, used by the broker value's `check`.

use std::collections::HashMap;
use std::sync::Arc;

use cqrs_core::StartAt;
use cqrs_core::consume::support::{request_problems, topic_group_name};
use cqrs_core::consume::{SubscribeError, SubscribeErrorKind, SubscribeRequest};

use super::plan::{Plan, QueuePlan};
use crate::config::AmqpConfig;
use crate::config::QueueKind;

/// AMQP 0-9-1, 4.2.5.3: a short string has one byte for its length.
const SHORT: usize = 255;

/// The problems of `requests` that can be found without a connection.
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
        problems.extend(check_one(request, &plan));
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

/// The problems of one subscription.
pub(super) fn check_one(request: &SubscribeRequest, plan: &Plan) -> Vec<SubscribeError> {
    let of_queues = plan.queues.iter().flat_map(|queue| queue_problems(request, queue));
    let mut problems: Vec<_> = request_problems(request)
        .into_iter()
        .chain(of_queues)
        .map(|problem| format!("subscription {:?}: {problem}", plan.name))
        .map(invalid)
        .collect();
    let joined = |queue: &QueuePlan| {
        queue.topics.iter().any(|topic| topic_group_name(topic, &request.group) == *queue.name)
    };
    if plan.queues.iter().any(joined)
        && let Some(problem) = reserved(&request.group)
    {
        problems.push(invalid(format!("subscription {:?}: {problem}", plan.name)));
    }
    if plan.max_unsettled == 0 && request.max_unsettled != Some(0) {
        problems.push(invalid(format!(
            "subscription {:?}: RabbitMQ takes a prefetch of 0 as no limit; take at least 1",
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
             can: take QueueKind::Stream, or start with the oldest message",
            plan.name
        );
        problems.push(SubscribeError::new(SubscribeErrorKind::Unsupported, detail));
    }
    problems
}

/// The problem of a group whose queues would be named like the retry, dead-letter or quarantine queues of others.
fn reserved(group: &str) -> Option<&'static str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let delay = group.strip_suffix("ms").or_else(|| group.strip_suffix('s'));
    let is_reserved = matches!(group, "dead" | "quarantine") || delay.is_some_and(is_number);
    is_reserved.then_some(
        "a group named \"dead\", \"quarantine\" or like a delay (\"10s\") would share queues with other \
         groups: rename it, or name the queue with AmqpSubscription::with_queue",
    )
}

fn queue_problems(request: &SubscribeRequest, queue: &QueuePlan) -> Vec<String> {
    let mut problems = Vec::new();
    let name = &queue.name;
    let retries = queue.retry.delays().iter().map(|delay| queue.retry_queue(*delay).name);
    let own = queue.dead.iter().chain(&queue.quarantine).map(|own| own.name.clone());
    let names = retries.chain(own);
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
        let kind = queue.kind.as_str();
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use cqrs_core::consume::{DeadLetterTarget, Retry, StatusReporter, TopicSet};

    use super::*;
    use crate::config::AmqpSubscription;

    fn request(change: impl FnOnce(&mut SubscribeRequest)) -> SubscribeRequest {
        let topics = TopicSet::Named(vec!["user_events".into()]);
        let mut request = SubscribeRequest::new(topics, "mailer", StatusReporter::new().0);
        change(&mut request);
        request
    }

    fn with(options: AmqpSubscription) -> SubscribeRequest {
        request(|request| request.options.insert(options))
    }

    fn problems(requests: &[SubscribeRequest]) -> String {
        let problems = check(requests, &AmqpConfig::default());
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn defaults_have_no_problems() {
        let options = AmqpSubscription::new;
        for sound in [
            options(),
            options().with_exclusive(true),
            options().with_durable(false).with_auto_delete(true),
            options().with_kind(QueueKind::Stream),
            options().with_passive(true),
            AmqpSubscription::python_compatible(),
            AmqpSubscription::faststream_compatible(),
        ] {
            assert_eq!(problems(&[with(sound.clone())]), "", "{sound:?}");
        }
        assert_eq!(problems(&[request(|_| {}), request(|_| {})]), "");
    }

    #[test]
    fn contradictions_are_named() {
        let options = AmqpSubscription::new;
        for (wrong, says) in [
            (with(options().with_kind(QueueKind::Quorum).with_exclusive(true)), "exclusive"),
            (with(options().with_kind(QueueKind::Stream).with_durable(false)), "not durable"),
            (with(options().with_prefetch(0)), "at least 1"),
            (request(|request| request.max_unsettled = Some(0)), "at least 1"),
            (with(options().with_delivery_limit(6)), "7 attempts"),
            (with(options().with_argument("x-delivery-limit", 3)), "7 attempts"),
            (with(options().with_queue("q".repeat(251))), "255"),
            (with(options().with_routing_key("k".repeat(256))), "255"),
            (request(|request| request.start = StartAt::Time(SystemTime::now())), "streams"),
            (
                request(|request| request.topics = TopicSet::Pattern("user.*".into())),
                "topic exchange",
            ),
            (request(|request| request.topics = TopicSet::Named(Vec::new())), "no topic"),
            (
                request(|request| {
                    request.dead_letter = DeadLetterTarget::Named("user_events.mailer".into());
                }),
                "its own dead letters",
            ),
        ] {
            let found = problems(&[wrong]);
            assert!(found.contains(says) && found.contains("mailer"), "{says}: {found}");
        }
        // A topic is a routing key, not a queue.
        let like_a_topic = request(|request| {
            request.dead_letter = DeadLetterTarget::Named("user_events".into());
        });
        assert_eq!(problems(&[like_a_topic]), "");
        let none = request(|request| {
            request.retry = Retry::none();
            request.options.insert(options().with_delivery_limit(1));
        });
        assert_eq!(problems(&[none]), "");
    }

    #[test]
    fn reserved_group_is_refused_unless_queue_is_named() {
        for group in ["dead", "quarantine", "10s", "1500ms"] {
            let of_group = |request: &mut SubscribeRequest| request.group = group.into();
            assert!(problems(&[request(of_group)]).contains("with_queue"), "{group}");
            let named = request(|request| {
                of_group(request);
                request.options.insert(AmqpSubscription::new().with_queue("q"));
            });
            assert_eq!(problems(&[named]), "");
        }
        for group in ["s", "ms", "dead-mail", "10", "10seconds"] {
            assert_eq!(problems(&[request(|request| request.group = group.into())]), "", "{group}");
        }
    }

    #[test]
    fn shared_queue_needs_equal_properties() {
        let queue = || AmqpSubscription::new().with_queue("q");
        let found = problems(&[with(queue()), with(queue().with_kind(QueueKind::Classic))]);
        for part in ["\"q\"", "quorum", "classic", "name the queues differently"] {
            assert!(found.contains(part), "{part}: {found}");
        }
        // Groups share python-cqrs's queue.
        let other = request(|request| request.group = "other".into());
        assert_eq!(problems(&[other, with(AmqpSubscription::python_compatible())]), "");
    }

    #[test]
    fn retry_queues_are_named_by_delay() {
        let request = request(|request| {
            request.retry = Retry::none().delayed([10_000, 90_500].map(Duration::from_millis));
        });
        let plan = Plan::new(&request, &AmqpConfig::default()).unwrap();
        let names =
            plan.queues[0].retry.delays().iter().map(|delay| plan.queues[0].retry_queue(*delay));
        let names: Vec<_> = names.map(|queue| queue.name).collect();
        assert_eq!(names, ["user_events.mailer.retry.10s", "user_events.mailer.retry.90500ms"]);
        assert_eq!(plan.queues[0].dead.as_ref().unwrap().name, "user_events.mailer.dead");
    }

    #[test]
    fn default_prefetch_is_three_times_the_concurrency() {
        for (concurrency, given, prefetch) in [
            (1, None, 16),
            (20, None, 60),
            (1_000, None, 300),
            (20, Some(7), 7),
            (1, Some(70_000), u16::MAX),
        ] {
            let request = request(|request| {
                (request.concurrency, request.max_unsettled) = (concurrency, given);
            });
            let plan = Plan::new(&request, &AmqpConfig::default()).unwrap();
            assert_eq!(plan.prefetch, prefetch);
        }
    }
}
