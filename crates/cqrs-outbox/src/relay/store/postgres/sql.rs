//! The SQL of the relay's statements on PostgreSQL, with the names of the tables in it.

use crate::relay::store::session::{LOCK_NUMBER, channel};
use crate::row::message_columns;
use crate::tables::{Dialect, Tables};

/// Columns of a row, without those of its state.
pub(super) const COLUMNS: &str = "lane, id, event_id, name, topic, key, content_type, headers, body, \
                                  occurred_at, mandatory, created_at, uncompressed_size";

/// The bytes of a body, decompressed.
const SIZE: &str = "coalesce(o.uncompressed_size, octet_length(o.body))";

#[derive(Debug)]
pub(super) struct Sql {
    pub(super) heartbeat: String,
    pub(super) lanes: String,
    pub(super) live: String,
    pub(super) take: String,
    pub(super) remove_relays: String,
    pub(super) parked: String,
    pub(super) release: String,
    pub(super) leave: String,
    pub(super) hot: String,
    pub(super) ids: String,
    pub(super) rows: String,
    pub(super) delete: String,
    pub(super) delete_parked: String,
    pub(super) park: String,
    pub(super) die: String,
    pub(super) load: String,
    pub(super) notify: String,
}

/// The condition that a row of `table` is one of those in `asked` (alias `q`: lane, id, event_id).
///
/// The LIMIT makes it one index probe per row, whatever the statistics say. A join would read the whole table
/// for each statement after an ANALYZE that found it empty.
fn is_asked(table: &str, asked: &str) -> String {
    format!(
        "ctid = ANY (ARRAY (SELECT r.ctid FROM {asked} CROSS JOIN LATERAL (SELECT o.ctid \
         FROM {{t}}{table} o WHERE o.lane = q.lane AND o.id = q.id AND o.event_id = q.event_id \
         LIMIT 1) r))"
    )
}

/// The statement that deletes rows by lane, id and event id, and keeps them in the history.
fn delete_and_keep(table: &str) -> String {
    format!(
        "WITH gone AS ({} RETURNING {COLUMNS}), \
         kept AS (INSERT INTO {{t}}outbox_done ({COLUMNS}) SELECT {COLUMNS} FROM gone)",
        delete(table)
    )
}

/// The statement that deletes rows by lane, id and event id.
fn delete(table: &str) -> String {
    let asked = "unnest($1::int2[], $2::int8[], $3::uuid[]) AS q (lane, id, event_id)";
    format!("DELETE FROM {{t}}{table} WHERE {}", is_asked(table, asked))
}

