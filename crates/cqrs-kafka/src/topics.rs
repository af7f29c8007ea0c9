//! Names of topics: legal names, retry topics, and the internal topics that a pattern does not select. Used by
//! producer and consumer.

use std::time::Duration;

use cqrs_core::consume::TopicSet;
use cqrs_core::consume::support::{delay_text, retry_name, topic_group_name};

/// The fault of a name, by the rules of `org.apache.kafka.common.internals.Topic.validate`.
pub(crate) fn fault(topic: &str) -> Option<&'static str> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match topic {
        "" => Some("is empty"),
        "." | ".." => Some("cannot be \".\" or \"..\""),
        _ if topic.len() > 249 => Some("is longer than 249 characters"),
        _ if !topic.bytes().all(legal) => {
            Some("has a character other than ASCII letters, digits, '.', '_' and '-'")
        }
        _ => None,
    }
}

/// The topic in which copies wait for their next attempt after `delay`.
pub(crate) fn retry_topic(topic: &str, group: &str, delay: Duration) -> String {
    retry_name(&topic_group_name(topic, group), delay)
}

/// The topics to subscribe to, in librdkafka's form (a leading `^` makes a pattern), with the retry topics of this
/// group for `delays`.
pub(crate) fn subscription(topics: &TopicSet, group: &str, delays: &[Duration]) -> Vec<String> {
    match topics {
        TopicSet::Named(names) => names
            .iter()
            .flat_map(|name| {
                let retries = delays.iter().map(move |delay| retry_topic(name, group, *delay));
                std::iter::once(name.to_string()).chain(retries)
            })
            .collect(),
        TopicSet::Pattern(pattern) => {
            let mut all = vec![format!("^({pattern})$")];
            if !delays.is_empty() {
                let delays: Vec<_> = delays.iter().map(|delay| delay_text(*delay)).collect();
                let (group, delays) = (group.replace('.', "\\.\\."), delays.join("|"));
                all.push(format!("^({pattern})\\.{group}\\.retry\\.({delays})$"));
            }
            all
        }
        _ => Vec::new(),
    }
}

/// Returns whether `topic` is a retry topic of this group.
pub(crate) fn is_own_retry(topic: &str, group: &str, delays: &[Duration]) -> bool {
    original(topic, group, delays).is_some()
}

/// The topic of a retry topic of this group.
pub(crate) fn original<'a>(topic: &'a str, group: &str, delays: &[Duration]) -> Option<&'a str> {
    let group = topic_group_name("", group);
    let of_group = |delay: &Duration| {
        topic.strip_suffix(&delay_text(*delay))?.strip_suffix(".retry.")?.strip_suffix(&*group)
    };
    let topic = delays.iter().find_map(of_group)?;
    // Dots at the end of the topic are doubled. With an odd number, one belongs to the name of another group.
    let dots = topic.len() - topic.trim_end_matches('.').len();
    (dots % 2 == 0).then(|| topic.get(..topic.len() - dots / 2)).flatten()
}

/// Returns whether a name that a pattern matches is a dead-letter or retry topic, which a pattern never selects.
pub(crate) fn is_internal(topic: &str) -> bool {
    let is_delay = |text: &str| {
        let number = text.strip_suffix("ms").or_else(|| text.strip_suffix('s')).unwrap_or("");
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    topic.ends_with(".dead")
        || topic.rsplit_once(".retry.").is_some_and(|(_, delay)| is_delay(delay))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAYS: [Duration; 3] =
        [Duration::from_secs(10), Duration::from_secs(300), Duration::from_millis(1_500)];

    #[test]
    fn retry_topics_are_named_by_topic_group_and_delay() {
        assert_eq!(retry_topic("orders", "mail", DELAYS[1]), "orders.mail.retry.300s");
        assert_eq!(retry_topic("orders", "mail", DELAYS[2]), "orders.mail.retry.1500ms");
        let named = TopicSet::Named(vec!["a".into(), "b".into()]);
        assert_eq!(subscription(&named, "g", &[]), ["a", "b"]);
        assert_eq!(
            subscription(&named, "g", &DELAYS[..1]),
            ["a", "a.g.retry.10s", "b", "b.g.retry.10s"]
        );
        assert_eq!(original("a.b.g.retry.10s", "g", &DELAYS), Some("a.b"));
        for (topic, group) in [("a.b", "g"), ("a", "b.g"), ("a.", "g"), ("a..", "b.g")] {
            let retry = retry_topic(topic, group, DELAYS[0]);
            assert_eq!(original(&retry, group, &DELAYS), Some(topic), "{retry}");
            assert_eq!(original(&retry, if group == "g" { "b.g" } else { "g" }, &DELAYS), None);
        }
        for other in ["a.h.retry.10s", "a.g.retry.20s", "a", "a.g.dead", "ag.retry.10s"] {
            assert!(!is_own_retry(other, "g", &DELAYS), "{other}");
        }
    }

    #[test]
    fn pattern_is_anchored() {
        let pattern = TopicSet::Pattern("orders|mail.*".into());
        assert_eq!(
            subscription(&pattern, "a.b", &DELAYS[..2]),
            ["^(orders|mail.*)$", "^(orders|mail.*)\\.a\\.\\.b\\.retry\\.(10s|300s)$"]
        );
    }

    #[test]
    fn internal_topics_are_recognized() {
        for topic in ["a.g.dead", "a.g.retry.10s", "a.g.retry.1500ms"] {
            assert!(is_internal(topic), "{topic}");
        }
        for topic in ["a", "dead", "a.retry.s", "a.retry.soon", "a.retry.ms", "dead.a"] {
            assert!(!is_internal(topic), "{topic}");
        }
    }

    #[test]
    fn illegal_name_has_a_fault() {
        let long = "t".repeat(250);
        for bad in ["", ".", "..", "a b", "a/b", "\u{e9}", &long] {
            assert!(fault(bad).is_some(), "{bad}");
        }
        for good in ["a", "...", "A.b_c-9", &long[1..]] {
            assert_eq!(fault(good), None, "{good}");
        }
    }
}
