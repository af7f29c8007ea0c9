//! `slow-handler`: a handler that waits, in as many lanes as `--lanes` says, against one message after the other.

use std::sync::Arc;
use std::time::Duration;

use cqrs_amqp::{AmqpConfig, AmqpMessageBroker};
use cqrs_core::{Subscribe, Subscription};
use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};

use crate::consume::{declare, decoding, fill, filled, with_work};
use crate::measure::{Round, Side, Unit};
use crate::raw::amqp::{EXCHANGE, delete_queues};
use crate::raw::kafka::{Topic, unique};
use crate::settings::{Case, Settings};

#[derive(Debug, clap::Args)]
pub(crate) struct SlowHandler {
    /// Milliseconds that the handler waits.
    #[arg(long, default_value_t = 10)]
    millis: u64,
    /// Handlers at once.
    #[arg(long, default_value_t = 64)]
    lanes: usize,
    /// Brokers, a list.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "memory")]
    broker: Vec<On>,
}

/// A broker that messages go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum On {
    /// The broker in memory.
    Memory,
    /// Kafka.
    Kafka,
    /// RabbitMQ.
    Amqp,
}

/// One comparison on one broker.
struct Slow<'s> {
    args: &'s SlowHandler,
    case: &'s Case,
    topic: Arc<str>,
    settings: &'s Settings,
}

pub(crate) async fn run(args: &SlowHandler, settings: &Settings) {
    for case in settings.event_cases(6_400) {
        for &on in &args.broker {
            let slow = |topic| Slow { args, case: &case, topic, settings };
            match on {
                On::Memory => slow("bench".into()).memory().await,
                On::Kafka => slow("bench".into()).kafka(&settings.servers).await,
                On::Amqp => {
                    let topic: Arc<str> = format!("bench-slow-{}", unique()).into();
                    slow(Arc::clone(&topic)).amqp(&settings.dsn).await;
                    delete_queues(&settings.dsn, &[&format!("{topic}.bench")]).await;
                }
            }
        }
    }
}

impl Slow<'_> {
    /// Messages of a round: one lane gets fewer, as it takes the longer for each.
    fn messages(&self, lanes: usize) -> usize {
        (self.case.messages * lanes / self.args.lanes).clamp(20, self.case.messages)
    }

    async fn consume(
        &self,
        broker: impl Subscribe,
        subscription: Subscription,
        lanes: usize,
    ) -> Round {
        let subscription = decoding(&self.case.template, subscription.concurrency(lanes));
        let work = Duration::from_millis(self.args.millis);
        with_work(broker, subscription, self.messages(lanes), work).await
    }

    async fn compare(&self, broker: &str, round: impl AsyncFn(usize) -> Round) {
        let (lanes, round) = (self.args.lanes, &round);
        let sides = vec![
            Side::new("one after the other", move || round(1)),
            Side::new(format!("{lanes} lanes"), move || round(lanes)),
        ];
        let what = format!("{broker}, {} ms, {}", self.args.millis, self.case.template);
        let unit = Unit::MessagesPerSecond;
        self.settings.comparison("slow-handler", what, unit).run(sides).await;
    }

    async fn memory(&self) {
        self.compare("memory", async |lanes| {
            let broker = filled(&self.topic, self.messages(lanes), &self.case.template).await;
            self.consume(broker, Subscription::to(&*self.topic).group("bench"), lanes).await
        })
        .await;
    }

    /// Each round has a topic of its own, with no more messages than it handles.
    async fn kafka(&self, servers: &str) {
        let config = KafkaConfig::new([servers]);
        let broker = KafkaMessageBroker::connect(config).await.expect("Kafka");
        self.compare("Kafka", async |lanes| {
            let topic = Topic::create(servers, "slow", self.case.partitions).await;
            let name = topic.name();
            fill(&broker, &name, self.messages(lanes), &self.case.template).await;
            let subscription = Subscription::to(&*name).group("bench");
            let round = self.consume(broker.clone(), subscription, lanes).await;
            topic.deleted_after(async {}).await;
            round
        })
        .await;
    }

    async fn amqp(&self, dsn: &str) {
        let mut config = AmqpConfig::new(dsn);
        config.exchange.name = EXCHANGE.to_owned();
        let broker = AmqpMessageBroker::connect(config).await.expect("RabbitMQ");
        let subscription = || Subscription::to(&*self.topic).group("bench");
        declare(&broker, subscription()).await;
        self.compare("RabbitMQ", async |lanes| {
            fill(&broker, &self.topic, self.messages(lanes), &self.case.template).await;
            self.consume(broker.clone(), subscription(), lanes).await
        })
        .await;
    }
}
