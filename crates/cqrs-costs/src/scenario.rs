//! The measured scenarios, by name.

use clap::ValueEnum;

use crate::{consume, dispatch, publish};

/// One path of a message, or a baseline to read it against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// A `dyn` call that returns a boxed future: the baseline of the sends.
    BareCall,
    /// `Mediator::send` of a command.
    Send,
    /// The same through one middleware.
    #[value(name = "send-1-middleware")]
    Send1Middleware,
    /// The same through three.
    #[value(name = "send-3-middlewares")]
    Send3Middlewares,
    /// The handler emits a domain event, which has a handler.
    #[value(name = "send-1-event")]
    Send1Event,
    /// It emits ten.
    #[value(name = "send-10-events")]
    Send10Events,
    /// An event of 256 bytes encoded as JSON, published and confirmed at once.
    PublishJson,
    /// The same to a topic of the memory broker.
    PublishMemory,
    /// JSON of 256 bytes decoded, no more: the baseline of the consumers.
    DecodeJson,
    /// The same of a body with two integers.
    DecodeIntegers,
    /// Protobuf of 256 bytes decoded, with the id and the name in the frame.
    DecodeProtobuf,
    /// The same of 1,000 bytes.
    #[value(name = "decode-protobuf-1k")]
    DecodeProtobuf1k,
    /// JSON of 256 bytes from a full queue of the memory broker: decoded, handled, acked.
    ConsumeJson,
    /// The same in 16 lanes.
    #[value(name = "consume-json-16-lanes")]
    ConsumeJson16Lanes,
    /// As `consume-json`, with a body of two integers.
    ConsumeIntegers,
    /// As `consume-json`, with a unit of work that is committed and an event that is published.
    ConsumeCommitting,
    /// The consumer's thread on Kafka: from the client's poll to the stored offset.
    #[cfg(feature = "servers")]
    ConsumeKafka,
    /// The raw client's.
    #[cfg(feature = "servers")]
    ConsumeKafkaRaw,
    /// The same in Protobuf, with the id and the name in headers.
    #[cfg(feature = "servers")]
    ConsumeKafkaProtobuf,
    /// The raw client's, which reads them too.
    #[cfg(feature = "servers")]
    ConsumeKafkaProtobufRaw,
    /// The publisher's thread on Kafka.
    #[cfg(feature = "servers")]
    PublishKafka,
    /// The raw client's.
    #[cfg(feature = "servers")]
    PublishKafkaRaw,
    /// The consumer's thread on RabbitMQ, the client's reading and writing included.
    #[cfg(feature = "servers")]
    ConsumeAmqp,
    /// The raw client's.
    #[cfg(feature = "servers")]
    ConsumeAmqpRaw,
    /// The publisher's thread on RabbitMQ, the client's reading and writing included.
    #[cfg(feature = "servers")]
    PublishAmqp,
    /// The raw client's.
    #[cfg(feature = "servers")]
    PublishAmqpRaw,
}

impl Scenario {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    /// As the command line and the record have it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The two numbers of messages whose difference is measured. The smaller one is beyond what a queue or a
    /// cache holds at first.
    pub(crate) fn counts(self) -> [usize; 2] {
        [2_000, 6_000]
    }

    /// The part by which its cost may exceed the record. How much a consumer takes at once depends on how slow its
    /// handlers look, and what a server sends at once varies from run to run.
    pub(crate) fn tolerance(self) -> f64 {
        match self {
            #[cfg(feature = "servers")]
            Self::ConsumeKafka
            | Self::ConsumeKafkaRaw
            | Self::ConsumeKafkaProtobuf
            | Self::ConsumeKafkaProtobufRaw
            | Self::PublishKafka
            | Self::PublishKafkaRaw
            | Self::ConsumeAmqp
            | Self::ConsumeAmqpRaw
            | Self::PublishAmqp
            | Self::PublishAmqpRaw => 0.15,
            Self::ConsumeJson
            | Self::ConsumeJson16Lanes
            | Self::ConsumeIntegers
            | Self::ConsumeCommitting => 0.05,
            _ => 0.03,
        }
    }

    pub(crate) fn run(self, count: usize) {
        match self {
            Self::BareCall => dispatch::bare(count),
            Self::Send => dispatch::send(count, 0, 0),
            Self::Send1Middleware => dispatch::send(count, 1, 0),
            Self::Send3Middlewares => dispatch::send(count, 3, 0),
            Self::Send1Event => dispatch::send(count, 0, 1),
            Self::Send10Events => dispatch::send(count, 0, 10),
            Self::PublishJson => publish::devnull(count),
            Self::PublishMemory => publish::memory(count),
            Self::DecodeJson => consume::decode::<consume::Text>(count),
            Self::DecodeIntegers => consume::decode::<consume::Integers>(count),
            Self::DecodeProtobuf => consume::decode::<consume::Binary<256>>(count),
            Self::DecodeProtobuf1k => consume::decode::<consume::Binary<1_000>>(count),
            Self::ConsumeJson => consume::memory::<consume::Text>(count, 1),
            Self::ConsumeJson16Lanes => consume::memory::<consume::Text>(count, 16),
            Self::ConsumeIntegers => consume::memory::<consume::Integers>(count, 1),
            Self::ConsumeCommitting => consume::committing(count),
            #[cfg(feature = "servers")]
            Self::ConsumeKafka => crate::servers::kafka::consume::<consume::Text>(count),
            #[cfg(feature = "servers")]
            Self::ConsumeKafkaRaw => {
                use crate::servers::kafka::{consume_raw, read_body};
                consume_raw::<consume::Text>(count, read_body::<consume::Text>);
            }
            #[cfg(feature = "servers")]
            Self::ConsumeKafkaProtobuf => {
                crate::servers::kafka::consume::<consume::Binary<256>>(count)
            }
            #[cfg(feature = "servers")]
            Self::ConsumeKafkaProtobufRaw => {
                use crate::servers::kafka::{consume_raw, read_event};
                consume_raw::<consume::Binary<256>>(count, read_event::<consume::Binary<256>>);
            }
            #[cfg(feature = "servers")]
            Self::PublishKafka => crate::servers::kafka::publish(count),
            #[cfg(feature = "servers")]
            Self::PublishKafkaRaw => crate::servers::kafka::publish_raw(count),
            #[cfg(feature = "servers")]
            Self::ConsumeAmqp => crate::servers::amqp::consume(count),
            #[cfg(feature = "servers")]
            Self::ConsumeAmqpRaw => crate::servers::amqp::consume_raw(count),
            #[cfg(feature = "servers")]
            Self::PublishAmqp => crate::servers::amqp::publish(count),
            #[cfg(feature = "servers")]
            Self::PublishAmqpRaw => crate::servers::amqp::publish_raw(count),
        }
    }
}
