//! `options`: what each option costs or gives, against the defaults of this framework.

mod consuming;
mod latency;
mod publishing;

use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to vary, a list.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "publish-kafka,publish-amqp,consume-kafka,consume-amqp,latency-kafka"
    )]
    of: Vec<Of>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Of {
    /// Acks, idempotence, linger, compression, window.
    PublishKafka,
    /// Persistence, channels, window.
    PublishAmqp,
    /// Concurrency and the bound on unsettled messages.
    ConsumeKafka,
    /// Concurrency and prefetch.
    ConsumeAmqp,
    /// Linger and acks, at a fixed rate.
    LatencyKafka,
}

pub(crate) async fn run(options: &Options, settings: &Settings) {
    for of in &options.of {
        match of {
            Of::PublishKafka => publishing::kafka(settings).await,
            Of::PublishAmqp => publishing::amqp(settings).await,
            Of::ConsumeKafka => consuming::kafka(settings).await,
            Of::ConsumeAmqp => consuming::amqp(settings).await,
            Of::LatencyKafka => latency::kafka(settings).await,
        }
    }
}
