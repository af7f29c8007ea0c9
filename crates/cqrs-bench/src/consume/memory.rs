//! Consuming from the memory broker, against its bare subscriber with the same decoding: what the runtime costs.

use std::sync::Arc;

use cqrs_core::{MemoryBroker, Subscription};

use super::{Meter, decoding, filled, ours};
use crate::event::Template;
use crate::measure::{Round, Side, Unit};
use crate::peers::Request;
use crate::raw::memory;
use crate::settings::Settings;

pub(crate) async fn run(settings: &Settings) {
    let topic: Arc<str> = "bench".into();
    for case in settings.event_cases(100_000) {
        let (template, messages) = (&case.template, case.messages);
        for &concurrency in &settings.concurrency {
            let request = Request::Memory {
                messages,
                concurrency,
                codec: template.codec(),
                body: template.size(),
            };
            let subscription = || {
                let to = Subscription::to("bench").group("bench");
                decoding(template, to.concurrency(concurrency).max_unsettled(1_000))
            };
            let mut sides = vec![
                Side::new("raw", || async {
                    let broker = filled(&topic, messages, template).await;
                    raw(&broker, messages, template.clone()).await
                }),
                Side::new("ours", || async {
                    let broker = filled(&topic, messages, template).await;
                    ours(broker, subscription(), messages).await
                }),
            ];
            sides.extend(settings.peer_sides(&request));
            let what = format!("{template}, concurrency {concurrency}");
            settings.comparison("memory", what, Unit::MessagesPerSecond).run(sides).await;
        }
    }
}

async fn raw(broker: &MemoryBroker, count: usize, template: Template) -> Round {
    let subscriber = broker.subscriber("bench", "bench");
    let meter = Meter::new(count);
    // In a task, as ours is: the main task of a runtime is woken in another way.
    let counting = meter.clone();
    let task =
        tokio::spawn(memory::consume(subscriber, template, move |event| counting.count(&event)));
    task.await.expect("the loop");
    meter.round()
}
