//! Tests of messages that another consumer has got meanwhile.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_message_that_was_taken_away_is_not_handled() {
    let broker = Scribe::new(Script { revoked: true, ..Script::default() });
    let never = each(|_: NotificationEvent<Ordered>, _: Received| async { panic!("it ran") });
    let (log, report) = run(&broker, Retry::none(), never, "given back").await;
    assert_eq!(log, ["given back", "closed"]);
    assert_eq!(report.unwrap().subscriptions[0].counts.revoked, 1);
}

#[tokio::test(start_paused = true)]
async fn revoked_held_message_frees_its_key() {
    let broker = Scribe::new(Script { revoked_when_held: true, ..Script::default() });
    let started = tokio::time::Instant::now();
    let (log, _) = run(&broker, delayed(300), failing(), "given back").await;
    assert_eq!(log, ["copy 1 in 300s", "given back", "closed"]);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn revoke_keeps_pause_of_the_rest_of_a_failed_batch() {
    let revoked = Some(Duration::from_secs(10));
    let broker = three(Script { first_revoked_after: revoked, ..Script::default() });
    let (log, started) = (broker.log.clone(), tokio::time::Instant::now());
    let target = batch(3, Duration::from_secs(1), {
        move |events: Vec<(NotificationEvent<Ordered>, Received)>| {
            let numbers: Vec<_> = events.iter().map(|(event, _)| event.payload.number).collect();
            log.add(format!("{numbers:?} after {} min", started.elapsed().as_secs() / 60));
            async { Err(HandlerError::retryable("not yet")) }
        }
    });
    let retry = Retry::none().immediate([Duration::from_secs(120)]);
    let (log, report) = run(&broker, retry, target, "[2, 3] after 2 min").await;
    assert_eq!(log[..3], ["[1, 2, 3] after 0 min", "given back", "[2, 3] after 2 min"]);
    assert_eq!(report.unwrap().subscriptions[0].counts.revoked, 1);
}
