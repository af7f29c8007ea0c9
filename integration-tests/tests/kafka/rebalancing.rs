//! Tests of the Kafka source over rebalances: revoked, lost and kept partitions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cqrs_core::consume::{Delayed, RetryState};
use cqrs_core::event::Timestamp;
use cqrs_kafka::{Assignor, KafkaConfig, KafkaMessageBroker};
use cqrs_testkit::source::{is_consuming, text};
use integration_tests::consuming::TIMEOUT;
use integration_tests::consuming::fixture::{until, until_within};
use integration_tests::kafka::{Raw, committed, create_topic, fresh_topic, proxy, write};
use integration_tests::servers;
use tokio::sync::watch;

use super::member::{
    Member, impatient, join, options, prepared, request, revoked, two_running, wait_for_commit,
};

#[tokio::test]
async fn revoke_waits_for_handlers_and_commits() {
    let options = options();
    let (topic, group, mut member, mut out) = two_running("drain", &options).await;
    let mut second = Member::open(request(&topic, &group, options)).await;
    revoked(&out[0]).await;
    assert!(out[0].settle.begin(), "it runs already");
    tokio::time::sleep(Duration::from_secs(2)).await;
    for delivery in &mut out {
        delivery.settle.ack().await.expect("settled within the drain");
    }
    let started = Instant::now();
    second.wait_for(is_consuming).await;
    member.wait_for(is_consuming).await;
    println!("SUMMARY kafka revoke released after={:.1?}", started.elapsed());
    for partition in [0, 1] {
        assert_eq!(committed(&group, &topic, partition).await.0, Some(1));
    }
    assert!(second.next_within(Duration::from_secs(2)).await.is_none(), "nothing is redelivered");
    assert!(member.next_within(Duration::from_millis(100)).await.is_none());
    second.close().await;
    member.close().await;
}

#[tokio::test]
async fn handler_past_the_drain_loses_its_record() {
    let options = options().with_revoke_drain(Duration::from_secs(2));
    let (topic, group, mut member, mut out) = two_running("overrun", &options).await;
    let mut second = Member::open(request(&topic, &group, options)).await;
    revoked(&out[0]).await;
    let revoked_at = Instant::now();
    let next = second.next().await;
    let after = revoked_at.elapsed();
    assert!(after < Duration::from_secs(30), "{after:?}");
    println!("SUMMARY kafka overrun drain=2s moved_after={after:.1?}");
    for delivery in &mut out {
        let error = delivery.settle.ack().await.expect_err("its epoch is over");
        assert!(error.to_string().contains("is redelivered"), "{error}");
        assert!(!delivery.settle.begin() || delivery.settle.is_revoked());
    }
    drop(out);
    let mut mine = member.next().await;
    assert_ne!(mine.message.partition, next.message.partition);
    assert!(mine.settle.begin());
    mine.settle.ack().await.unwrap();
    drop(next);
    second.ack(1).await;
    second.close().await;
    member.close().await;
}

#[tokio::test]
async fn late_ack_fails_after_the_last_commit_of_a_revoke() {
    let options = options().with_revoke_drain(Duration::from_secs(2));
    let (topic, group, mut member, mut first) = two_running("late-ack", &options).await;
    let record = |partition| Raw { partition, ..Raw::new("other", "late") };
    write(&topic, vec![record(0), record(1)]).await;
    let mut late = member.begin(2).await;
    let mut second = Member::open(request(&topic, &group, options)).await;
    revoked(&late[0]).await;
    // There is something new to commit when the drain is over.
    for delivery in &mut first {
        delivery.settle.ack().await.expect("settled within the drain");
    }
    let next = second.next().await;
    assert_eq!(text(&next), "late");
    for delivery in &mut late {
        delivery.settle.ack().await.expect_err("its epoch is over");
    }
    drop((next, late));
    second.close().await;
    member.close().await;
}

