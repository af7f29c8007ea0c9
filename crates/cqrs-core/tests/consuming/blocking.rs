//! Tests that a handler that blocks its thread delays no other.

use std::sync::Condvar;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Blocks the thread until the given number of handlers run, or the deadline passes; returns their number.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    fn pass(&self, wanted: usize) -> usize {
        let (count, changed) = &*self.0;
        let mut count = count.lock().unwrap();
        *count += 1;
        changed.notify_all();
        *changed.wait_timeout_while(count, DEADLINE, |count| *count < wanted).unwrap().0
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() += 1_000;
        self.0.1.notify_all();
    }

    fn count(&self) -> usize {
        *self.0.0.lock().unwrap()
    }
}

fn blocking(gate: &Gate, seen: &Records, wanted: usize) -> impl Target {
    let (gate, seen) = (gate.clone(), Arc::clone(seen));
    each(move |event: NotificationEvent<UserCreated>, _: Received| {
        let (gate, seen) = (gate.clone(), Arc::clone(&seen));
        async move {
            let together = gate.pass(wanted) >= wanted;
            record(&seen, format!("{} {together}", event.payload.user_id));
            Ok(())
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn they_run_side_by_side() {
    let (broker, gate, seen) = (MemoryBroker::new(), Gate::default(), Records::default());
    for user in ["a", "b", "c", "d"] {
        publish(&broker, user, 1).await;
    }
    let running = run(&broker, users().concurrency(4), blocking(&gate, &seen, 4));
    until("all of them", || records(&seen).len() == 4).await;
    running.end().await;
    let mut seen = records(&seen);
    seen.sort_unstable();
    assert_eq!(seen, ["a true", "b true", "c true", "d true"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn one_does_not_hold_up_a_stop() {
    let (broker, gate, seen) = (MemoryBroker::new(), Gate::default(), Records::default());
    publish(&broker, "a", 1).await;
    let running = run(&broker, users().concurrency(4), blocking(&gate, &seen, 2));
    until("it blocks", || gate.count() == 1).await;
    running.stop.stop_now();
    let ended = tokio::time::timeout(DEADLINE / 2, running.task).await;
    gate.open();
    let report = ended.expect("the service ends while its handler blocks").unwrap();
    assert_eq!(report.subscriptions[0].counts.handled, 0);
}
