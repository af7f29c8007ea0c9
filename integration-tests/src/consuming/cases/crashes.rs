//! A message whose handling takes the process down.

use std::time::Duration;

use crate::consuming::ledger::Summary;
use crate::consuming::stand::{Stand, ids, until};
use crate::consuming::work::{Act, Kind, Work};

/// 16: a supervisor restarts the process until it lives; the message becomes a dead letter within the
/// starts it may have, and no other one does.
pub async fn aborts(kind: Kind, program: &'static str) -> Summary {
    let stand = Stand::new(kind, program, "abort", 4).await;
    let mut options = stand.options();
    (options.handler_ms, options.max_crashes) = ((5, 20), 3);
    options.instance = Some("one".into());
    stand.declare(&options).await;
    let total = 1_000;
    let works = Work::over(100, total).enumerate().map(|(n, work)| match n {
        500 => Work::new("abort", 0).act(Act::Abort),
        _ => work,
    });
    let works: Vec<_> = works.collect();
    let deadly = works[500].id();
    let published = stand.publish(works).await;
    let mut ledger = stand.ledger();
    let mut starts = 0;
    loop {
        starts += 1;
        assert!(starts <= 12, "it still kills the process: {:?}", ledger.entry(&deadly));
        let mut worker = stand.spawn(&options);
        let mut alive = true;
        until("its end, or all others to be handled", async || {
            alive = !worker.has_exited();
            !alive || ledger.refresh().handled() == total - 1
        })
        .await;
        if alive {
            stand.until_settled_but(total, 1).await;
            let (status, _) = worker.stop().await;
            assert!(status.success(), "{status}");
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let dead = stand.dead().await;
    let test = format!("{kind:?} one aborts the process");
    let summary = ledger.check(&test, &published, &ids(&dead));
    let tries = ledger.entry(&deadly).starts;
    let summary = summary.sound(format!("starts of the process {starts}, of its handler {tries}"));
    assert_eq!((summary.dead, summary.dead_copies, dead[0].id()), (1, 0, deadly), "{summary}");
    assert!(tries <= options.max_crashes, "{summary}");
    stand.clean().await;
    summary
}
