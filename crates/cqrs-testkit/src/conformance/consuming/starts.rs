//! Cases of a group's first position and of the topics of a subscription.

use std::time::{Duration, SystemTime};

use cqrs_core::StartAt;
use cqrs_core::consume::TopicSet;

use crate::conformance::fixture::{Fixture, QUIET, assert_unsupported, fresh_group};
use crate::conformance::harness::Harness;

/// A fixture with a message published while only another group existed.
async fn with_history<H: Harness>(harness: &H) -> Fixture<'_, H> {
    let mut fixture = Fixture::new(harness).await;
    fixture.make_group().await;
    let hour_ago = SystemTime::now() - Duration::from_secs(3_600);
    fixture.publish(fixture.message("old").with_timestamp(hour_ago)).await;
    fixture.group = fresh_group();
    fixture
}

pub(crate) async fn new_group_starts_at_earliest_or_at_its_creation<H: Harness>(harness: &H) {
    let fixture = with_history(harness).await;
    let mut source = fixture.open().await;
    fixture.publish(fixture.message("new")).await;
    if fixture.can.history {
        assert_eq!(source.ack_next().await, "old");
    }
    assert_eq!(source.ack_next().await, "new");
    source.nothing_within(QUIET).await;
    source.close().await;
}

pub(crate) async fn latest_group_receives_only_new_messages<H: Harness>(harness: &H) {
    let fixture = with_history(harness).await;
    let mut source = fixture.open_with(|request| request.start = StartAt::Latest).await;
    fixture.publish(fixture.message("new")).await;
    assert_eq!(source.ack_next().await, "new");
    source.close().await;
    // Only a new group starts there: from now on it has a position.
    fixture.publish(fixture.message("newer")).await;
    let mut source = fixture.open_with(|request| request.start = StartAt::Latest).await;
    assert_eq!(source.ack_next().await, "newer");
    source.close().await;
}

pub(crate) async fn latest_group_has_a_position_before_first_message<H: Harness>(harness: &H) {
    let fixture = with_history(harness).await;
    fixture.open_with(|request| request.start = StartAt::Latest).await.close().await;
    let while_away = ["1", "2", "3"];
    for body in while_away {
        fixture.publish(fixture.message(body)).await;
    }
    let mut source = fixture.open_with(|request| request.start = StartAt::Latest).await;
    for body in while_away {
        assert_eq!(source.ack_next().await, body);
    }
    source.close().await;
}

pub(crate) async fn start_time_works_or_is_unsupported<H: Harness>(harness: &H) {
    let fixture = with_history(harness).await;
    let start = StartAt::Time(SystemTime::now() - Duration::from_secs(1_800));
    if !fixture.can.start_time {
        let request = fixture.request(|request| request.start = start);
        assert_unsupported(&fixture.broker.check(&[request]), "to start at a time");
        return;
    }
    fixture.publish(fixture.message("later")).await;
    let mut source = fixture.open_with(|request| request.start = start).await;
    assert_eq!(source.ack_next().await, "later");
    source.nothing_within(QUIET).await;
    source.close().await;
}

pub(crate) async fn pattern_works_or_is_unsupported<H: Harness>(harness: &H) {
    let fixture = Fixture::new(harness).await;
    let escaped = fixture.topic.replace('.', "\\.");
    let pattern = TopicSet::Pattern(format!("{escaped}|nothing-else").into());
    if !fixture.can.patterns {
        let request = fixture.request(|request| request.topics = pattern);
        assert_unsupported(&fixture.broker.check(&[request]), "a pattern");
        return;
    }
    let mut source = fixture.open_with(|request| request.topics = pattern).await;
    fixture.publish(fixture.message("1")).await;
    let delivery = source.next().await;
    assert_eq!(*delivery.message.topic, *fixture.topic);
    drop(delivery);
    source.close().await;
}
