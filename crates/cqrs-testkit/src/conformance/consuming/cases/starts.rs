//! Where a group begins, and what a subscription is to.

use std::time::{Duration, SystemTime};

use cqrs_core::StartAt;
use cqrs_core::consume::TopicSet;

use super::super::stage::{Stage, assert_unsupported, fresh_group};
use super::super::{ConsumingHarness, stage::QUIET};

/// With a message published while there was another group only.
async fn with_history<H: ConsumingHarness>(harness: &H) -> Stage<'_, H> {
    let mut stage = Stage::new(harness).await;
    stage.make_group().await;
    let hour_ago = SystemTime::now() - Duration::from_secs(3_600);
    stage.publish(stage.message("old").with_timestamp(hour_ago)).await;
    stage.group = fresh_group();
    stage
}

pub(crate) async fn a_group_begins_with_the_oldest_or_when_it_is_made<H: ConsumingHarness>(
    harness: &H,
) {
    let stage = with_history(harness).await;
    let mut opened = stage.open().await;
    stage.publish(stage.message("new")).await;
    if stage.can.history {
        assert_eq!(opened.acked().await, "old");
    }
    assert_eq!(opened.acked().await, "new");
    opened.nothing_within(QUIET).await;
    opened.close().await;
}

pub(crate) async fn a_group_that_begins_with_the_latest_gets_what_comes<H: ConsumingHarness>(
    harness: &H,
) {
    let stage = with_history(harness).await;
    let mut opened = stage.open_with(|request| request.start = StartAt::Latest).await;
    stage.publish(stage.message("new")).await;
    assert_eq!(opened.acked().await, "new");
    opened.close().await;
    // Only a new group begins there: from now on it has a place.
    stage.publish(stage.message("newer")).await;
    let mut opened = stage.open_with(|request| request.start = StartAt::Latest).await;
    assert_eq!(opened.acked().await, "newer");
    opened.close().await;
}

pub(crate) async fn latest_group_has_a_place_before_its_first_message<H: ConsumingHarness>(
    harness: &H,
) {
    let stage = with_history(harness).await;
    stage.open_with(|request| request.start = StartAt::Latest).await.close().await;
    let while_away = ["1", "2", "3"];
    for body in while_away {
        stage.publish(stage.message(body)).await;
    }
    let mut opened = stage.open_with(|request| request.start = StartAt::Latest).await;
    for body in while_away {
        assert_eq!(opened.acked().await, body);
    }
    opened.close().await;
}

pub(crate) async fn a_group_can_begin_at_a_time_or_is_told_that_it_cannot<H: ConsumingHarness>(
    harness: &H,
) {
    let stage = with_history(harness).await;
    let start = StartAt::Time(SystemTime::now() - Duration::from_secs(1_800));
    if !stage.can.start_time {
        let (request, _status) = stage.request(|request| request.start = start);
        assert_unsupported(&stage.broker.check(&[request]), "to start at a time");
        return;
    }
    stage.publish(stage.message("later")).await;
    let mut opened = stage.open_with(|request| request.start = start).await;
    assert_eq!(opened.acked().await, "later");
    opened.nothing_within(QUIET).await;
    opened.close().await;
}

pub(crate) async fn a_pattern_is_subscribed_to_or_refused<H: ConsumingHarness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let escaped = stage.topic.replace('.', "\\.");
    let pattern = TopicSet::Pattern(format!("{escaped}|nothing-else").into());
    if !stage.can.patterns {
        let (request, _status) = stage.request(|request| request.topics = pattern);
        assert_unsupported(&stage.broker.check(&[request]), "a pattern");
        return;
    }
    let mut opened = stage.open_with(|request| request.topics = pattern).await;
    stage.publish(stage.message("1")).await;
    let delivery = opened.next().await;
    assert_eq!(*delivery.message.topic, *stage.topic);
    drop(delivery);
    opened.close().await;
}
