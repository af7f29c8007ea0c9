//! Consuming from RabbitMQ, against raw lapin with the same prefetch, decoding and one ack for each.

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs_core::{Service, Subscription};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

use crate::consume::{Benched, Codec, Meter, fill, ours};
use crate::measure::{Unit, compare};

const PREFETCH: u16 = 256;

pub(crate) async fn run(dsn: &str, count: usize, rounds: usize, codec: Codec) {
    let topic = format!("bench-consume-{}", std::process::id());
    let mut config = AmqpConfig::new(dsn);
    config.exchange.name = "bench".to_owned();
    let broker = AmqpMessageBroker::connect(config).await.expect("rabbitmq");
    let subscription =
        || Subscription::to(topic.as_str()).group("bench").max_unsettled(PREFETCH.into());
    declare(&broker, subscription()).await;

    let queue = format!("{topic}.bench");
    let connection =
        Connection::connect(dsn, ConnectionProperties::default()).await.expect("a raw connection");
    for concurrency in [1, 16] {
        let scenario =
            format!("consume-amqp: {codec:?}, concurrency {concurrency}, against one ack each");
        let baseline = async || {
            fill(&broker, &topic, count, codec).await;
            raw(&connection, &queue, count, codec).await
        };
        let ours = async || {
            fill(&broker, &topic, count, codec).await;
            let subscription = subscription().concurrency(concurrency);
            ours(broker.clone(), codec.subscribe(subscription), count).await
        };
        compare(scenario, Unit::MessagesPerSecond, rounds, ours, baseline).await;
    }
    let channel = connection.create_channel().await.expect("a channel");
    for name in [queue.clone(), format!("{queue}.dead")] {
        let options = QueueDeleteOptions::default();
        channel.queue_delete(name.as_str().into(), options).await.expect("deleted");
    }
}

/// Opens the subscription once, so that there is a queue to publish to.
async fn declare(broker: &AmqpMessageBroker, subscription: Subscription) {
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

async fn raw(connection: &Connection, queue: &str, count: usize, codec: Codec) -> f64 {
    let channel = connection.create_channel().await.expect("a channel");
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("a prefetch");
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume(queue.into(), "".into(), options, FieldTable::default())
        .await
        .expect("a consumer");
    let meter = Meter::new(count);
    let counting = meter.clone();
    // In a spawned task, as the framework's consumer is: tokio schedules the main task differently.
    let task = tokio::spawn(async move {
        let tag = consumer.tag();
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.expect("a delivery");
            let last = counting.count(&codec.decode(&delivery.data));
            delivery.acker.ack(BasicAckOptions::default()).await.expect("acked");
            if last {
                break;
            }
        }
        tag
    });
    let tag = task.await.expect("the loop");
    // Before the close: otherwise the server drops acks that it has not processed.
    channel.basic_cancel(tag, BasicCancelOptions::default()).await.expect("cancelled");
    channel.close(200, "done".into()).await.expect("closed");
    meter.rate()
}
