//! The checks of subscriptions that need no connection. Used by the broker value and by the [`plan`](super::plan).

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::support::{own_dead_letters, request_problems};
use cqrs_core::consume::{SubscribeError, SubscribeErrorKind, SubscribeRequest, TopicSet};

use super::in_flight::Bound;
use crate::config::{KafkaSubscription, RetryMode};
use crate::topics;

/// The faults of `requests`, each for itself and taken together.
pub(super) fn check(requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
    let mut faults = Vec::new();
    for request in requests {
        let mut wrong = |text: String| {
            let text = format!("subscription {}: {text}", request.name);
            faults.push(SubscribeError::new(SubscribeErrorKind::Invalid, text));
        };
        let problems = request_problems(request).into_iter().chain(own_dead_letters(request));
        problems.for_each(&mut wrong);
        check_topics(request, &mut wrong);
        check_bounds(request, &options(request), &mut wrong);
        check_options(&options(request), &mut wrong);
    }
    for (index, one) in requests.iter().enumerate() {
        for other in requests.iter().skip(index + 1).filter(|other| other.group == one.group) {
            check_pair(one, other, &mut |text| {
                let text = format!(
                    "subscriptions {} and {} of group {}: {text}",
                    one.name, other.name, one.group
                );
                faults.push(SubscribeError::new(SubscribeErrorKind::Conflict, text));
            });
        }
    }
    faults
}

fn options(request: &SubscribeRequest) -> KafkaSubscription {
    request.options.get().cloned().unwrap_or_default()
}

fn check_topics(request: &SubscribeRequest, wrong: &mut impl FnMut(String)) {
    let names = match &request.topics {
        TopicSet::Named(names) => names.as_slice(),
        TopicSet::Pattern(pattern) => {
            if let Some(fault) = pattern_fault(pattern) {
                wrong(format!("the pattern {pattern:?} {fault}"));
            }
            &[]
        }
        _ => return wrong("this kind of topics is not known to Kafka".into()),
    };
    let ordered = options(request).retry_mode == RetryMode::Ordered;
    for name in names.iter().filter(|name| !name.is_empty()) {
        if let Some(fault) = topics::fault(name) {
            wrong(format!("the topic name {name:?} {fault}"));
            continue;
        }
        if let Some(dead) = request.dead_letter_topic(name)
            && let Some(fault) = topics::fault(&dead)
        {
            wrong(format!(
                "its dead-letter topic {dead:?} {fault}; name another, or rename topic or group"
            ));
        }
        for delay in request.retry.delays().iter().filter(|_| !ordered) {
            let retry = topics::retry_topic(name, &request.group, *delay);
            if let Some(fault) = topics::fault(&retry) {
                wrong(format!("its retry topic {retry:?} {fault}; rename topic or group"));
            }
        }
    }
}

/// The fault of a pattern that librdkafka would refuse, as far as it is simple to find.
fn pattern_fault(pattern: &str) -> Option<&'static str> {
    if pattern.is_empty() {
        return Some("is empty");
    }
    let (mut depth, mut in_class, mut escaped) = (0_i32, false, false);
    for c in pattern.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' if in_class => in_class = false,
            _ if in_class => {}
            '[' => in_class = true,
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return Some("closes a parenthesis that it did not open");
        }
    }
    match (depth, in_class, escaped) {
        (0, false, false) => None,
        (_, _, true) => Some("ends with a backslash"),
        (_, true, _) => Some("does not close a bracket"),
        _ => Some("does not close a parenthesis"),
    }
}

fn check_bounds(
    request: &SubscribeRequest,
    options: &KafkaSubscription,
    wrong: &mut impl FnMut(String),
) {
    if request.max_unsettled.is_some_and(|records| records > Bound::MAX.records) {
        wrong(format!("max_unsettled is above {}, the most that is counted", Bound::MAX.records));
    }
    if options.max_unsettled_bytes > Bound::MAX.bytes {
        wrong(format!(
            "max_unsettled_bytes is above {}, the most that is counted",
            Bound::MAX.bytes
        ));
    }
}

fn check_options(options: &KafkaSubscription, wrong: &mut impl FnMut(String)) {
    if options.max_unsettled_bytes == 0 {
        wrong("max_unsettled_bytes is 0; nothing would ever be fetched".into());
    }
    if options.commit_interval < Duration::from_millis(10) {
        wrong("commit_interval is below 10 ms; the coordinator would do nothing else".into());
    }
    if options.session_timeout > options.max_poll_interval {
        wrong("session_timeout is above max_poll_interval; Kafka does not take that".into());
    }
    if options.group_instance_id.as_deref() == Some("") {
        wrong("group_instance_id is empty; leave it unset for a dynamic member".into());
    }
    let cooperative = options.assignors.iter().filter(|by| by.is_cooperative()).count();
    match options.assignors.len() {
        0 => wrong("it has no assignor".into()),
        all if cooperative != 0 && cooperative != all => wrong(
            "it mixes cooperative-sticky with range or roundrobin; a group takes one kind".into(),
        ),
        _ => {}
    }
}

