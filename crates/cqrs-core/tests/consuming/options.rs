//! Tests of the options of a subscription.

use cqrs_core::consume::{DeadLetterTarget, Incoming};
use cqrs_core::message::CorrelationId;
use cqrs_core::middleware::Failure;
use cqrs_core::service::per_delivery;
use cqrs_core::{Invocation, Middleware, Next, Outcome, StartAt};

use super::*;

/// Records the input, and the outcome in the invocation.
struct Recorder(Records, &'static str);

impl Middleware for Recorder {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        let user = call.input::<UserCreated>().map(|event| event.user_id.clone());
        record(&self.0, format!("{} before {} of {user:?}", self.1, call.name()));
        let outcome = next.run(call).await;
        let error = call.error().map(ToString::to_string);
        record(&self.0, format!("{} after: {error:?}", self.1));
        outcome
    }
}

struct Reject;

impl Middleware for Reject {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        match call.input::<UserCreated>().is_some_and(|event| event.step == 2) {
            true => Err(Failure::rejected("not today")),
            false => next.run(call).await,
        }
    }
}

/// Responds instead of the handler, or hides its failure.
struct Replace;

impl Middleware for Replace {
    async fn handle(&self, call: &mut Invocation<'_>, next: Next<'_>) -> Outcome {
        let step = call.input::<UserCreated>().map(|event| event.step);
        match step {
            Some(1) => {
                assert!(!call.respond(7), "no event is answered with a number");
                assert!(call.respond(()));
                Ok(())
            }
            Some(2) => {
                let failed = next.run(call).await;
                assert!(failed.is_err() && call.respond(()));
                Ok(())
            }
            Some(3) => Ok(()),
            _ => next.run(call).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn middlewares_run_around_every_handler_in_order() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    publish(&broker, "ada", 1).await;
    publish(&broker, "bob", 2).await;
    let subscription = users()
        .retry(Retry::none())
        .middleware(Recorder(seen.clone(), "outer"))
        .middleware(Reject)
        .middleware(Recorder(seen.clone(), "inner"));
    let target = noting(&seen, |_, _| Err("no").permanent());
    let running = run(&broker, subscription, target);
    until("two dead letters", || dead_letters(&broker).len() == 2).await;
    drop(running.end().await);
    assert_eq!(
        records(&seen),
        [
            "outer before UserCreated of Some(\"ada\")",
            "inner before UserCreated of Some(\"ada\")",
            "ada:1#1",
            "inner after: Some(\"no\")",
            "outer after: Some(\"no\")",
            "outer before UserCreated of Some(\"bob\")",
            "outer after: None",
        ]
    );
    let errors: Vec<_> = dead_letters(&broker).into_iter().map(|(_, l)| l.error).collect();
    assert_eq!(errors, ["no", "not today"]);
}

#[tokio::test(start_paused = true)]
async fn middlewares_can_answer_and_must_not_forget_to() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    for step in 1..=4 {
        publish(&broker, "ada", step).await;
    }
    let target = noting(&seen, |event, _| match event.step {
        4 => Ok(()),
        _ => Err("no").permanent(),
    });
    let running = run(&broker, users().middleware(Replace), target);
    until("the last one", || records(&seen).contains(&"ada:4#1".to_owned())).await;
    let report = running.end().await;
    assert_eq!(records(&seen), ["ada:2#1", "ada:4#1"]);
    assert_eq!(report.subscriptions[0].counts.handled, 3);
    let (_, letter) = dead_letters(&broker).remove(0);
    assert!(letter.error.contains("without running the handler"), "{letter:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mediator_can_be_built_for_each_delivery() {
    struct Note(Records, u32);
    impl EventHandler<UserCreated> for Note {
        async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
            let correlation = scope.get::<CorrelationId>().map(CorrelationId::as_str);
            record(&self.0, format!("{} attempt {} {correlation:?}", event.user_id, self.1));
            match self.1 {
                1 => Err(HandlerError::retryable("once more")),
                _ => Ok(()),
            }
        }
    }
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let body = r#"{"event_name":"UserCreated","payload":{"user_id":"ada","step":1}}"#;
    let mut message = Message::new("users", body);
    message.headers.set_correlation_id("order-7");
    broker.publish(message).await.unwrap();
    publish_raw(&broker, r#"{"event_name":"UserDeleted","payload":{"user_id":"ada"}}"#).await;
    let target = per_delivery({
        let seen = seen.clone();
        move |received: &Received| {
            let handler = Note(seen.clone(), received.attempt());
            EventMediator::builder().event::<UserCreated, _>(handler).build().unwrap()
        }
    });
    let running = run(&broker, users().json::<UserDeleted>(), target);
    until("the dead letter", || dead_letters(&broker).len() == 1).await;
    drop(running.end().await);
    let expected = ["ada attempt 1 Some(\"order-7\")", "ada attempt 2 Some(\"order-7\")"];
    assert_eq!(records(&seen), expected);
    let (_, letter) = dead_letters(&broker).remove(0);
    assert_eq!((letter.reason, &*letter.error_type), (DeadLetterReason::Permanent, "NoHandler"));
}

#[tokio::test(start_paused = true)]
async fn dead_letters_go_where_they_are_sent_or_nowhere() {
    for (to, kept) in
        [(DeadLetterTarget::Named("morgue".into()), 1), (DeadLetterTarget::Discard, 0)]
    {
        let broker = MemoryBroker::new();
        publish_raw(&broker, "garbage").await;
        let seen = Records::default();
        let running = run(&broker, users().dead_letter(to), noting(&seen, |_, _| Ok(())));
        publish(&broker, "ada", 1).await;
        until("the good one", || records(&seen).len() == 1).await;
        let counts = running.end().await.subscriptions[0].counts;
        assert_eq!(broker.messages("morgue").len(), kept);
        assert_eq!((counts.dead_lettered, counts.discarded), (kept as u64, 1 - kept as u64));
        assert!(broker.messages("users.mailer.dead").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn one_type_for_all_names_and_a_limit_on_bodies() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    let odd = r#"{"event_name":"Whatever","payload":{"user_id":"ada","step":1}}"#;
    publish_raw(&broker, odd).await;
    publish(&broker, "a-name-that-makes-the-body-larger-than-it-may-be", 2).await;
    let subscription = Subscription::to_all(["users", "others"])
        .group("mailer")
        .json_of::<UserCreated>()
        .max_body_size(odd.len());
    let running = run(&broker, subscription, noting(&seen, |_, _| Ok(())));
    let other = r#"{"event_name":"X","payload":{"user_id":"eve","step":3}}"#;
    broker.publish(Message::new("others", other)).await.unwrap();
    until("both", || records(&seen).len() == 2).await;
    until("the large one", || dead_letters(&broker).len() == 1).await;
    drop(running.end().await);
    let mut all = records(&seen);
    all.sort();
    assert_eq!(all, ["ada:1#1", "eve:3#1"]);
    assert!(dead_letters(&broker)[0].1.error.starts_with("too large: "));
}

#[tokio::test(start_paused = true)]
async fn too_large_body_reaches_no_decoder() {
    let (broker, seen, calls) = (MemoryBroker::new(), Records::default(), Records::default());
    let decoded = Arc::clone(&calls);
    let subscription = users().max_body_size(1_000).decoder(move |mut message: Incoming| {
        record(&decoded, format!("{:?}", message.offset));
        // The result of a decoder is checked, too.
        message.body = Some(vec![b' '; 1_001].into());
        async move { Ok(Some(message)) }
    });
    let running = run(&broker, subscription, noting(&seen, |_, _| Ok(())));
    broker.publish(Message::new("users", vec![b' '; 1_001])).await.unwrap();
    publish(&broker, "ada", 1).await;
    until("both", || dead_letters(&broker).len() == 2).await;
    drop(running.end().await);
    assert_eq!(records(&calls), ["Some(1)"]);
    for (_, letter) in dead_letters(&broker) {
        assert!(letter.error.starts_with("too large: 1001 bytes"), "{}", letter.error);
    }
    assert!(records(&seen).is_empty());
}

#[tokio::test(start_paused = true)]
async fn start_and_max_unsettled_are_respected() {
    let (broker, seen) = (MemoryBroker::new(), Records::default());
    publish(&broker, "old", 0).await;
    let target = {
        let seen = seen.clone();
        each(move |event: NotificationEvent<UserCreated>, _: Received| {
            record(&seen, event.payload.user_id);
            std::future::pending::<Result<(), HandlerError>>()
        })
    };
    let subscription = users().start_at(StartAt::Latest).concurrency(8).max_unsettled(3);
    let running = run(&broker, subscription, target);
    until("ready", || running.health.is_ready()).await;
    for user in ["a", "b", "c", "d", "e"] {
        publish(&broker, user, 1).await;
    }
    until("three run", || records(&seen).len() == 3).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(records(&seen), ["a", "b", "c"], "no more than may be unsettled");
    assert_eq!(running.health.subscriptions()[0].counts.received, 3);
    assert!(!broker.create_group("users", "mailer", StartAt::Earliest), "it is there");
    running.task.abort();
}

#[tokio::test]
async fn a_subscription_to_its_own_dead_letters_is_refused() {
    let own = users().dead_letter(DeadLetterTarget::Named("users".into()));
    let seen = Records::default();
    let target = noting(&seen, |_, _| Ok(()));
    let error = Service::builder(MemoryBroker::new()).subscribe(own, target).build().unwrap_err();
    assert!(error.to_string().contains("its own dead letters from users"), "{error}");
}
