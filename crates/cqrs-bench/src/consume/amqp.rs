//! Consuming from RabbitMQ, against raw lapin with the same prefetch, decoding and one ack for each.

use std::sync::Arc;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs_core::{Service, Subscription};

use super::{Meter, decoding, fill, ours};
use crate::event::Benched;
use crate::measure::{Round, Side, Unit};
use crate::peers::{Request, Target};
use crate::raw::amqp::{self, EXCHANGE, PREFETCH};
use crate::raw::kafka::unique;
use crate::settings::{Case, Settings};

const GROUP: &str = "bench";

pub(crate) async fn run(settings: &Settings) {
    for case in settings.event_cases(20_000) {
        let topic: Arc<str> = format!("bench-consume-{}", unique()).into();
        consume(settings, &case, &topic).await;
        amqp::delete_queues(&settings.dsn, &[&queue(&topic)]).await;
    }
}

fn queue(topic: &str) -> String {
    format!("{topic}.{GROUP}")
}

async fn consume(settings: &Settings, case: &Case, topic: &Arc<str>) {
    let mut config = AmqpConfig::new(settings.dsn.as_str());
    config.exchange.name = EXCHANGE.to_owned();
    let broker = AmqpMessageBroker::connect(config).await.expect("RabbitMQ");
    let subscription = || Subscription::to(&**topic).group(GROUP).max_unsettled(PREFETCH.into());
    declare(&broker, subscription()).await;
    let (template, messages) = (&case.template, case.messages);
    let connection = amqp::connect(&settings.dsn).await;
    for &concurrency in &settings.concurrency {
        let request = Request::Consume {
            target: Target::amqp(&settings.dsn, &queue(topic)),
            messages,
            concurrency,
            codec: template.codec(),
        };
        let filled = async || {
            amqp::purge(&connection, &queue(topic)).await;
            fill(&broker, topic, messages, template).await;
        };
        let mut sides = vec![
            Side::new("raw", || async {
                filled().await;
                raw(&connection, &queue(topic), case).await
            }),
            Side::new("ours", || async {
                filled().await;
                let to = subscription().concurrency(concurrency);
                ours(broker.clone(), decoding(template, to), messages).await
            }),
        ];
        for peer in &settings.peers {
            let (request, filled) = (&request, &filled);
            sides.push(Side::optional(peer.name(), move || async move {
                if !peer.has(request).await {
                    return None;
                }
                filled().await;
                peer.ask(request).await
            }));
        }
        let what = format!("{template}, concurrency {concurrency}");
        settings.comparison("consume-amqp", what, Unit::MessagesPerSecond).run(sides).await;
    }
}

/// Opens the subscription once, so that there is a queue to publish to.
pub(crate) async fn declare(broker: &AmqpMessageBroker, subscription: Subscription) {
    let target = cqrs_core::each(|_: cqrs_core::NotificationEvent<Benched>, _| async {
        Err(cqrs_core::HandlerError::retryable("nothing is there yet"))
    });
    let service = Service::builder(broker.clone())
        .subscribe(subscription.json::<Benched>(), target)
        .build()
        .expect("a service");
    let health = service.health();
    let ready = async {
        while !health.is_ready() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let _report = service.run_until(ready).await.expect("it ends well");
}

async fn raw(connection: &lapin::Connection, queue: &str, case: &Case) -> Round {
    let channel = connection.create_channel().await.expect("a channel");
    let meter = Meter::new(case.messages);
    let counting = meter.clone();
    let count = move |event: Benched| counting.count(&event);
    let consuming = amqp::consume(channel, queue.to_owned(), case.template.clone(), count);
    // In a task, as ours is: the main task of a runtime is woken in another way.
    tokio::spawn(consuming).await.expect("the loop");
    meter.round()
}
