//! The settings that all scenarios share, and the cases that they make.

use clap::Args;

use crate::event::{Codec, Template};
use crate::measure::{Comparison, Unit};
use crate::peers::Peer;

/// Bodies of one round hold no more bytes than this, so that large ones take no hour.
const MAX_BYTES: usize = 256 << 20;

#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Rounds of each side, interleaved; medians are printed. 9 by default; outbox-relay: 5, growth 3,
    /// held-snapshot 1.
    #[arg(long, global = true)]
    pub(crate) rounds: Option<usize>,
    /// Messages (dispatch: calls) of one round and side; the scenario's own number by default.
    #[arg(long, global = true)]
    pub(crate) messages: Option<usize>,
    /// The form of the bodies, a list.
    #[arg(long, global = true, value_enum, value_delimiter = ',', default_value = "json")]
    pub(crate) codec: Vec<Codec>,
    /// Bytes of a body, a list: 100,1k,100k. A JSON event has about 170 at least.
    #[arg(long, global = true, value_parser = bytes, value_delimiter = ',', default_value = "256")]
    pub(crate) body: Vec<usize>,
    /// Partitions of a Kafka topic, a list. 1 by default; outbox-relay 4, and one number.
    #[arg(long, global = true, value_delimiter = ',')]
    pub(crate) partitions: Vec<i32>,
    /// Publishing tasks, a list.
    #[arg(long, global = true, value_delimiter = ',', default_value = "1,64")]
    pub(crate) tasks: Vec<usize>,
    /// Concurrency of the subscription, a list.
    #[arg(long, global = true, value_delimiter = ',', default_value = "1,16")]
    pub(crate) concurrency: Vec<usize>,
    /// The name of the results, for `report`; the scenario's by default.
    #[arg(long, global = true)]
    pub(crate) table: Option<String>,
    /// Kafka's brokers.
    #[arg(long, env = "CQRS_TEST_KAFKA", default_value = "localhost:9092", global = true)]
    pub(crate) servers: String,
    /// The RabbitMQ server.
    #[arg(
        long,
        env = "CQRS_TEST_AMQP",
        default_value = "amqp://guest:guest@localhost:5672/%2f",
        global = true
    )]
    pub(crate) dsn: String,
    /// Another framework's program, as NAME=COMMAND; may be given several times. See `peers/README.md`.
    #[arg(long = "peer", global = true)]
    pub(crate) peers: Vec<Peer>,
}

/// What the messages of a comparison are.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) template: Template,
    pub(crate) partitions: i32,
    pub(crate) messages: usize,
}

impl Settings {
    /// A comparison with one figure.
    pub(crate) fn comparison(&self, scenario: &str, case: String, unit: Unit) -> Comparison {
        self.comparison_of(scenario, case, vec![("", unit)])
    }

    pub(crate) fn comparison_of(
        &self,
        scenario: &str,
        case: String,
        metrics: Vec<(&'static str, Unit)>,
    ) -> Comparison {
        let scenario = self.table.clone().unwrap_or_else(|| scenario.to_owned());
        Comparison { scenario, case, metrics, rounds: self.rounds.unwrap_or(9) }
    }

    pub(crate) fn messages(&self, default: usize) -> usize {
        self.messages.unwrap_or(default)
    }

    /// Each codec with each size and each number of partitions; `messages` of the smallest size by default.
    pub(crate) fn cases(&self, messages: usize) -> Vec<Case> {
        let mut cases = Vec::new();
        let partitions: &[i32] = if self.partitions.is_empty() { &[1] } else { &self.partitions };
        for &codec in &self.codec {
            for &size in &self.body {
                let template = Template::new(codec, size);
                let messages = self.messages(messages).min(MAX_BYTES / template.size()).max(64);
                cases.extend(partitions.iter().map(|&partitions| Case {
                    template: template.clone(),
                    partitions,
                    messages,
                }));
            }
        }
        cases
    }

    /// The cases of a scenario whose handlers need events.
    pub(crate) fn event_cases(&self, messages: usize) -> Vec<Case> {
        let is_bytes = |case: &Case| case.template.codec() == Codec::Bytes;
        let cases = self.cases(messages);
        assert!(!cases.iter().any(is_bytes), "--codec bytes has no events: it is for publishing");
        cases
    }
}

impl Case {
    /// The case in words, where partitions count.
    pub(crate) fn on_kafka(&self) -> String {
        let plural = if self.partitions == 1 { "" } else { "s" };
        format!("{}, {} partition{plural}", self.template, self.partitions)
    }
}

/// A size in bytes: `100`, `1k`, `1M`.
fn bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1_000_000)),
    };
    let number: usize = digits.parse().map_err(|_| format!("{text} is no size"))?;
    Ok(number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            ["100", "1k", "100k", "2M"].map(bytes),
            [100, 1_000, 100_000, 2_000_000].map(Ok)
        );
        assert!(bytes("1 kB").is_err());
    }
}