impl Sql {
    pub(super) fn new(tables: &Tables, uses_session: bool, keeps_history: bool) -> Self {
        let cols = message_columns(Dialect::Postgres);
        let lock = LOCK_NUMBER.replace("$ID", "r.id");
        let holds_lock = match uses_session {
            true => format!(
                " AND EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted \
                 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                 AND l.classid = '{{t}}outbox_relay'::regclass::oid AND l.objid = ({lock})::oid \
                 AND l.objsubid = 2)"
            ),
            false => String::new(),
        };
        let render = |template: &str| tables.render(template);
        // The rows of lanes that the relay owns in the epochs it knows, in the snapshot of the statement.
        let owned =
            "LEFT JOIN {t}outbox_lane l ON l.lane = q.lane AND l.owner = $1 AND l.epoch = q.epoch";
        let read = "CASE WHEN q.lane = -1 THEN pg_current_snapshot()::text END AS snapshot, \
                     q.lane AS asked, q.epoch AS asked_epoch, l.lane IS NOT NULL AS is_owned";
        // Locks the lanes against a change of their owner until the statement is through.
        let fence = "input AS (SELECT * FROM unnest($2::int2[], $3::int8[], $4::int8[], $5::int4[], \
                     $6::float8[], $7::text[], $8::bool[], $9::uuid[]) \
                     AS i (lane, epoch, id, attempts, delay, error, is_parked, event_id)), \
                     owned AS MATERIALIZED (SELECT lane, epoch FROM {t}outbox_lane \
                     WHERE owner = $1 AND lane = ANY ($2) ORDER BY lane FOR SHARE)";
        let asked = |is_parked: &str| {
            format!("(SELECT * FROM input JOIN owned USING (lane, epoch) WHERE {is_parked}) q")
        };
        let is_pending = is_asked("outbox", &asked("NOT is_parked"));
        let is_parked = is_asked("outbox_parked", &asked("is_parked"));
        let moved = COLUMNS.split(", ").map(|column| format!("m.{column}"));
        let moved = moved.collect::<Vec<_>>().join(", ");
        Self {
            heartbeat: render(
                "INSERT INTO {t}outbox_relay (id, seen_at) VALUES ($1, clock_timestamp()) \
                 ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at \
                 RETURNING pg_current_xact_id()::text::int8",
            ),
            lanes: render("SELECT lane, owner, epoch FROM {t}outbox_lane ORDER BY lane"),
            live: render(&format!(
                "SELECT r.id FROM {{t}}outbox_relay r WHERE r.seen_at > clock_timestamp() - $1 * \
                 interval '1 second'{holds_lock}"
            )),
            take: render(
                "WITH free AS MATERIALIZED (SELECT lane FROM {t}outbox_lane \
                 WHERE owner IS NULL OR owner = ANY ($2) ORDER BY lane LIMIT $3 \
                 FOR UPDATE SKIP LOCKED) \
                 UPDATE {t}outbox_lane o SET owner = $1, epoch = o.epoch + 1 FROM free \
                 WHERE o.lane = free.lane RETURNING o.lane, o.epoch",
            ),
            remove_relays: render(
                "DELETE FROM {t}outbox_relay WHERE id = ANY ($1) \
                 OR extract(epoch FROM clock_timestamp() - seen_at)::float8 > $2",
            ),
            parked: render(
                "SELECT lane, id, event_id, topic, key, coalesce(uncompressed_size, octet_length(body)) AS size, attempts, \
                 greatest(extract(epoch FROM next_at - clock_timestamp()), 0)::float8 AS due_in \
                 FROM {t}outbox_parked WHERE lane = ANY ($1) ORDER BY lane, id",
            ),
            release: render(
                "UPDATE {t}outbox_lane o SET owner = NULL FROM unnest($2::int2[], $3::int8[]) \
                 AS q (lane, epoch) WHERE o.lane = q.lane AND o.epoch = q.epoch AND o.owner = $1",
            ),
            leave: render(
                "WITH freed AS (UPDATE {t}outbox_lane SET owner = NULL WHERE owner = $1) \
                 DELETE FROM {t}outbox_relay WHERE id = $1",
            ),
            hot: render(&format!(
                "SELECT {read}, {cols} FROM unnest($2::int2[], $3::int8[], $4::int8[], $5::int8[], \
                 $6::int8[]) AS q (lane, epoch, above, count, bytes) {owned} LEFT JOIN LATERAL \
                 (SELECT * FROM (SELECT o.*, sum({SIZE}) OVER (ORDER BY o.id ROWS \
                 UNBOUNDED PRECEDING) - {SIZE} AS bytes_before FROM {{t}}outbox o \
                 WHERE o.lane = q.lane AND o.id > q.above ORDER BY o.id LIMIT q.count) o \
                 WHERE o.bytes_before < q.bytes) r ON l.lane IS NOT NULL"
            )),
            ids: render(&format!(
                "SELECT {read}, r.id, r.event_id, r.size FROM unnest($2::int2[], $3::int8[], $4::int8[], $5::int8[], \
                 $6::int8[]) AS q (lane, epoch, above, up_to, count) {owned} LEFT JOIN LATERAL \
                 (SELECT o.id, o.event_id, {SIZE} AS size FROM {{t}}outbox o WHERE o.lane = q.lane AND o.id > q.above \
                 AND o.id <= q.up_to ORDER BY o.id LIMIT q.count) r ON l.lane IS NOT NULL"
            )),
            rows: render(&format!(
                "SELECT {read}, {cols} FROM unnest($2::int2[], $3::int8[], $4::int8[]) \
                 AS q (lane, epoch, row_id) {owned} LEFT JOIN LATERAL (SELECT * \
                 FROM {{t}}outbox o WHERE o.lane = q.lane AND o.id = q.row_id LIMIT 1) r \
                 ON l.lane IS NOT NULL"
            )),
            delete: render(&format!(
                "{} SELECT pg_current_xact_id()::text::int8",
                match keeps_history {
                    true => delete_and_keep("outbox"),
                    false => format!("WITH gone AS ({})", delete("outbox")),
                }
            )),
            delete_parked: render(&match keeps_history {
                true => format!("{} SELECT", delete_and_keep("outbox_parked")),
                false => delete("outbox_parked"),
            }),
            park: render(&format!(
                "WITH {fence}, moved AS (DELETE FROM {{t}}outbox WHERE {is_pending} RETURNING *), \
                 added AS (INSERT INTO {{t}}outbox_parked ({COLUMNS}, attempts, next_at, \
                 first_failed_at, last_error) SELECT {moved}, i.attempts, \
                 now() + i.delay * interval '1 second', now(), i.error \
                 FROM moved m JOIN input i USING (lane, id, event_id)), \
                 again AS (UPDATE {{t}}outbox_parked p SET (attempts, next_at, last_error) = \
                 (SELECT i.attempts, now() + i.delay * interval '1 second', i.error FROM input i \
                 WHERE i.lane = p.lane AND i.id = p.id AND i.event_id = p.event_id) WHERE {is_parked}) \
                 SELECT lane FROM owned"
            )),
            die: render(&format!(
                "WITH {fence}, moved AS (DELETE FROM {{t}}outbox WHERE {is_pending} \
                 RETURNING *, now() AS first_failed_at), \
                 unparked AS (DELETE FROM {{t}}outbox_parked WHERE {is_parked} RETURNING *), \
                 gone AS (SELECT {COLUMNS}, first_failed_at FROM moved \
                 UNION ALL SELECT {COLUMNS}, first_failed_at FROM unparked), \
                 added AS (INSERT INTO {{t}}outbox_dead ({COLUMNS}, attempts, first_failed_at, \
                 last_error) SELECT {moved}, i.attempts, m.first_failed_at, i.error \
                 FROM gone m JOIN input i USING (lane, id, event_id)) \
                 SELECT lane FROM owned"
            )),
            load: render(&format!(
                "SELECT {cols} FROM {{t}}outbox_parked r WHERE r.lane = $1 AND r.id = ANY ($2)"
            )),
            notify: format!("SELECT pg_notify({}, '')", channel(&tables.name("outbox_relay"))),
        }
    }
}
