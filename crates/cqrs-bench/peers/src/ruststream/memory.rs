//! Consuming from ruststream's broker in memory.

use std::num::NonZeroUsize;

use ruststream::OutgoingMessage;
use ruststream::memory::prelude::*;
use ruststream::memory::{MemoryError, MemoryPublisher};

use super::Count;
use crate::Answered;
use crate::event::{Codec, Template};
use crate::meter::Meter;
use crate::protocol::Answer;

/// A concurrency of zero only publishes.
pub(super) async fn consume(messages: usize, concurrency: usize, body: usize) -> Answered {
    let meter = Meter::new(messages);
    let broker = MemoryBroker::new();
    let publisher = broker.publisher();
    let template = Template::new(Codec::Json, body);
    let Some(workers) = NonZeroUsize::new(concurrency) else {
        fill(&broker.publisher(), messages, &template).await?;
        return Ok(Answer::Measured { value: 0.0, cpu_us: 0.0, cores: None });
    };
    let app = RustStream::new(AppInfo::new("bench", "0.0.0")).with_broker(broker, |scope| {
        let count = subscriber("bench", Count(meter.clone()));
        if concurrency == 1 {
            scope.include(count.build());
        } else {
            scope.include(count.workers_by_key(workers).build());
        }
    });
    let running = app.start().await?;
    fill(&publisher, messages, &template).await?;
    let answer = meter.answer().await;
    running.shutdown().await?;
    answer
}

async fn fill(
    publisher: &MemoryPublisher,
    messages: usize,
    template: &Template,
) -> Result<(), MemoryError> {
    for number in 0..messages {
        let body = template.raw(number).body;
        publisher.publish(OutgoingMessage::new("bench", &body[..]), None).await?;
    }
    Ok(())
}
