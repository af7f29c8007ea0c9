//! Tests of the resend of oversized batches, on librdkafka's mock cluster.

use cqrs_core::Message;
use cqrs_core::broker::Receipt;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Answer};

use super::*;
use crate::config::KafkaConfig;

const REFUSED: Answer = Answer::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
const STORED: Answer = Answer::RD_KAFKA_RESP_ERR_NO_ERROR;

/// Sends records (partition, bytes), one batch for each partition, while the broker gives these answers. Returns the
/// outcome of each, and the `batch.size` afterwards.
fn batches(records: &[(i32, usize)], answers: &[Answer]) -> (Vec<Option<PublishErrorKind>>, usize) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 2, 1).unwrap();
    let mut config = KafkaConfig::new([cluster.bootstrap_servers()]);
    config.linger = Duration::from_millis(300);
    // One request at a time, so that the answers have an order.
    config.max_in_flight_requests_per_connection = 1;
    let (mut supervisor, mut client) = Supervisor::new(&config).unwrap();
    cluster.request_errors(RDKafkaApiKey::Produce, answers);
    let mut receipts: Vec<Receipt> = Vec::new();
    for (partition, bytes) in records {
        let message = Message::new("t", vec![b'.'; *bytes]);
        let (pending, receipt) = supervisor.handle.intake.try_admit(message).unwrap();
        let mut outgoing = supervisor.handle.number(pending, None);
        outgoing.partition = Some(*partition);
        receipts.push(supervisor.handle.send_outgoing(outgoing, receipt).unwrap());
    }
    let end = Instant::now() + Duration::from_secs(60);
    while supervisor.handle.intake.in_flight() > 0 {
        assert!(Instant::now() < end, "some have no delivery report");
        client.poll(SHORT_TICK);
        if supervisor.handle.oversized.is_active() {
            client = supervisor.resend(client);
        }
        supervisor.check_contact(&client);
        supervisor.handle.drain_overflow(&client);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let kind = |receipt: Receipt| runtime.block_on(receipt).err().map(|error| error.kind());
    (receipts.into_iter().map(kind).collect(), supervisor.batch_size())
}

#[test]
fn oversized_record_changes_no_batch_size() {
    let records = [(0, 1_000), (0, 1_000), (0, 30_000), (0, 1_000)];
    // All, all again, [0, 1], [2, 3], [2], [3].
    let answers = [REFUSED, REFUSED, STORED, REFUSED, REFUSED, STORED];
    let (kinds, batch_size) = batches(&records, &answers);
    assert_eq!(kinds, [None, None, Some(PublishErrorKind::TooLarge), None]);
    assert_eq!(batch_size, DEFAULT_BATCH);
}

#[test]
fn batch_size_comes_from_groups_of_one_partition() {
    let records = [(0, 10_000), (1, 10_000), (0, 10_000), (1, 10_000)];
    let of_each = [REFUSED, STORED, STORED];
    let answers = [&[REFUSED, REFUSED][..], &of_each, &of_each].concat();
    let (kinds, batch_size) = batches(&records, &answers);
    assert_eq!(kinds, [None; 4]);
    assert!((10_000..10_100).contains(&batch_size), "half of one partition, not {batch_size}");
}

#[test]
fn record_refused_alone_is_too_large_at_once() {
    // The broker would take it the next time.
    let (kinds, batch_size) = batches(&[(0, 10)], &[REFUSED]);
    assert_eq!(kinds, [Some(PublishErrorKind::TooLarge)]);
    assert_eq!(batch_size, DEFAULT_BATCH);
}

#[test]
fn empty_records_are_halved_too() {
    let answers = [REFUSED, REFUSED, STORED, STORED];
    assert_eq!(batches(&[(0, 0), (0, 0)], &answers), (vec![None, None], SMALLEST_BATCH));
}
