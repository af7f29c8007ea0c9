//! `roundtrip`: the latency from the time at which a message was due to its handler, at a fixed rate.
//!
//! A publish that waits does not move the times of those after it, so a pause counts for each message that
//! was due meanwhile (no coordinated omission).

mod recorder;
mod way;

use std::sync::Arc;

use cqrs_amqp::AmqpMessageBroker;
use cqrs_core::{MemoryBroker, Subscription};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};

pub(crate) use self::recorder::{METRICS, Pace, Recorder};
pub(crate) use self::way::Way;
use crate::consume::declare;
use crate::event::{Benched, Template};
use crate::measure::Side;
use crate::publish::{Ours, Publisher};
use crate::raw::amqp::{self, PREFETCH, RawChannels, delete_queues};
use crate::raw::kafka::{self, RawProducer, Reads, Topic, unique};
use crate::raw::memory;
use crate::settings::{Case, Settings};
use crate::slow_handler::On;

#[derive(Debug, clap::Args)]
pub(crate) struct Roundtrip {
    /// Messages a second, a list.
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    rate: Vec<usize>,
    /// Brokers, a list.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kafka,amqp")]
    broker: Vec<On>,
}

/// Seconds of a round, unless `--messages` says otherwise.
const SECONDS: usize = 5;

/// One comparison on one broker.
struct Measure<'s> {
    settings: &'s Settings,
    case: Case,
    rate: usize,
    concurrency: usize,
}

pub(crate) async fn run(args: &Roundtrip, settings: &Settings) {
    for &rate in &args.rate {
        for case in settings.event_cases(rate * SECONDS) {
            for &concurrency in &settings.concurrency {
                let case = case.clone();
                let measure = Measure { settings, case, rate, concurrency };
                for &on in &args.broker {
                    match on {
                        On::Memory => measure.memory().await,
                        On::Kafka => measure.kafka().await,
                        On::Amqp => measure.amqp().await,
                    }
                }
            }
        }
    }
}

impl Measure<'_> {
    fn template(&self) -> Template {
        self.case.template.clone()
    }

    async fn compare(&self, on: &str, raw: Way<impl Publisher>, ours: Way<Ours>) {
        let pace = Pace { rate: self.rate, messages: self.case.messages };
        let case = format!("{on}, {}/s, concurrency {}", self.rate, self.concurrency);
        let comparison = self.settings.comparison_of("roundtrip", case, METRICS.to_vec());
        let sides =
            vec![Side::new("raw", || raw.round(pace)), Side::new("ours", || ours.round(pace))];
        comparison.run(sides).await;
        raw.end().await;
        ours.end().await;
    }

    async fn memory(&self) {
        let topic: Arc<str> = "bench".into();
        let broker = || MemoryBroker::builder().capacity(self.case.messages * 2).build();
        let publisher = |broker: &MemoryBroker| Ours {
            broker: Arc::new(broker.clone()),
            topic: Arc::clone(&topic),
            template: self.template(),
        };
        let bare = broker();
        let subscriber = bare.subscriber("bench", "bench");
        let raw = Way::raw(publisher(&bare), |recorder| {
            memory::consume(subscriber, self.template(), forever(recorder))
        });
        let raw = raw.await;
        let broker = broker();
        let subscription = Subscription::to("bench").group("bench");
        let subscription = subscription.concurrency(self.concurrency).max_unsettled(1_000);
        let ours = Way::ours(publisher(&broker), broker.clone(), subscription).await;
        self.compare(&format!("memory, {}", self.case.template), raw, ours).await;
    }

    async fn kafka(&self) {
        let servers = &self.settings.servers;
        let topic = Topic::create(servers, "roundtrip-raw", self.case.partitions).await;
        let other = Topic::create(servers, "roundtrip-ours", self.case.partitions).await;
        let (of_raw, of_ours) = (topic.name(), other.name());
        let measure = async {
            let producer = RawProducer::new(servers, Arc::clone(&of_raw), self.template());
            let consumer = kafka::consumer(servers, &of_raw);
            let raw = Way::raw(producer, |recorder| {
                kafka::consume(consumer, self.template(), Reads::Event, forever(recorder))
            });
            let raw = raw.await;
            let config = KafkaConfig::new([servers]);
            let broker = KafkaMessageBroker::connect(config).await.expect("Kafka");
            let subscription =
                Subscription::to(&*of_ours).group("bench").concurrency(self.concurrency);
            let publisher = Ours {
                broker: Arc::new(broker.clone()),
                topic: Arc::clone(&of_ours),
                template: self.template(),
            };
            let ours = Way::ours(publisher, broker, subscription).await;
            self.compare(&format!("Kafka, {}", self.case.on_kafka()), raw, ours).await;
        };
        topic.deleted_after(other.deleted_after(measure)).await;
    }

    async fn amqp(&self) {
        let dsn = &self.settings.dsn;
        let topics: [Arc<str>; 2] =
            [(); 2].map(|()| format!("bench-roundtrip-{}", unique()).into());
        let queues = topics.each_ref().map(|topic| format!("{topic}.bench"));
        let mut config = cqrs_amqp::AmqpConfig::new(dsn.as_str());
        config.exchange.name = amqp::EXCHANGE.to_owned();
        let channels = config.channels_per_connection;
        let broker = AmqpMessageBroker::connect(config).await.expect("RabbitMQ");
        let subscription = |topic: &str| {
            let to = Subscription::to(topic).group("bench").concurrency(self.concurrency);
            to.max_unsettled(PREFETCH.into())
        };
        for topic in &topics {
            declare(&broker, subscription(topic)).await;
        }
        let connection = amqp::connect(dsn).await;
        let channel = connection.create_channel().await.expect("a channel");
        let publisher =
            RawChannels::open(dsn, channels, Arc::clone(&topics[0]), self.template()).await;
        let raw = Way::raw(publisher, |recorder| {
            amqp::consume(channel, queues[0].clone(), self.template(), forever(recorder))
        });
        let raw = raw.await;
        let publisher = Ours {
            broker: Arc::new(broker.clone()),
            topic: Arc::clone(&topics[1]),
            template: self.template(),
        };
        let ours = Way::ours(publisher, broker, subscription(&topics[1])).await;
        self.compare(&format!("RabbitMQ, {}", self.case.template), raw, ours).await;
        connection.close(200, "done".into()).await.expect("a closed connection");
        delete_queues(dsn, &queues.each_ref().map(String::as_str)).await;
    }
}

/// The handler of a raw consumer that does not end.
fn forever(recorder: Recorder) -> impl FnMut(Benched) -> bool + Send {
    move |event| {
        recorder.handled(&event);
        false
    }
}
