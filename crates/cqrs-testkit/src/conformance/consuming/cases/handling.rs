//! A message is acked after its handler; keys run in parallel, and each in order.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::super::ConsumingHarness;
use super::super::service::Log;
use super::super::stage::{KEY, Stage};

pub(crate) async fn handled_messages_do_not_come_again<H: ConsumingHarness>(harness: &H) {
    const COUNT: u32 = 20;
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let running = stage.run(stage.subscription(), log.each(|_| Ok(()))).await;
    stage.publish_events(COUNT).await;
    stage.until("all are handled", || running.counts().handled == u64::from(COUNT)).await;
    let report = running.end().await;
    assert_eq!(log.numbers(KEY), (1..=COUNT).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(
        (report.counts.received, report.counts.handled),
        (u64::from(COUNT), u64::from(COUNT))
    );
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_message_whose_handler_did_not_end_comes_again<H: ConsumingHarness>(
    harness: &H,
) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let never = log.each_async(|_| std::future::pending());
    let running = stage.run(stage.subscription(), never).await;
    stage.publish_events(2).await;
    stage.until("the first one runs", || log.len() == 1).await;
    running.crash().await;
    let running = stage.run(stage.subscription(), log.each(|_| Ok(()))).await;
    stage.until("both are handled", || running.counts().handled == 2).await;
    running.end().await;
    assert_eq!(log.numbers(KEY), [1, 1, 2]);
    stage.assert_nothing_left().await;
}

pub(crate) async fn keys_run_in_parallel_and_each_in_order<H: ConsumingHarness>(harness: &H) {
    const KEYS: u32 = 8;
    const EACH: u32 = 10;
    const AT_ONCE: usize = 4;
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let now: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let (most, overlap) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(false)));
    let handler = {
        let (now, most, overlap) = (now.clone(), most.clone(), overlap.clone());
        log.each_async(move |note| {
            let (now, most, overlap) = (now.clone(), most.clone(), overlap.clone());
            async move {
                {
                    let mut now = now.lock().expect("no panic");
                    *overlap.lock().expect("no panic") |= !now.insert(note.key.clone());
                    let mut most = most.lock().expect("no panic");
                    *most = now.len().max(*most);
                }
                tokio::time::sleep(Duration::from_millis(u64::from(note.number % 5) * 3)).await;
                now.lock().expect("no panic").remove(&note.key);
                Ok(())
            }
        })
    };
    stage.make_group().await;
    // Two of a key come one behind the other.
    let key = |number: u32| format!("key-{}", number / 2 % KEYS);
    stage.publish_all((0..KEYS * EACH).map(|number| stage.event(&key(number), number))).await;
    let running = stage.run(stage.subscription().concurrency(AT_ONCE), handler).await;
    let all = u64::from(KEYS * EACH);
    stage.until("all are handled", || running.counts().handled == all).await;
    running.end().await;
    for first in (0..2 * KEYS).step_by(2).map(key) {
        let sent: Vec<_> = (0..KEYS * EACH).filter(|number| key(*number) == first).collect();
        assert_eq!(log.numbers(&first), sent, "{first}");
    }
    assert!(!*overlap.lock().expect("no panic"), "two of one key at once");
    let most = *most.lock().expect("no panic");
    assert!((2..=AT_ONCE).contains(&most), "{most} at once, of {AT_ONCE}");
    stage.assert_nothing_left().await;
}

pub(crate) async fn a_busy_key_does_not_stall_the_others<H: ConsumingHarness>(harness: &H) {
    let (stage, log) = (Stage::new(harness).await, Log::default());
    let gate = Arc::new(Semaphore::new(0));
    let handler = {
        let gate = Arc::clone(&gate);
        log.each_async(move |note| {
            let gate = Arc::clone(&gate);
            async move {
                if note.key == KEY {
                    gate.acquire().await.expect("never closed").forget();
                }
                Ok(())
            }
        })
    };
    let running = stage.run(stage.subscription().concurrency(2), handler).await;
    stage.publish_events(2).await;
    stage.until("the key is busy", || log.len() == 1).await;
    let other = |number: u32| stage.event(&format!("other-{number}"), number);
    stage.publish_all((0..10).map(other)).await;
    stage.until("the others are handled", || running.counts().handled == 10).await;
    assert_eq!(log.numbers(KEY), [1], "the second of the key waits");
    gate.add_permits(2);
    stage.until("all are handled", || running.counts().handled == 12).await;
    running.end().await;
    stage.assert_nothing_left().await;
}
