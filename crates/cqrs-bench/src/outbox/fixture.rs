//! A schema with the tables of an outbox, and a topic: made for one scenario, dropped after it.

use std::panic::AssertUnwindSafe;

use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
use cqrs_outbox::{PostgresOutbox, lane_of};
use futures_util::FutureExt as _;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::watched::Watched;

/// The addresses of the servers.
pub(super) struct Server {
    pub(super) postgres: String,
    pub(super) kafka: String,
    pub(super) partitions: i32,
    pub(super) keys: usize,
}

impl Server {
    /// Runs `measure` on `count` fixtures, and drops them, also after a panic.
    pub(super) async fn with(&self, count: usize, measure: impl AsyncFnOnce(&[Fixture])) {
        let mut fixtures = Vec::new();
        for _ in 0..count {
            fixtures.push(Fixture::new(self).await);
        }
        let measured = AssertUnwindSafe(measure(&fixtures)).catch_unwind().await;
        for fixture in fixtures {
            fixture.drop().await;
        }
        if let Err(panic) = measured {
            std::panic::resume_unwind(panic);
        }
    }
}

pub(super) struct Fixture {
    schema: String,
    options: PgConnectOptions,
    kafka: String,
    admin: AdminClient<DefaultClientContext>,
    keys: usize,
    pub(super) topic: String,
    pub(super) outbox: PostgresOutbox,
}

impl Fixture {
    async fn new(server: &Server) -> Self {
        let name = format!("bench_{}", Uuid::now_v7().simple());
        let options: PgConnectOptions = server.postgres.parse().expect("an address of PostgreSQL");
        let options = options.options([("search_path", &*name)]);
        let outbox = PostgresOutbox::new(pool(options.clone(), 20).await);
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &server.kafka).create().expect("an admin");
        let topic = NewTopic::new(&name, server.partitions, TopicReplication::Fixed(1));
        admin.create_topics([&topic], &AdminOptions::new()).await.expect("a topic");
        let kafka = server.kafka.clone();
        let topic = name.clone();
        let fixture =
            Self { schema: name, options, kafka, admin, keys: server.keys, topic, outbox };
        fixture.execute(&format!("CREATE SCHEMA {}", fixture.schema)).await;
        fixture.outbox.migrate().await.expect("migrations");
        fixture
    }

    async fn drop(self) {
        self.execute(&format!("DROP SCHEMA {} CASCADE", self.schema)).await;
        let deleted = self.admin.delete_topics(&[&self.topic], &AdminOptions::new()).await;
        deleted.expect("a deleted topic");
    }

    pub(super) fn pool(&self) -> &PgPool {
        self.outbox.pool()
    }

    /// The key of the `number`th event.
    pub(super) fn key(&self, number: usize) -> String {
        key(number, self.keys)
    }

    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    pub(super) fn servers(&self) -> &str {
        &self.kafka
    }

    /// A pool whose connections plan as those of a relay do: with the index alone.
    pub(super) async fn index_pool(&self) -> PgPool {
        let options = [("enable_seqscan", "off"), ("enable_bitmapscan", "off"), ("jit", "off")];
        pool(self.options.clone().options(options), 1).await
    }

    /// The outbox as another process has it: with connections and a wake-up of its own.
    pub(super) async fn other_process(&self) -> PostgresOutbox {
        PostgresOutbox::new(pool(self.options.clone(), 4).await)
    }

    /// A broker value of its own, which counts what is sent.
    pub(super) async fn broker(&self) -> Watched {
        let config = KafkaConfig::new([&self.kafka]);
        Watched::new(KafkaMessageBroker::connect(config).await.expect("Kafka"))
    }

    pub(super) async fn execute(&self, sql: &str) {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        query.execute(self.pool()).await.expect("a statement");
    }

    pub(super) async fn number(&self, sql: &str) -> f64 {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        query.fetch_one(self.pool()).await.expect("a number")
    }

    /// Bytes of WAL that the server wrote until now.
    pub(super) async fn wal(&self) -> f64 {
        self.number("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8").await
    }

    /// An empty table of pending rows, as a new one.
    pub(super) async fn truncate(&self) {
        self.execute("TRUNCATE cqrs_outbox").await;
    }

    /// Inserts `rows` rows with bodies of 256 bytes, in one transaction. The keys take turns.
    pub(super) async fn fill(&self, rows: usize) {
        self.insert_into("cqrs_outbox (", "", rows).await;
    }

    /// Inserts `rows` dead rows with bodies of 256 bytes.
    pub(super) async fn fill_dead(&self, rows: usize) {
        let columns = "cqrs_outbox_dead (id, attempts, first_failed_at, last_error, ";
        self.insert_into(columns, "n, 1, now(), 'refused', ", rows).await;
    }

    async fn insert_into(&self, columns: &str, values: &str, rows: usize) {
        let keys: Vec<_> = (0..self.keys).map(|key| self.key(key).into_bytes()).collect();
        let lane = |key: &Vec<u8>| lane_of(Some(key), Uuid::nil(), 64);
        let lanes: Vec<_> = keys.iter().map(lane).collect();
        let sql = format!(
            "INSERT INTO {columns}lane, event_id, name, topic, key, content_type, body, occurred_at, \
             mandatory, created_at) SELECT {values}k.lane, gen_random_uuid(), 'OrderPlaced', $1, k.key, \
             'application/json', convert_to('{{\"order\":' || lpad(n::text, 10, '1') || \
             ',\"filling\":\"' || repeat('x', 224) || '\"}}', 'UTF8'), now(), true, now() \
             FROM generate_series(1, $2) n JOIN unnest($3::int2[], $4::bytea[]) WITH ORDINALITY \
             AS k (lane, key, number) ON k.number = n % {} + 1 ORDER BY n",
            self.keys
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&self.topic);
        let query = query.bind(i64::try_from(rows).expect("a number of rows"));
        query.bind(lanes).bind(keys).execute(self.pool()).await.expect("rows");
    }
}

/// The key of the `number`th event among `keys` keys.
pub(super) fn key(number: usize, keys: usize) -> String {
    format!("key-{}", number % keys)
}

async fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(connections);
    pool.connect_with(options).await.expect("PostgreSQL")
}
