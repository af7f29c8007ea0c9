//! Benchmarks side by side with the raw clients and with bare dispatch, in one process and one run.
//!
//! `cargo run --release -p cqrs-bench -- dispatch | publish-kafka | publish-amqp |
//! consume-memory | consume-kafka | consume-amqp | outbox-relay`
//!
//! Each measure prints one JSON line with `scenario`, `ours`, `baseline` and `ratio` (ours / baseline);
//! `outbox-relay` prints tables.

#![allow(clippy::async_yields_async)] // the outer future enqueues, the inner one is the confirm

mod amqp;
mod consume;
mod consume_amqp;
mod consume_kafka;
mod consume_memory;
mod dispatch;
mod kafka;
mod load;
mod measure;
mod outbox;

use clap::{Parser, Subcommand};

use crate::consume::Codec;
use crate::load::Format;
use crate::outbox::OutboxRelay;

#[derive(Parser)]
#[command(about = "Benchmarks of the cqrs framework, side by side with the raw clients")]
struct Args {
    #[command(subcommand)]
    scenario: Scenario,
    /// Rounds of each side, interleaved; medians are printed. 9 by default; outbox-relay: 5, growth 3,
    /// held-snapshot 1.
    #[arg(long, global = true)]
    rounds: Option<usize>,
    /// Kafka's brokers.
    #[arg(long, env = "CQRS_TEST_KAFKA", default_value = "localhost:9092", global = true)]
    servers: String,
    /// The RabbitMQ server.
    #[arg(
        long,
        env = "CQRS_TEST_AMQP",
        default_value = "amqp://guest:guest@localhost:5672/%2f",
        global = true
    )]
    dsn: String,
}

#[derive(Subcommand)]
enum Scenario {
    /// `Mediator::send` against a bare `dyn` call that returns a boxed future.
    Dispatch,
    /// Publishing to Kafka against a raw `FutureProducer`, from one task and from 64.
    PublishKafka {
        /// Messages of one round and side.
        #[arg(long, default_value_t = 100_000)]
        messages: usize,
        /// What the bodies are.
        #[arg(long, value_enum, default_value = "bytes")]
        format: Format,
    },
    /// Publishing to RabbitMQ against raw lapin with streamed confirms, from one task and from 64.
    PublishAmqp {
        /// Messages of one round and side.
        #[arg(long, default_value_t = 20_000)]
        messages: usize,
        /// What the bodies are.
        #[arg(long, value_enum, default_value = "bytes")]
        format: Format,
    },
    /// Consuming from the memory broker against its bare subscriber: what the runtime itself costs.
    ConsumeMemory {
        /// Messages of one round and side.
        #[arg(long, default_value_t = 100_000)]
        messages: usize,
        /// What the bodies are.
        #[arg(long, value_enum, default_value = "json")]
        codec: Codec,
    },
    /// Consuming from Kafka against a raw `StreamConsumer`: decode, dispatch, offsets.
    ConsumeKafka {
        /// Messages of the topic; each round and side reads it.
        #[arg(long, default_value_t = 200_000)]
        messages: usize,
        /// What the bodies are.
        #[arg(long, value_enum, default_value = "json")]
        codec: Codec,
    },
    /// Consuming from RabbitMQ against raw lapin: decode, dispatch, one ack each.
    ConsumeAmqp {
        /// Messages of one round and side.
        #[arg(long, default_value_t = 20_000)]
        messages: usize,
        /// What the bodies are.
        #[arg(long, value_enum, default_value = "json")]
        codec: Codec,
    },
    /// The outbox on PostgreSQL and its relay to Kafka: rate, cost of a command, latency, growth.
    OutboxRelay(OutboxRelay),
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let rounds = args.rounds.unwrap_or(9);
    match args.scenario {
        Scenario::Dispatch => dispatch::run(rounds).await,
        Scenario::PublishKafka { messages, format } => {
            kafka::publish(&args.servers, messages, rounds, format).await;
        }
        Scenario::PublishAmqp { messages, format } => {
            amqp::publish(&args.dsn, messages, rounds, format).await;
        }
        Scenario::ConsumeKafka { messages, codec } => {
            consume_kafka::run(&args.servers, messages, rounds, codec).await;
        }
        Scenario::ConsumeAmqp { messages, codec } => {
            consume_amqp::run(&args.dsn, messages, rounds, codec).await;
        }
        Scenario::ConsumeMemory { messages, codec } => {
            consume_memory::run(messages, rounds, codec).await;
        }
        Scenario::OutboxRelay(relay) => outbox::run(relay, args.servers, args.rounds).await,
    }
}
