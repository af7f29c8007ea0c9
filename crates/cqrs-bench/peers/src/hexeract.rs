//! hexeract: its mediator, and its bus on RabbitMQ.

use std::hint::black_box;
use std::sync::Arc;

use hexeract::bus::{BusError, Handler, Message, Transport as _};
use hexeract::bus_rabbitmq::{RabbitMqConnection, RabbitMqTransport, RabbitMqWorkerBuilder};
use hexeract::core::{
    BoxOutput, Command, CommandHandler, HandlerContext, HexeractError, MessageEnvelope, Middleware,
    Next,
};
use hexeract::mediator::MediatorBuilder;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::cpu::Stopwatch;
use crate::event::{Benched, Codec, Template};
use crate::meter::Meter;
use crate::protocol::{Answer, Broker, Request, Target};
use crate::{Answered, publishing, unsupported};

pub(crate) async fn answer(request: Request) -> Answered {
    match request {
        Request::Dispatch { calls, middlewares, fail } => dispatch(calls, middlewares, fail).await,
        Request::Publish { target, messages, tasks, window, body, .. }
            if target.broker == Broker::Amqp =>
        {
            publish(target, messages, tasks, window, body).await
        }
        Request::Consume { target, messages, concurrency, .. }
            if target.broker == Broker::Amqp && concurrency == 1 =>
        {
            consume(target, messages).await
        }
        Request::Consume { target, .. } if target.broker == Broker::Amqp => {
            Ok(unsupported("a worker handles one message after the other"))
        }
        Request::Publish { .. } | Request::Consume { .. } => Ok(unsupported("it has no Kafka")),
        Request::Memory { .. } => Ok(unsupported("it has no broker in memory")),
    }
}

struct Greet {
    name: String,
    fail: bool,
}

impl Command for Greet {
    type Output = String;
}

struct Greeter;

impl CommandHandler<Greet> for Greeter {
    type Error = HexeractError;

    async fn handle(&self, command: Greet, _: &HandlerContext) -> Result<String, HexeractError> {
        if command.fail {
            Err(HexeractError::handler_failed(std::fmt::Error))
        } else {
            Ok(command.name)
        }
    }
}

struct PassOn;

impl Middleware for PassOn {
    async fn execute(
        &self,
        envelope: &MessageEnvelope,
        context: &HandlerContext,
        next: Next,
    ) -> Result<BoxOutput, HexeractError> {
        next.run(envelope, context).await
    }
}

async fn dispatch(calls: usize, middlewares: usize, fail: bool) -> Answered {
    let mut builder = MediatorBuilder::new().register_command_handler::<Greet, _>(Greeter);
    for _ in 0..middlewares {
        builder = builder.with_middleware(PassOn);
    }
    let mediator = builder.build()?;
    let start = Stopwatch::start();
    for _ in 0..calls {
        let name = black_box("somebody@example.org").to_owned();
        black_box(mediator.send(Greet { name, fail: black_box(fail) }).await.is_ok());
    }
    let elapsed = start.elapsed();
    let value = elapsed.wall.as_nanos() as f64 / calls as f64;
    Ok(Answer::Measured { value, cpu_us: elapsed.cpu_us(calls), cores: elapsed.cores() })
}

/// The event in the form that all sides share.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Event(cqrs_core::NotificationEvent<Benched>);

impl Message for Event {
    const MESSAGE_TYPE: &'static str = <Benched as cqrs_core::Event>::NAME;
}

async fn publish(
    target: Target,
    messages: usize,
    tasks: usize,
    window: usize,
    body: usize,
) -> Answered {
    let transport = Arc::new(RabbitMqTransport::new(&target.address).await?);
    let (template, queue) = (Template::new(Codec::Json, body), Arc::<str>::from(target.name));
    publishing::publish(messages, tasks, window, move |number| {
        let (transport, queue) = (Arc::clone(&transport), Arc::clone(&queue));
        let event = Event(template.event(number));
        async move { transport.publish(&queue, &event).await.map(|_| ()) }
    })
    .await
}

struct Count(Meter);

impl Handler<Event> for Count {
    type Error = BusError;

    async fn handle(&self, event: Event, _: &HandlerContext) -> Result<(), BusError> {
        self.0.count(&event.0.payload);
        Ok(())
    }
}

async fn consume(target: Target, messages: usize) -> Answered {
    if messages == 0 {
        return Ok(Answer::Measured { value: 0.0, cpu_us: 0.0, cores: None });
    }
    let meter = Meter::new(messages);
    let worker = RabbitMqWorkerBuilder::new(RabbitMqConnection::connect(&target.address).await?)
        .queue(target.name)
        .prefetch(256)
        .register_handler::<Event, _>(Count(meter.clone()))
        .build()?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    let answer = meter.answer().await;
    stop.cancel();
    running.await??;
    answer
}