/// Checks two members of one group.
fn check_pair(one: &SubscribeRequest, other: &SubscribeRequest, wrong: &mut impl FnMut(String)) {
    let (ours, theirs) = (options(one), options(other));
    if !ours.assignors.iter().any(|assignor| theirs.assignors.contains(assignor)) {
        wrong("they have no assignor in common; give both the same".into());
    }
    if ours.group_instance_id.is_some() && ours.group_instance_id == theirs.group_instance_id {
        wrong("they have the same group_instance_id; each member needs its own".into());
    }
    let shared = match (&one.topics, &other.topics) {
        (TopicSet::Named(names), TopicSet::Named(others)) => {
            let shared: Vec<&Arc<str>> =
                names.iter().filter(|name| others.contains(name)).collect();
            match shared.first() {
                Some(name) => name.to_string(),
                None => return,
            }
        }
        (one, other) if one == other => one.to_string(),
        _ => return,
    };
    let same = one.start == other.start
        && one.retry == other.retry
        && one.dead_letter == other.dead_letter
        && ours.retry_mode == theirs.retry_mode
        && ours.isolation_level == theirs.isolation_level;
    if !same {
        wrong(format!(
            "both consume {shared}, so each message comes to one of them, with different options; \
             use two groups, or the same options"
        ));
    }
}

#[cfg(test)]
mod tests {
    use cqrs_core::Retry;
    use cqrs_core::consume::{DeadLetterTarget, StartAt, StatusReporter};

    use super::*;
    use crate::config::Assignor;

    fn named(topics: &[&str]) -> SubscribeRequest {
        let topics = TopicSet::Named(topics.iter().map(|&topic| topic.into()).collect());
        SubscribeRequest::new(topics, "mailer", StatusReporter::new().0)
    }

    fn with(options: KafkaSubscription) -> SubscribeRequest {
        let mut request = named(&["orders"]);
        request.options.insert(options);
        request
    }

    #[track_caller]
    fn fails(requests: &[SubscribeRequest], with: &str) {
        let faults: Vec<_> = check(requests).iter().map(ToString::to_string).collect();
        assert!(faults.iter().any(|fault| fault.contains(with)), "{with:?} not in {faults:?}");
    }

    #[test]
    fn defaults_have_no_fault() {
        assert!(check(&[named(&["orders"]), named(&["mails", "orders"])]).is_empty());
        assert!(check(&[with(KafkaSubscription::python_compatible())]).is_empty());
        let no_delays = {
            let mut request = with(KafkaSubscription::new().with_retry_mode(RetryMode::Topics));
            request.retry = Retry::none();
            request
        };
        assert!(check(&[no_delays]).is_empty());
    }

    #[test]
    fn faulty_subscription_is_named() {
        let mut zero = named(&["orders"]);
        zero.max_unsettled = Some(0);
        fails(&[zero], "max_unsettled is 0");
        let mut many = named(&["orders"]);
        many.max_unsettled = Some(Bound::MAX.records);
        assert!(check(std::slice::from_ref(&many)).is_empty());
        many.max_unsettled = Some(Bound::MAX.records + 1);
        fails(&[many], "max_unsettled is above 8388608");
        let large = KafkaSubscription::new().with_max_unsettled_bytes(Bound::MAX.bytes + 1);
        fails(&[with(large)], "max_unsettled_bytes is above");
        fails(&[named(&[])], "names no topic");
        fails(&[named(&["a b"])], "the topic name \"a b\"");
        fails(&[named(&[&"t".repeat(240)])], "its dead-letter topic");
        let retried = {
            let topics = KafkaSubscription::new().with_retry_mode(RetryMode::Topics);
            let mut request = with(topics);
            request.topics = TopicSet::Named(vec!["t".repeat(232).into()]);
            request
        };
        fails(&[retried], "its retry topic");
        fails(&[with(KafkaSubscription::new().with_max_unsettled_bytes(0))], "max_unsettled_bytes");
        fails(&[with(KafkaSubscription::new().with_assignors([]))], "no assignor");
        let mixed = [Assignor::Range, Assignor::CooperativeSticky];
        fails(&[with(KafkaSubscription::new().with_assignors(mixed))], "mixes");
        let slow = KafkaSubscription::new().with_max_poll_interval(Duration::from_secs(6));
        fails(&[with(slow)], "session_timeout is above");
        let mut own = named(&["orders"]);
        own.dead_letter = DeadLetterTarget::Named("orders".into());
        fails(&[own], "its own dead letters");
    }

    #[test]
    fn broken_pattern_is_a_fault() {
        let pattern = |text: &str| {
            let mut request = named(&[]);
            request.topics = TopicSet::Pattern(text.into());
            request
        };
        for good in ["orders\\..*", "a|b", "(a|b)[0-9(]+", "\\("] {
            assert!(check(&[pattern(good)]).is_empty(), "{good}");
        }
        for bad in ["", "(a", "a)", "[a", "a\\"] {
            fails(&[pattern(bad)], "the pattern");
        }
    }

    #[test]
    fn members_of_one_group_must_agree() {
        let cooperative = KafkaSubscription::new().with_assignors([Assignor::CooperativeSticky]);
        fails(&[with(cooperative.clone()), named(&["mails"])], "no assignor in common");
        let mut elsewhere = named(&["mails"]);
        elsewhere.group = "other".into();
        assert!(check(&[with(cooperative), elsewhere]).is_empty());
        let instance = with(KafkaSubscription::new().with_group_instance_id("one"));
        fails(&[instance.clone(), instance], "the same group_instance_id");
        let mut late = named(&["orders"]);
        late.start = StartAt::Latest;
        fails(&[named(&["orders"]), late], "both consume orders");
    }
}
