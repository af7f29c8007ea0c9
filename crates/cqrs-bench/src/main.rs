//! Benchmarks side by side with the raw clients and with bare dispatch, in one process and one run.
//!
//! `cargo run --release -p cqrs-bench -- dispatch | memory | publish-kafka | publish-amqp | consume-kafka |
//! consume-amqp | roundtrip | slow-handler | options | outbox-relay | report`
//!
//! Each comparison prints one JSON line for each figure, with the median, the spread, the processor time and the
//! ratio to the first side. `report` makes tables and plots of these lines. `outbox-relay` prints tables.

mod consume;
mod cpu;
mod dispatch;
mod event;
mod measure;
mod options;
mod outbox;
mod peers;
mod protocol;
mod publish;
mod raw;
mod report;
mod roundtrip;
mod serve;
mod settings;
mod slow_handler;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::options::Options;
use crate::outbox::OutboxRelay;
use crate::report::Report;
use crate::roundtrip::Roundtrip;
use crate::settings::Settings;
use crate::slow_handler::SlowHandler;

#[derive(Parser)]
#[command(about = "Benchmarks of the cqrs framework, side by side with the raw clients")]
struct Args {
    #[command(subcommand)]
    scenario: Scenario,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Scenario {
    /// `Mediator::send` against a bare `dyn` call that returns a boxed future.
    Dispatch,
    /// Consuming from the memory broker against its bare subscriber: what the runtime itself costs.
    Memory,
    /// Publishing to Kafka against a raw `FutureProducer`.
    PublishKafka,
    /// Publishing to RabbitMQ against raw lapin with streamed confirms.
    PublishAmqp,
    /// Consuming from Kafka against a raw `StreamConsumer`: decode, dispatch, offsets.
    ConsumeKafka,
    /// Consuming from RabbitMQ against raw lapin: decode, dispatch, acks.
    ConsumeAmqp,
    /// Latency from the time a message was due to its handler, at a fixed rate, against the raw clients.
    Roundtrip(Roundtrip),
    /// A handler that waits 10 ms: 64 lanes against one message after the other.
    SlowHandler(SlowHandler),
    /// What each option costs or gives, against the defaults.
    Options(Options),
    /// The outbox on PostgreSQL and its relay to Kafka: rate, cost of a command, latency, growth.
    OutboxRelay(OutboxRelay),
    /// Answers requests on stdin, as the programs of other frameworks do: to compare builds of this one.
    Serve,
    /// Tables and plots of the lines that the scenarios printed.
    Report(Report),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { scenario, settings } = Args::parse();
    match run(scenario, settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cqrs-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(scenario: Scenario, settings: Settings) -> Result<(), String> {
    match scenario {
        Scenario::Dispatch => dispatch::run(&settings).await,
        Scenario::Memory => consume::memory(&settings).await,
        Scenario::PublishKafka => publish::kafka(&settings).await,
        Scenario::PublishAmqp => publish::amqp(&settings).await,
        Scenario::ConsumeKafka => consume::kafka(&settings).await,
        Scenario::ConsumeAmqp => consume::amqp(&settings).await,
        Scenario::Roundtrip(args) => roundtrip::run(&args, &settings).await,
        Scenario::SlowHandler(args) => slow_handler::run(&args, &settings).await,
        Scenario::Options(args) => options::run(&args, &settings).await,
        Scenario::OutboxRelay(relay) => outbox::run(relay, settings).await,
        Scenario::Serve => return serve::run().await,
        Scenario::Report(args) => return report::run(&args),
    }
    Ok(())
}
