//! ruststream on Kafka.

use std::num::NonZeroUsize;
use std::sync::Arc;

use ruststream::{HeaderMap, OutgoingMessage, Publisher as _};
use ruststream_rdkafka::PARTITION_KEY_HEADER;
use ruststream_rdkafka::prelude::*;

use super::{Count, Load};
use crate::event::{Codec, Template};
use crate::meter::Meter;
use crate::protocol::Target;
use crate::{Answered, publishing};

pub(super) async fn publish(target: Target, load: Load) -> Answered {
    let broker = KafkaBroker::new([target.address])
        .producer_config("acks", "all")
        .producer_config("enable.idempotence", "true")
        .producer_config("partitioner", "murmur2_random")
        .producer_config("linger.ms", "5")
        .producer_config("batch.size", "1000000");
    let connected = broker.connect().await?;
    let publisher = Arc::new(connected.publisher(Publish::default()));
    let (template, topic) = (Template::new(Codec::Json, load.body), Arc::<str>::from(target.name));
    publishing::publish(load.messages, load.tasks, load.window, move |number| {
        let (publisher, topic) = (Arc::clone(&publisher), Arc::clone(&topic));
        let body = template.raw(number).body;
        let mut headers = HeaderMap::new();
        headers.insert(PARTITION_KEY_HEADER, Template::key(number));
        async move {
            let message = OutgoingMessage::new(&topic, &body[..]).with_headers(headers);
            publisher.publish(message, None).await
        }
    })
    .await
}

pub(super) async fn consume(target: Target, messages: usize, concurrency: usize) -> Answered {
    let meter = Meter::new(messages);
    let workers = NonZeroUsize::new(concurrency).ok_or("a concurrency of zero")?;
    let topic = KafkaTopic::new(target.name)
        .group(uuid::Uuid::now_v7().to_string())
        .start(StartOffset::Earliest)
        .commit(Commit::Tracked)
        .config("fetch.queue.backoff.ms", "10");
    let app = RustStream::new(AppInfo::new("bench", "0.0.0")).with_broker(
        KafkaBroker::new([target.address]),
        |scope| {
            let count = subscriber(topic, Count(meter.clone()));
            if concurrency == 1 {
                scope.include(count.build());
            } else {
                scope.include(count.workers_by_key(workers).build());
            }
        },
    );
    let running = app.start().await?;
    let answer = meter.answer().await;
    running.shutdown().await?;
    answer
}
