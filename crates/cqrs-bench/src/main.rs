//! Benchmarks side by side with the raw clients and with bare dispatch, in one process and one run.
//!
//! `cargo run --release -p cqrs-bench -- dispatch | memory | publish-kafka | publish-amqp | consume-kafka |
//! consume-amqp | roundtrip | slow-handler | options | outbox-relay | report`
//!
//! Each comparison prints one JSON line for each figure, with the median, the spread, the processor time and the
//! ratio to the first side. `report` makes tables and plots of these lines. `outbox-relay` prints tables.

#![cfg_attr(not(feature = "servers"), allow(dead_code, unused_imports))] // of the other scenarios

mod consume;
mod cpu;
mod dispatch;
mod event;
mod measure;
#[cfg(feature = "servers")]
mod options;
#[cfg(feature = "servers")]
mod outbox;
mod peers;
mod protocol;
#[cfg(feature = "servers")]
mod publish;
mod raw;
mod report;
#[cfg(feature = "servers")]
mod roundtrip;
mod serve;
mod settings;
#[cfg(feature = "servers")]
mod slow_handler;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[cfg(feature = "servers")]
use crate::options::Options;
#[cfg(feature = "servers")]
use crate::outbox::OutboxRelay;
use crate::report::Report;
#[cfg(feature = "servers")]
use crate::roundtrip::Roundtrip;
use crate::settings::Settings;
#[cfg(feature = "servers")]
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
    #[cfg(feature = "servers")]
    PublishKafka,
    /// Publishing to RabbitMQ against raw lapin with streamed confirms.
    #[cfg(feature = "servers")]
    PublishAmqp,
    /// Consuming from Kafka against a raw `StreamConsumer`: decode, dispatch, offsets.
    #[cfg(feature = "servers")]
    ConsumeKafka,
    /// Consuming from RabbitMQ against raw lapin: decode, dispatch, acks.
    #[cfg(feature = "servers")]
    ConsumeAmqp,
    /// Latency from the time a message was due to its handler, at a fixed rate, against the raw clients.
    #[cfg(feature = "servers")]
    Roundtrip(Roundtrip),
    /// A handler that waits 10 ms: 64 lanes against one message after the other.
    #[cfg(feature = "servers")]
    SlowHandler(SlowHandler),
    /// What each option costs or gives, against the defaults.
    #[cfg(feature = "servers")]
    Options(Options),
    /// The outbox on PostgreSQL and its relay to Kafka: rate, cost of a command, latency, growth.
    #[cfg(feature = "servers")]
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
        #[cfg(feature = "servers")]
        Scenario::PublishKafka => publish::kafka(&settings).await,
        #[cfg(feature = "servers")]
        Scenario::PublishAmqp => publish::amqp(&settings).await,
        #[cfg(feature = "servers")]
        Scenario::ConsumeKafka => consume::kafka(&settings).await,
        #[cfg(feature = "servers")]
        Scenario::ConsumeAmqp => consume::amqp(&settings).await,
        #[cfg(feature = "servers")]
        Scenario::Roundtrip(args) => roundtrip::run(&args, &settings).await,
        #[cfg(feature = "servers")]
        Scenario::SlowHandler(args) => slow_handler::run(&args, &settings).await,
        #[cfg(feature = "servers")]
        Scenario::Options(args) => options::run(&args, &settings).await,
        #[cfg(feature = "servers")]
        Scenario::OutboxRelay(relay) => outbox::run(relay, settings).await,
        Scenario::Serve => return serve::run().await,
        Scenario::Report(args) => return report::run(&args),
    }
    Ok(())
}
