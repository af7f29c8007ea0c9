//! The names that belong to a topic and a group, by the same rules for every broker.

use std::time::Duration;

/// The name of what belongs to `topic` and `group`, such as RabbitMQ's queue: `{topic}.{group}`.
///
/// No two pairs share a name. For that each dot of the group is doubled, and each dot at the end of the
/// topic: topic `a` and group `eu.mailer` have `a.eu..mailer`, topic `a.eu` and group `mailer` have
/// `a.eu.mailer`. The last run of dots of odd length holds the separator. A group must not
/// [begin or end with a dot](group_problem).
///
/// ```
/// use cqrs_core::consume::support::topic_group_name;
///
/// assert_eq!(topic_group_name("user_events", "mailer"), "user_events.mailer");
/// assert_eq!(topic_group_name("a", "eu.mailer"), "a.eu..mailer");
/// ```
pub fn topic_group_name(topic: &str, group: &str) -> String {
    let dots = topic.len() - topic.trim_end_matches('.').len();
    format!("{topic}{}.{}", ".".repeat(dots), group.replace('.', ".."))
}

/// The topic or queue in which messages of `base` wait `delay` for their next attempt: `{base}.retry.{delay}`,
/// beside the dead letters in `{base}.dead`.
pub fn retry_name(base: &str, delay: Duration) -> String {
    format!("{base}.retry.{}", delay_text(delay))
}

/// `10s`, or `250ms` when it is no whole number of seconds; rounded up to a millisecond.
pub fn delay_text(delay: Duration) -> String {
    let millis = delay.as_nanos().div_ceil(1_000_000);
    match millis % 1_000 {
        0 => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

/// The problem of a group's name, if there is one: its names would be those of another pair, too.
pub fn group_problem(group: &str) -> Option<&'static str> {
    (group.starts_with('.') || group.ends_with('.'))
        .then_some("the name of a group cannot begin or end with a dot: rename it")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// All texts over `a` and the dot, of one to `most` characters.
    fn texts(most: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut last = all.clone();
        for _ in 0..most {
            last = last.iter().flat_map(|text| [format!("{text}a"), format!("{text}.")]).collect();
            all.extend(last.clone());
        }
        all.split_off(1)
    }

    #[test]
    fn no_two_pairs_share_a_name() {
        let mut known = HashMap::new();
        for topic in texts(6) {
            for group in texts(6).into_iter().filter(|group| group_problem(group).is_none()) {
                let name = topic_group_name(&topic, &group);
                let pair = (topic.clone(), group);
                if let Some(other) = known.insert(name.clone(), pair.clone()) {
                    panic!("{name:?} belongs to {pair:?} and {other:?}");
                }
            }
        }
        assert!(known.len() > 3_000);
    }

    #[test]
    fn delay_is_never_named_shorter_than_it_is() {
        for (micros, text) in
            [(10_000_000, "10s"), (90_500_000, "90500ms"), (999_999_001, "1000s"), (1, "1ms")]
        {
            assert_eq!(delay_text(Duration::from_micros(micros)), text);
        }
        assert_eq!(retry_name("orders.mail", Duration::from_secs(300)), "orders.mail.retry.300s");
    }

    #[test]
    fn group_without_dots_keeps_the_plain_name() {
        assert_eq!(topic_group_name("a.b", "mail-er_1"), "a.b.mail-er_1");
    }

    #[test]
    fn group_with_outer_dots_is_refused() {
        assert!(group_problem(".a").is_some() && group_problem("a.").is_some());
        assert_eq!(group_problem("a.b"), None);
    }
}
