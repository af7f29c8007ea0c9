//! ruststream on RabbitMQ.

use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::Arc;

use ruststream::{OutgoingMessage, Publisher as _};
use ruststream_lapin::prelude::*;

use super::{Count, Load};
use crate::event::{Codec, Template};
use crate::meter::Meter;
use crate::protocol::Target;
use crate::{Answered, publishing};

pub(super) async fn publish(target: Target, load: Load) -> Answered {
    let connected = LapinBroker::new(target.address).connect().await?;
    let policy = Publish::default().exchange("bench").persistent(true).confirms();
    let publisher = Arc::new(connected.publisher(policy));
    let (template, key) = (Template::new(Codec::Json, load.body), Arc::<str>::from(target.name));
    publishing::publish(load.messages, load.tasks, load.window, move |number| {
        let (publisher, key) = (Arc::clone(&publisher), Arc::clone(&key));
        let body = template.raw(number).body;
        async move { publisher.publish(OutgoingMessage::new(&key, &body[..]), None).await }
    })
    .await
}

pub(super) async fn consume(target: Target, messages: usize, concurrency: usize) -> Answered {
    let meter = Meter::new(messages);
    let workers = NonZeroUsize::new(concurrency).ok_or("a concurrency of zero")?;
    let prefetch = NonZeroU16::new(256).ok_or("a prefetch of zero")?;
    let broker = LapinBroker::new(target.address).prefetch(prefetch);
    let queue = RabbitQuorumQueue::new(target.name);
    let app = RustStream::new(AppInfo::new("bench", "0.0.0")).with_broker(broker, |scope| {
        let count = subscriber(queue, Count(meter.clone()));
        if concurrency == 1 {
            scope.include(count.build());
        } else {
            // Without an order: our messages name their key in another header than its lanes read.
            scope.include(count.workers(workers).build());
        }
    });
    let running = app.start().await?;
    let answer = meter.answer().await;
    running.shutdown().await?;
    answer
}
