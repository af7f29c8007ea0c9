//! The events, their handlers and the wiring.

use std::error::Error;
use std::sync::Arc;

use cqrs::prelude::*;
use serde::{Deserialize, Serialize};

/// Another service publishes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(name = "UserCreated", topic = "user_events", key = "user_id")]
pub(crate) struct UserCreated {
    pub(crate) user_id: u64,
    pub(crate) email: String,
}

/// Published for each new user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Notification)]
#[cqrs(name = "WelcomeSent", topic = "mails", key = "user_id")]
pub(crate) struct WelcomeSent {
    pub(crate) user_id: u64,
}

pub(crate) struct SendWelcomeMail;

impl EventHandler<UserCreated> for SendWelcomeMail {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        if !event.email.contains('@') {
            return Err("an e-mail address has an @").permanent(); // becomes a dead letter
        }
        tracing::info!(user_id = event.user_id, "welcome");
        scope.emit(WelcomeSent { user_id: event.user_id }); // published before the ack
        Ok(())
    }
}

/// The service, on any broker.
pub(crate) fn service(broker: Arc<dyn Subscribe>) -> Result<Service, Box<dyn Error>> {
    let events = EventMediator::builder()
        .event::<UserCreated, _>(SendWelcomeMail)
        .broker(broker.clone())
        .build()?;
    let users = Subscription::to("user_events")
        .group("mailer")
        .json::<UserCreated>()
        .concurrency(16) // in parallel, in order per user
        .retry(Retry::default());
    Ok(Service::builder(broker).subscribe(users, events).build()?)
}

#[cfg(test)]
mod tests {
    use cqrs_testkit::ServiceTester;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_new_user_gets_a_welcome() -> Result<(), Box<dyn Error>> {
        let tester = ServiceTester::new();
        let running = tester.start(service(Arc::new(tester.broker()))?).await;
        tester.publish(UserCreated { user_id: 1, email: "ada@example.org".into() }).await?;
        tester.handled::<UserCreated>(1).await?;
        assert_eq!(tester.published::<WelcomeSent>(), [WelcomeSent { user_id: 1 }]);
        running.stop().await?;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn user_without_an_address_is_a_dead_letter() -> Result<(), Box<dyn Error>> {
        let tester = ServiceTester::new();
        let running = tester.start(service(Arc::new(tester.broker()))?).await;
        let user = UserCreated { user_id: 2, email: "nowhere".into() };
        tester.publish(user.clone()).await?;
        assert_eq!(tester.dead_letters(1).await?[0].event::<UserCreated>()?, user);
        running.stop().await?;
        Ok(())
    }
}
