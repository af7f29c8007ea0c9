use cqrs::{
    DevnullMessageBroker, DomainEvent, EventHandler, EventMediator, HandlerError, Mediator, MemoryBroker,
    Notification, NotificationEvent, Received, Scope, Service, Subscription,
};

#[derive(DomainEvent)]
struct Counted;

#[derive(serde::Serialize, serde::Deserialize, Notification)]
struct UserCreated;

struct OfCounted;

impl EventHandler<Counted> for OfCounted {
    async fn handle(&self, _: &Counted, _: &mut Scope) -> Result<(), HandlerError> {
        Ok(())
    }
}

struct Nothing;

fn main() {
    let _ = Mediator::builder().middleware(Nothing);
    let _ = Mediator::builder().broker(Nothing);
    let _ = Mediator::builder().unit_of_work(Nothing);
    let _ = Service::builder(DevnullMessageBroker::new());
    let _ = EventMediator::builder().event::<UserCreated, _>(OfCounted);
    let users = Subscription::to("users").json::<UserCreated>();
    let _ = Service::builder(MemoryBroker::new())
        .subscribe(users, |_: NotificationEvent<UserCreated>, _: Received| async { Ok(()) });
}
