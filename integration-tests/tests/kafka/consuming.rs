//! Tests of the Kafka source: deliveries, redelivery, bounds and commits.

use std::time::{Duration, Instant};

use cqrs_core::consume::SourceStatus;
use cqrs_testkit::source::{is_consuming, text};
use integration_tests::kafka::{
    Raw, committed, create_topic, ends, fresh_topic, write, write_transaction,
};

use super::member::{
    Member, impatient, join, options, prepared, request, settle_until_committed, wait_for_commit,
};

#[tokio::test]
async fn only_unacked_records_are_redelivered() {
    let (topic, group) = prepared("ack", 1, 5).await;
    let mut member = join(&topic, &group).await;
    let mut deliveries = member.begin(5).await;
    assert_eq!(deliveries.iter().map(text).collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    let first = &deliveries[0].message;
    assert_eq!((&*first.topic, first.partition, first.offset), (&*topic, Some(0), Some(0)));
    assert_eq!(first.key.as_deref(), Some(&b"key"[..]));
    assert!(!first.redelivered && first.timestamp.is_some());
    // 2 is not done: nothing after it is committed, but it is noted that two are done.
    for index in [4, 0, 1, 3] {
        deliveries[index].settle.ack().await.unwrap();
    }
    wait_for_commit(&group, &topic, 2).await;
    member.close().await;
    drop(deliveries);
    assert_eq!(committed(&group, &topic, 0).await, (Some(2), "cqrs1;d=3.2".into()), "a good end");

    let mut member = join(&topic, &group).await;
    assert_eq!(member.ack(1).await, ["2"]);
    wait_for_commit(&group, &topic, 5).await;
    write(&topic, vec![Raw::new("key", "5")]).await;
    assert_eq!(member.ack(1).await, ["5"], "3 and 4 were done");
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(6), "the close commits");
}

#[tokio::test]
async fn dropped_delivery_is_redelivered_before_later_ones() {
    let (topic, group) = prepared("drop", 1, 3).await;
    let mut member = join(&topic, &group).await;
    let first = member.next().await;
    drop(first);
    let again = member.next().await;
    assert_eq!((text(&again), again.message.redelivered), ("0".into(), true));
    drop(again);
    assert_eq!(member.ack(3).await, ["0", "1", "2"]);
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(3));
}

#[tokio::test]
async fn dropped_source_leaves_the_group_and_commits() {
    let (topic, group) = prepared("gone", 1, 2).await;
    let mut member = join(&topic, &group).await;
    let mut deliveries = member.begin(2).await;
    deliveries[0].settle.ack().await.unwrap();
    let started = Instant::now();
    drop(member);
    // The one that is out is not waited for.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    wait_for_commit(&group, &topic, 1).await;
    assert!(deliveries[1].settle.ack().await.is_err(), "too late");
    let mut member = join(&topic, &group).await;
    assert_eq!(member.ack(1).await, ["1"]);
    member.close().await;
}

#[tokio::test]
async fn in_flight_stays_within_the_cap() {
    let (topic, group) = prepared("cap", 1, 100).await;
    let mut request = request(&topic, &group, options());
    request.max_unsettled = Some(10);
    let mut member = Member::open(request).await;
    let mut out = member.begin(10).await;
    assert!(member.next_within(Duration::from_secs(1)).await.is_none(), "the cap holds");
    drop(out.pop());
    let again = member.next().await;
    assert_eq!(text(&again), "9", "a dropped one frees no room for others: it is redelivered");
    out.push(again);
    for delivery in &mut out {
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(member.ack(90).await, (10..100).map(|n| n.to_string()).collect::<Vec<_>>());
    member.close().await;
}

#[tokio::test]
async fn bytes_in_flight_stay_within_the_cap() {
    let topic = fresh_topic("bytes");
    create_topic(&topic, 1, &[]).await;
    let large = "x".repeat(10_000);
    write(&topic, (0..20).map(|_| Raw::new("key", &large)).collect()).await;
    let few = options().with_max_unsettled_bytes(35_000);
    let mut member = Member::open(request(&topic, &format!("g-{topic}"), few)).await;
    let mut out = member.begin(4).await;
    assert!(member.next_within(Duration::from_secs(1)).await.is_none(), "the cap holds");
    for delivery in &mut out {
        delivery.settle.ack().await.unwrap();
    }
    member.ack(16).await;
    member.close().await;
}

#[tokio::test]
async fn slow_handler_keeps_its_partition() {
    let (topic, group) = prepared("slow", 1, 30).await;
    let mut request = request(&topic, &group, impatient());
    request.max_unsettled = Some(10);
    let mut member = Member::open(request).await;
    let mut out = member.begin(10).await;
    // The handler: three poll intervals long, and no room for anything else.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let full = matches!(*member.status.borrow(), SourceStatus::Full { .. });
    assert!(full, "{:?}", *member.status.borrow());
    for delivery in &mut out {
        assert!(!delivery.settle.is_revoked());
        delivery.settle.ack().await.unwrap();
    }
    assert_eq!(member.ack(20).await, (10..30).map(|n| n.to_string()).collect::<Vec<_>>());
    member.wait_for(is_consuming).await;
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(30));
}

#[tokio::test]
async fn commits_pass_markers_and_aborted_transactions() {
    let topic = fresh_topic("transactions");
    create_topic(&topic, 1, &[]).await;
    let records = |from: usize| (from..from + 3).map(|n| Raw::new("key", &n.to_string())).collect();
    write_transaction(&topic, records(0), true).await;
    write_transaction(&topic, records(3), false).await;
    write_transaction(&topic, records(6), true).await;
    let group = format!("g-{topic}");
    let mut member = join(&topic, &group).await;
    assert_eq!(member.ack(6).await, ["0", "1", "2", "6", "7", "8"]);
    // Three records and a marker each: the last record is at 10, its marker at 11.
    settle_until_committed(&mut member, &group, &topic, 12).await;
    assert_eq!(ends(&topic, 0).await.1, 12, "no lag is left");
    write_transaction(&topic, records(9), false).await;
    settle_until_committed(&mut member, &group, &topic, 16).await;
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await, (Some(16), "cqrs1".into()));
}

#[tokio::test]
async fn stopped_source_ends_and_settles_in_flight() {
    let (topic, group) = prepared("stop", 1, 20).await;
    let mut member = join(&topic, &group).await;
    let mut out = member.begin(3).await;
    member.stop().await;
    assert!(member.poll().await.is_none());
    for delivery in &mut out {
        delivery.settle.ack().await.unwrap();
    }
    wait_for_commit(&group, &topic, 3).await;
    let started = Instant::now();
    member.close().await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let mut member = join(&topic, &group).await;
    assert_eq!(member.ack(17).await[0], "3");
    member.close().await;
}
