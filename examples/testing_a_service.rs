//! Testing a service without a server: its own wiring, typed events in and out, time that passes at once.
//!
//! `cargo run --example testing_a_service`

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cqrs::prelude::*;
use cqrs_testkit::ServiceTester;
use serde::{Deserialize, Serialize};

// ---- the application

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "email")]
struct UserCreated {
    email: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(name = "WelcomeSent", topic = "mails")]
struct WelcomeSent {
    to: String,
}

struct SendWelcomeMail;

impl EventHandler<UserCreated> for SendWelcomeMail {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        let attempt = scope.get::<Received>().map_or(0, Received::attempt);
        match event.email.as_str() {
            "nowhere" => return Err("an address has an @").permanent(),
            "busy@example.org" if attempt < 7 => {
                return Err(HandlerError::retryable("the server is busy"));
            }
            _ => {}
        }
        scope.emit(WelcomeSent { to: event.email.clone() });
        Ok(())
    }
}

/// `main` calls it with Kafka or RabbitMQ, the test with the tester's broker.
fn mailer(broker: Arc<dyn Subscribe>) -> Result<Service, Box<dyn Error>> {
    let events = EventMediator::builder()
        .event::<UserCreated, _>(SendWelcomeMail)
        .broker(Arc::clone(&broker))
        .build()?;
    let users = Subscription::to("user_events").group("mailer").json::<UserCreated>();
    Ok(Service::builder(broker).subscribe(users, events).build()?)
}

fn user(email: &str) -> UserCreated {
    UserCreated { email: email.to_owned() }
}

// ---- its test: in a project of yours `#[tokio::test(start_paused = true)]`

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    let started = tokio::time::Instant::now();
    let tester = ServiceTester::new();
    let running = tester.start(mailer(Arc::new(tester.broker()))?).await;

    tester.publish(user("ada@example.org")).await?;
    assert_eq!(tester.handled::<UserCreated>(1).await?, [user("ada@example.org")]);
    assert_eq!(tester.published::<WelcomeSent>(), [WelcomeSent { to: "ada@example.org".into() }]);
    println!("handled: a user in, a mail out");

    tester.publish(user("nowhere")).await?;
    let dead = tester.dead_letters(1).await?;
    assert_eq!(dead[0].event::<UserCreated>()?, user("nowhere"));
    println!("dead-lettered: {} ({})", dead[0].letter.error, dead[0].letter.reason);

    tester.publish(user("busy@example.org")).await?;
    tester.handled::<UserCreated>(2).await?;
    let delays: Vec<Duration> =
        tester.retried::<UserCreated>(3).await?.iter().map(|retried| retried.delay).collect();
    println!(
        "retried after {delays:?}, in no time: {} s on the clock",
        started.elapsed().as_secs()
    );

    tester.faults().fail_acks(1);
    tester.publish(user("eve@example.org")).await?;
    tester.handled::<UserCreated>(3).await?;
    let mails = tester.published::<WelcomeSent>();
    println!(
        "with a lost ack: {} mails to eve",
        mails.iter().filter(|m| m.to.starts_with("eve")).count()
    );

    let missing = tester.timeout(Duration::from_millis(100)).handled::<WelcomeSent>(1).await;
    println!("what does not happen: {}", missing.expect_err("nobody takes them"));

    let report = running.stop().await?;
    println!("stopped: {} handled", report.subscriptions[0].counts.handled);
    Ok(())
}
