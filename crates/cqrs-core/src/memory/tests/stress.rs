//! Tests of the memory broker with many tasks on several threads.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::{MemoryBroker, Message, MessageBroker};

const KEYS: usize = 16;
const PUBLISHERS: usize = 24;
const EACH: usize = 250;

/// The deliveries of one group, recorded by all of its members.
#[derive(Default)]
struct Seen {
    order: Mutex<HashMap<Bytes, Vec<u64>>>,
    busy: Vec<AtomicBool>,
    settled: Mutex<HashSet<u64>>,
}

/// The order of each key, as its enqueues resolved: the lock is held around `enqueue`.
type Sent = Vec<tokio::sync::Mutex<Vec<u64>>>;

async fn publish(broker: MemoryBroker, publisher: usize, sent: Arc<Sent>) {
    for n in 0..EACH {
        let id = (publisher * EACH + n) as u64;
        let key = (publisher + n * 7) % KEYS;
        let message = Message::new("t", id.to_be_bytes().to_vec()).with_key(vec![key as u8]);
        let mut order = sent[key].lock().await;
        let _receipt = broker.enqueue(message).await.unwrap();
        order.push(id);
    }
}

async fn consume(broker: MemoryBroker, group: String, member: usize, seen: Arc<Seen>) {
    let subscriber = broker.subscriber("t", &group);
    let mut n = member;
    // Every 13th call is cancelled if it has to wait.
    loop {
        n += 1;
        let delivery = if n.is_multiple_of(13) {
            match tokio::time::timeout(Duration::from_micros(50), subscriber.recv()).await {
                Ok(delivery) => delivery,
                Err(_cancelled) => continue,
            }
        } else {
            subscriber.recv().await
        };
        let Some(delivery) = delivery else { return };
        let key = delivery.message().key.clone().unwrap();
        let id = u64::from_be_bytes(delivery.message().body.as_ref().try_into().unwrap());
        let busy = &seen.busy[usize::from(key[0])];
        assert!(!busy.swap(true, Ordering::SeqCst), "two of one key are out");
        if !delivery.redelivered() {
            seen.order.lock().unwrap().entry(key).or_default().push(id);
        }
        if n.is_multiple_of(5) {
            tokio::task::yield_now().await;
        }
        busy.store(false, Ordering::SeqCst);
        match n % 11 {
            0 => delivery.nack(),
            1 => drop(delivery),
            _ => {
                assert!(seen.settled.lock().unwrap().insert(id), "settled twice");
                delivery.ack();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_keep_order_per_key_and_lose_nothing() {
    // Small enough for publishes to wait for room and for the window.
    let broker = MemoryBroker::builder().capacity(64).window(16, 1 << 20).build();
    let sent: Arc<Sent> = Arc::new((0..KEYS).map(|_| Default::default()).collect());
    let mut members = JoinSet::new();
    let mut groups = Vec::new();
    for group in ["a", "b", "c"] {
        let busy = (0..KEYS).map(|_| AtomicBool::new(false)).collect();
        let seen = Arc::new(Seen { busy, ..Seen::default() });
        broker.create_group("t", group, Default::default());
        for member in 0..8 {
            members.spawn(consume(broker.clone(), group.into(), member, Arc::clone(&seen)));
        }
        groups.push(seen);
    }
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        publishers.spawn(publish(broker.clone(), publisher, Arc::clone(&sent)));
    }
    let all = async {
        while let Some(done) = publishers.join_next().await {
            done.unwrap();
        }
        assert_eq!(broker.shutdown(Duration::from_secs(30)).await.undelivered, 0);
        while let Some(done) = members.join_next().await {
            done.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("a wake-up was lost");
    for seen in groups {
        assert_eq!(seen.settled.lock().unwrap().len(), PUBLISHERS * EACH);
        let order = std::mem::take(&mut *seen.order.lock().unwrap());
        for (key, order) in order {
            assert_eq!(order, *sent[usize::from(key[0])].lock().await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn waiting_members_are_all_woken() {
    for _ in 0..200 {
        let broker = MemoryBroker::new();
        let mut members = JoinSet::new();
        for _ in 0..8 {
            let member = broker.subscriber("t", "g");
            members.spawn(async move { member.recv().await.unwrap().ack() });
        }
        for _ in 0..8 {
            let _receipt = broker.enqueue(Message::new("t", "")).await.unwrap();
        }
        let all = async { while members.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("a wake-up was lost");
    }
}
