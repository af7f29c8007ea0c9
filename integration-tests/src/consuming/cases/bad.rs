//! Fault tests of messages that cannot be handled, among others.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use cqrs_core::Message;
use cqrs_core::consume::DeadLetterReason;

use crate::consuming::fixture::{Fixture, count, ids, until};
use crate::consuming::outcomes::Summary;
use crate::consuming::work::{Act, Kind, Work};

/// 14: one message whose handler always fails.
pub async fn poison(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "poison", 4).await;
    let mut options = fixture.options();
    (options.immediate_ms, options.delayed_ms) = (vec![10, 20], vec![500, 1_000]);
    fixture.declare(&options).await;
    let total = count(2_000, 10_000);
    let poisoned = total / 2;
    let works: Vec<_> = Work::over(100, total)
        .enumerate()
        .map(|(n, work)| if n == poisoned { work.act(Act::Fail(u32::MAX)) } else { work })
        .collect();
    let poisoned = works[poisoned].id();
    let published = fixture.publish(works).await;
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    until("all others to be handled, and the attempts", async || {
        outcomes.refresh().handled() == total - 1 && outcomes.entry(&poisoned).fails >= 5
    })
    .await;
    // Time for further attempts, which must not happen.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let dead = fixture.dead().await;
    let test = format!("{kind:?} 1 poison in {total}");
    let summary = outcomes.check(&test, &published, &ids(&dead));
    let letter = &dead[0].letter;
    let note = format!("attempts {} reason {} of 5 attempts", letter.attempts, letter.reason);
    let summary = summary.sound(note);
    assert_eq!((summary.dead, summary.dead_copies, dead[0].id()), (1, 0, poisoned.clone()));
    assert_eq!((letter.attempts, letter.reason), (5, DeadLetterReason::Exhausted));
    assert_eq!((&*letter.topic, &*letter.group), (&*fixture.topic, &*fixture.group));
    assert_eq!(outcomes.entry(&poisoned).starts, 5);
    assert_eq!((summary.duplicates, summary.interrupted), (0, 0), "{summary}");
    fixture.clean().await;
    summary
}

/// 15: one in a hundred panics.
pub async fn panics(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "panics", 4).await;
    let mut options = fixture.options();
    options.immediate_ms = vec![10];
    fixture.declare(&options).await;
    let total = count(2_000, 10_000);
    let works = Work::over(100, total).enumerate().map(|(n, work)| match n % 100 {
        7 => Work::new(format!("panic{n}"), 0).act(Act::Panic),
        // The other keys must have no gap.
        _ => Work::new(format!("n{}", n % 50), (n / 50) as u32).act(work.act),
    });
    let published = fixture.publish(works).await;
    let panicking = total / 100;
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    until("all others to be handled", async || {
        outcomes.refresh().handled() == total - panicking
            && outcomes.lines().iter().filter(|line| line.attempt == 2).count() == 2 * panicking
    })
    .await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(total).await;
    let dead = fixture.dead().await;
    let test = format!("{kind:?} {panicking} panics in {total}");
    let summary = outcomes.check(&test, &published, &ids(&dead));
    let processes = outcomes.ready().len();
    let summary = summary.sound(format!("all in {processes} process"));
    assert_eq!((summary.dead, summary.dead_copies), (panicking, 0), "{summary}");
    assert_eq!((summary.duplicates, summary.interrupted, processes), (0, 0, 1), "{summary}");
    for dead in &dead {
        let letter = &dead.letter;
        assert_eq!((letter.reason, letter.attempts), (DeadLetterReason::Panic, 2), "{letter:?}");
        assert!(letter.error.starts_with("panicked: Panic of panic"), "{letter:?}");
    }
    fixture.clean().await;
    summary
}

/// 17: garbage, unknown events, empty bodies and tombstones among good ones.
pub async fn undecodable(kind: Kind, program: &'static str) -> Summary {
    let fixture = Fixture::new(kind, program, "garbage", 4).await;
    let mut options = fixture.options();
    options.immediate_ms = vec![10, 10];
    fixture.declare(&options).await;
    let each = count(100, 250);
    let mut messages = Vec::new();
    let mut expected: HashMap<Bytes, (Bytes, DeadLetterReason)> = HashMap::new();
    let works: Vec<_> = Work::over(10, each).collect();
    for (n, work) in works.iter().enumerate() {
        messages.push(work.message(&fixture.topic));
        let mut garbage = vec![0xff, 0, b'{', 0x80];
        garbage.extend_from_slice(&(n as u64).to_be_bytes());
        let unknown = format!(
            "{{\"event_name\": \"Nobody{n}\", \"topic\": \"t\",\r\n \"payload\": {{\"n\": 1.0e3}} }}"
        );
        let bad = [
            (garbage, DeadLetterReason::Decode),
            (
                format!("{{\"event_name\": \"Work\", \"payload\": {n}}}").into(),
                DeadLetterReason::Decode,
            ),
            (unknown.into_bytes(), DeadLetterReason::UnknownType),
        ];
        for (place, (body, reason)) in bad.into_iter().enumerate() {
            let key = Bytes::from(format!("bad{place}-{n}"));
            let mut message = Message::new(&*fixture.topic, body.clone()).with_key(key.clone());
            message.headers.insert("trace", format!("t{n}")).unwrap();
            messages.push(message);
            expected.insert(key, (body.into(), reason));
        }
        messages.push(Message::new(&*fixture.topic, "").with_key(format!("empty{n}")));
    }
    let mut sent = messages.len();
    fixture.publish_raw(messages).await;
    if kind == Kind::Kafka {
        sent += each;
        fixture.publish_tombstones(each).await;
    }
    let mut published = crate::consuming::outcomes::Published::default();
    published.attempted = works.iter().map(Work::id).collect();
    published.confirmed = published.attempted.clone();
    let mut outcomes = fixture.outcomes();
    let worker = fixture.start(&options, &mut outcomes).await;
    until("all to be handled", async || outcomes.refresh().handled() == each).await;
    fixture.until_settled(sent).await;
    let (status, _) = worker.stop().await;
    assert!(status.success(), "{status}");
    fixture.settled(sent).await;
    let dead = fixture.dead().await;
    let (dead_count, skipped) = (dead.len(), sent - each - dead.len());
    let test = format!("{kind:?} undecodable");
    let summary = outcomes.check(&test, &published, &[]);
    let summary =
        summary.sound(format!("sent {sent}, dead letters {dead_count}, skipped {skipped}"));
    for dead in dead {
        let key = Bytes::from(dead.key.clone().expect("the key"));
        let (body, reason) = expected.remove(&key).expect("one dead letter of each");
        assert_eq!(dead.body.as_deref(), Some(&*body), "byte for byte");
        assert_eq!((dead.letter.reason, dead.letter.attempts), (reason, 0), "{:?}", dead.letter);
        assert!(dead.headers.get("trace").is_some(), "{:?}", dead.headers);
    }
    assert!(expected.is_empty(), "not dead: {expected:?}");
    assert_eq!((summary.duplicates, summary.interrupted), (0, 0), "{summary}");
    fixture.clean().await;
    summary
}