#[tokio::test]
async fn held_and_waiting_deliveries_do_not_delay_a_revoke() {
    let options = options().with_revoke_drain(Duration::from_secs(60));
    let (topic, group, member, mut out) = two_running("held", &options).await;
    let state = RetryState::default().failed(Timestamp::now());
    for delivery in &mut out {
        let delay = Duration::from_secs(60);
        assert_eq!(delivery.settle.retry_later(delay, &state).await.unwrap(), Delayed::Hold);
    }
    let mut second = Member::open(request(&topic, &group, options)).await;
    revoked(&out[0]).await;
    let started = Instant::now();
    let next = second.next().await;
    assert!(started.elapsed() < Duration::from_secs(35), "{:?}", started.elapsed());
    assert_eq!(next.retry.attempts, 1, "its attempts came along");
    for delivery in &mut out {
        assert!(!delivery.settle.begin(), "revoked");
    }
    drop((next, out));
    second.close().await;
    member.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_partition_commits_nothing() {
    let (topic, group) = prepared("lost", 1, 3).await;
    let (proxy, _alone) = proxy().await;
    let broker = KafkaMessageBroker::new(KafkaConfig::new([servers::kafka_proxied()])).unwrap();
    let options = impatient().with_commit_interval(Duration::from_secs(1));
    let mut member = Member::at(broker, request(&topic, &group, options)).await;
    let mut out = member.begin(3).await;
    // Nothing passes, and the connections stay: the group gives the member up.
    proxy.blackhole(true);
    let mut first = out.remove(0);
    first.settle.ack().await.unwrap();
    // Another one takes the partition over while the member knows nothing of it.
    let mut other = join(&topic, &group).await;
    let mut taken = other.begin(3).await;
    taken[0].settle.ack().await.unwrap();
    taken[1].settle.ack().await.unwrap();
    wait_for_commit(&group, &topic, 2).await;
    revoked(&out[0]).await;
    for delivery in &mut out {
        delivery.settle.ack().await.expect_err("its epoch is over");
    }
    proxy.blackhole(false);
    proxy.cut();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(committed(&group, &topic, 0).await.0 >= Some(2), "the lost one commits nothing");
    drop(taken);
    other.close().await;
    assert_eq!(member.ack(1).await, ["2"], "it joined again");
    member.wait_for(is_consuming).await;
    member.close().await;
    assert_eq!(committed(&group, &topic, 0).await.0, Some(3));
}

#[tokio::test]
async fn static_member_returns_without_a_rebalance() {
    let topic = fresh_topic("static");
    create_topic(&topic, 2, &[]).await;
    let record = |partition| Raw { partition, ..Raw::new("key", &partition.to_string()) };
    write(&topic, vec![record(0), record(1)]).await;
    let group = format!("g-{topic}");
    let open = async |id: &str| {
        Member::open(request(&topic, &group, options().with_group_instance_id(id))).await
    };
    let (mut one, mut two) = (open("one").await, open("two").await);
    let mine = tokio::time::timeout(TIMEOUT, async {
        // Until both have one partition each, what came before is dropped.
        loop {
            let first = one.next().await;
            let Some(second) = two.next_within(Duration::from_secs(5)).await else { continue };
            if !first.settle.is_revoked() && first.message.partition != second.message.partition {
                return (first, second);
            }
        }
    });
    let (first, mut second) = mine.await.unwrap();
    let partition = first.message.partition;
    assert!(second.settle.begin());
    drop(first);
    one.close().await;
    let mut one = open("one").await;
    let first = one.next().await;
    assert_eq!(first.message.partition, partition);
    assert!(!second.settle.is_revoked(), "there was no rebalance");
    second.settle.ack().await.unwrap();
    drop(first);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn cooperative_rebalance_keeps_kept_partitions() {
    let options = options().with_assignors([Assignor::CooperativeSticky]);
    let (topic, group, mut member, mut out) = two_running("cooperative", &options).await;
    let mut second = Member::open(request(&topic, &group, options)).await;
    let moved = || out.iter().position(|delivery| delivery.settle.is_revoked());
    until("a partition to move", async || moved().is_some()).await;
    let moved = moved().unwrap();
    let mut goes = out.remove(moved);
    goes.settle.ack().await.unwrap();
    second.wait_for(is_consuming).await;
    let partition = goes.message.partition.unwrap();
    let more = |partition| Raw { partition, ..Raw::new("key", "more") };
    write(&topic, vec![more(0), more(1)]).await;
    let moved = second.next().await;
    assert_eq!((moved.message.partition, text(&moved)), (Some(partition), "more".into()));
    assert!(!out[0].settle.is_revoked(), "the other one stayed");
    let stayed = member.next().await;
    assert_eq!(stayed.message.partition, out[0].message.partition);
    out[0].settle.ack().await.unwrap();
    drop((moved, stayed));
    second.close().await;
    member.close().await;
}

/// Members come and go while records are handled: none is lost, and only what was running comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn joining_and_leaving_members_lose_nothing() {
    let topic = fresh_topic("churn");
    create_topic(&topic, 4, &[]).await;
    let group = format!("g-{topic}");
    let (attempted, per_round) = (4_000_usize, 500);
    let handled = Arc::new(std::sync::Mutex::new(HashMap::<String, usize>::new()));
    let run = |mut member: Member| {
        let handled = Arc::clone(&handled);
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = member.poll() => next,
                    _ = stopped.wait_for(|stop| *stop) => break,
                };
                let mut delivery = next.unwrap().unwrap();
                if !delivery.settle.begin() {
                    continue;
                }
                let key = text(&delivery);
                tokio::time::sleep(Duration::from_millis(1)).await;
                *handled.lock().unwrap().entry(key).or_default() += 1;
                delivery.settle.ack().await.expect("it was begun, and is quick");
            }
            member.close().await;
        });
        (stop, task)
    };
    let mut members = vec![run(join(&topic, &group).await)];
    let mut written = 0;
    for round in 0..attempted / per_round {
        let record = |n: usize| Raw {
            partition: (n % 4) as i32,
            ..Raw::new(&format!("key-{}", n % 40), &n.to_string())
        };
        write(&topic, (written..written + per_round).map(record).collect()).await;
        written += per_round;
        if round % 2 == 0 {
            members.push(run(join(&topic, &group).await));
        } else {
            let (stop, task) = members.remove(0);
            stop.send_replace(true);
            task.await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let all = async || handled.lock().unwrap().len() >= attempted;
    until_within(Duration::from_secs(90), "all to be handled", all).await;
    for (stop, task) in members {
        stop.send_replace(true);
        task.await.unwrap();
    }
    let handled = handled.lock().unwrap();
    let twice: usize = handled.values().map(|times| times - 1).sum();
    println!(
        "SUMMARY kafka churn attempted={attempted} handled={} duplicates={twice}",
        handled.len()
    );
    assert_eq!(twice, 0, "handlers shorter than the drain end before their partition goes");
}
