//! ruststream: its broker in memory, and its crates for Kafka and RabbitMQ.

mod amqp;
mod kafka;
mod memory;

use cqrs_core::NotificationEvent;
use ruststream::runtime::{Context, Handle, HandlerOutcome};

use crate::event::Benched;
use crate::meter::Meter;
use crate::protocol::{Answer, Broker, Request};
use crate::{Answered, unsupported};

pub(crate) async fn answer(request: Request) -> Answered {
    match request {
        Request::Dispatch { .. } => Ok(unsupported("it has no mediator")),
        Request::Publish { target, messages, tasks, window, body, .. } => {
            let load = Load { messages, tasks, window, body };
            match target.broker {
                Broker::Kafka => kafka::publish(target, load).await,
                Broker::Amqp => amqp::publish(target, load).await,
            }
        }
        Request::Consume { messages: 0, .. } => {
            Ok(Answer::Measured { value: 0.0, cpu_us: 0.0, cores: None })
        }
        Request::Consume { target, messages, concurrency, .. } => match target.broker {
            Broker::Kafka => kafka::consume(target, messages, concurrency).await,
            Broker::Amqp => amqp::consume(target, messages, concurrency).await,
        },
        Request::Memory { messages, concurrency, body, .. } => {
            memory::consume(messages, concurrency, body).await
        }
    }
}

struct Load {
    messages: usize,
    tasks: usize,
    window: usize,
    body: usize,
}

/// The handler of all brokers.
struct Count(Meter);

impl Handle<NotificationEvent<Benched>> for Count {
    fn handle(
        &self,
        event: &NotificationEvent<Benched>,
        _: &(),
        _: &mut Context<'_>,
    ) -> impl Future<Output = Result<(), HandlerOutcome>> {
        self.0.count(&event.payload);
        std::future::ready(Ok(()))
    }
}
