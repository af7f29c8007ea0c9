//! The checks of a subscribe request that hold for every broker.

use crate::consume::request::{DeadLetterTarget, SubscribeRequest, TopicSet};

/// Reports everything that is wrong with `request` whatever the broker: no topic or group, a bound of zero. A source
/// adds the checks of its own broker and puts the name of the subscription in front.
pub fn request_problems(request: &SubscribeRequest) -> Vec<String> {
    let mut problems = Vec::new();
    if request.group.is_empty() {
        problems
            .push("its group has no name; consumers of one group share the messages".to_owned());
    }
    if let TopicSet::Named(topics) = &request.topics {
        if topics.is_empty() {
            problems.push("it names no topic".to_owned());
        }
        if topics.iter().any(|topic| topic.is_empty()) {
            problems.push("the name of a topic is empty".to_owned());
        }
    }
    if request.max_unsettled == Some(0) {
        problems
            .push("max_unsettled is 0; nothing would ever be fetched, take at least 1".to_owned());
    }
    problems
}

/// Reports a request that consumes the topic of its own dead letters, for brokers that store them in topics.
pub fn own_dead_letters(request: &SubscribeRequest) -> Option<String> {
    match (&request.topics, &request.dead_letter) {
        (TopicSet::Named(topics), DeadLetterTarget::Named(dead)) if topics.contains(dead) => {
            Some(format!("it consumes its own dead letters from {dead}; name another topic"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consume::StatusReporter;

    fn problems(
        topics: &[&str],
        group: &str,
        change: impl FnOnce(&mut SubscribeRequest),
    ) -> String {
        let topics = TopicSet::Named(topics.iter().map(|&topic| topic.into()).collect());
        let mut request = SubscribeRequest::new(topics, group, StatusReporter::new().0);
        change(&mut request);
        request_problems(&request).join("\n")
    }

    #[test]
    fn defaults_have_no_problem() {
        assert_eq!(problems(&["users", "orders"], "mailer", |_| {}), "");
    }

    #[test]
    fn each_problem_is_named() {
        assert!(problems(&["users"], "", |_| {}).contains("no name"));
        assert!(problems(&[], "mailer", |_| {}).contains("no topic"));
        assert!(problems(&["users", ""], "mailer", |_| {}).contains("empty"));
        let zero = problems(&["users"], "mailer", |request| request.max_unsettled = Some(0));
        assert!(zero.contains("max_unsettled is 0"));
    }

    #[test]
    fn topic_of_own_dead_letters_is_a_problem() {
        let topics = TopicSet::Named(vec!["users".into(), "dead".into()]);
        let mut request = SubscribeRequest::new(topics, "mailer", StatusReporter::new().0);
        assert_eq!(own_dead_letters(&request), None);
        request.dead_letter = DeadLetterTarget::Named("dead".into());
        assert!(own_dead_letters(&request).is_some_and(|text| text.contains("from dead")));
    }
}
