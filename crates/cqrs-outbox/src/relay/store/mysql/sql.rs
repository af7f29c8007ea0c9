//! The SQL of the relay's statements on MySQL, with the names of the tables in it, and the rows of their lists.

use std::time::Duration;

use serde::Serialize;
use uuid::fmt::Simple;

use super::session;
use crate::database::mysql::NOW;
use crate::database::mysql_list::{LIST, LISTED, numbers};
use crate::relay::effects::{LaneEpoch, Move, Table, Target};
use crate::row::message_columns;
use crate::tables::{Dialect, Tables};

/// Columns of a row, without those of its state.
pub(super) const COLUMNS: &str = "lane, id, event_id, name, topic, `key`, content_type, headers, body, occurred_at, \
                                  mandatory, created_at, uncompressed_size";

/// The lanes that the relay owns, as the first rows of an answer. `$NONE`: the other columns of its rows.
const OWNED: &str = "SELECT 1 AS is_lane, l.lane AS lane, l.epoch AS id, NULL AS event_id, $NONE \
                     FROM {t}outbox_lane l WHERE l.owner = ?";

/// Those of whole rows.
const NONE: &str = "NULL AS name, NULL AS topic, NULL AS `key`, NULL AS content_type, NULL AS headers, \
                    NULL AS mandatory, NULL AS occurred_at, NULL AS body, \
                    CAST(NULL AS SIGNED) AS uncompressed_size";

#[derive(Debug)]
pub(super) struct Sql {
    tables: Tables,
    pub(super) heartbeat: String,
    pub(super) lanes: String,
    pub(super) live: String,
    pub(super) free: String,
    pub(super) free_all: String,
    pub(super) remove_relay: String,
    pub(super) forget_relays: String,
    pub(super) rows: String,
    pub(super) load: String,
    delete: String,
    delete_parked: String,
}

impl Sql {
    pub(super) fn new(tables: &Tables, uses_session: bool) -> Self {
        let cols = message_columns(Dialect::Mysql);
        let owned = OWNED.replace("$NONE", NONE);
        let holds_lock = match uses_session {
            true => format!(" AND IS_USED_LOCK({}) IS NOT NULL", session::name("r.id")),
            false => String::new(),
        };
        let render = |template: String| tables.render(&template);
        let delete = |table: &str| {
            render(format!("DELETE r FROM {LIST} STRAIGHT_JOIN {{t}}{table} {LISTED}"))
        };
        Self {
            heartbeat: render(format!(
                "INSERT INTO {{t}}outbox_relay (id, seen_at) VALUES (?, {NOW}) \
                 ON DUPLICATE KEY UPDATE seen_at = {NOW}"
            )),
            lanes: render("SELECT lane, owner, epoch FROM {t}outbox_lane ORDER BY lane".to_owned()),
            live: render(format!(
                "SELECT r.id FROM {{t}}outbox_relay r WHERE r.seen_at > {NOW} - ?{holds_lock}"
            )),
            free: render(
                "SELECT lane, epoch FROM {t}outbox_lane \
                 WHERE owner IS NULL OR FIND_IN_SET(LOWER(HEX(owner)), ?) ORDER BY lane LIMIT ? \
                 FOR UPDATE SKIP LOCKED"
                    .to_owned(),
            ),
            free_all: render(
                "UPDATE {t}outbox_lane FORCE INDEX (PRIMARY) SET owner = NULL WHERE owner = ?"
                    .to_owned(),
            ),
            remove_relay: render("DELETE FROM {t}outbox_relay WHERE id = ?".to_owned()),
            forget_relays: render(format!(
                "DELETE FROM {{t}}outbox_relay WHERE {NOW} - seen_at > ?"
            )),
            rows: render(format!(
                "({owned}) UNION ALL (SELECT 0, {cols} FROM {LIST} STRAIGHT_JOIN {{t}}outbox r \
                 FORCE INDEX (PRIMARY) ON r.lane = q.lane AND r.id = q.id)"
            )),
            load: render(format!(
                "SELECT {cols} FROM {LIST} STRAIGHT_JOIN {{t}}outbox_parked {LISTED}"
            )),
            delete: delete("outbox"),
            delete_parked: delete("outbox_parked"),
            tables: tables.clone(),
        }
    }

    pub(super) fn ids(&self, parts: usize) -> String {
        let part = " UNION ALL (SELECT 0, r.lane, r.id, r.event_id, r.size FROM {t}outbox r FORCE INDEX (PRIMARY) \
                    WHERE r.lane = ? AND r.id > ? AND r.id <= ? ORDER BY r.id LIMIT ?)";
        let owned = OWNED.replace("$NONE", "NULL AS size");
        self.tables.render(&format!("({owned}){}", part.repeat(parts)))
    }

    pub(super) fn take(&self, lanes: &[LaneEpoch]) -> String {
        self.tables.render(&format!(
            "UPDATE {{t}}outbox_lane FORCE INDEX (PRIMARY) SET owner = ?, epoch = epoch + 1 WHERE lane IN ({})",
            numbers(lanes.iter().map(|at| at.lane))
        ))
    }

    pub(super) fn release(&self, lanes: &[LaneEpoch]) -> String {
        let lanes = lanes.iter().map(|at| format!("lane = {} AND epoch = {}", at.lane, at.epoch));
        let lanes: Vec<_> = lanes.collect();
        self.tables.render(&format!(
            "UPDATE {{t}}outbox_lane FORCE INDEX (PRIMARY) SET owner = NULL WHERE owner = ? AND ({})",
            lanes.join(" OR ")
        ))
    }

    pub(super) fn fence(&self, lanes: &[LaneEpoch]) -> String {
        self.tables.render(&format!(
            "SELECT lane, epoch FROM {{t}}outbox_lane FORCE INDEX (PRIMARY) \
             WHERE owner = ? AND lane IN ({}) ORDER BY lane LOCK IN SHARE MODE",
            numbers(lanes.iter().map(|at| at.lane))
        ))
    }

    pub(super) fn parked(&self, lanes: &[LaneEpoch]) -> String {
        self.tables.render(&format!(
            "SELECT lane, id, event_id, topic, `key`, size, attempts, next_at - {NOW} AS due_in \
             FROM {{t}}outbox_parked WHERE lane IN ({}) ORDER BY lane, id",
            numbers(lanes.iter().map(|at| at.lane))
        ))
    }

    pub(super) fn delete(&self, table: Table) -> &str {
        match table {
            Table::Pending => &self.delete,
            Table::Parked => &self.delete_parked,
        }
    }

    /// The statements that move the rows of a list, each of which has the list as its parameter.
    pub(super) fn moves(&self, from: Table, is_dead: bool) -> Vec<String> {
        let columns = COLUMNS.replace(", ", ", r.");
        let (table, first_failed_at) = match from {
            Table::Pending => ("outbox", NOW),
            Table::Parked => ("outbox_parked", "r.first_failed_at"),
        };
        let insert = |into: &str, at: &str| {
            self.tables.render(&format!(
                "INSERT INTO {{t}}{into} ({COLUMNS}, attempts, last_error, first_failed_at, {at}) \
                 SELECT r.{columns}, q.attempts, q.error, {first_failed_at}, {NOW} + q.delay \
                 FROM {LIST} STRAIGHT_JOIN {{t}}{table} {LISTED} FOR UPDATE"
            ))
        };
        match (from, is_dead) {
            (Table::Parked, false) => vec![self.tables.render(&format!(
                "UPDATE {LIST} STRAIGHT_JOIN {{t}}outbox_parked {LISTED} \
                 SET r.attempts = q.attempts, r.last_error = q.error, r.next_at = {NOW} + q.delay"
            ))],
            (_, false) => vec![insert("outbox_parked", "next_at"), self.delete(from).to_owned()],
            (_, true) => vec![insert("outbox_dead", "died_at"), self.delete(from).to_owned()],
        }
    }
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A row of the list of moves: lane, id, event id, attempts, delay in microseconds, error.
#[derive(Debug, Serialize)]
pub(super) struct Moved<'m>(i16, i64, Simple, i32, i64, &'m str);

impl<'m> From<&'m Move> for Moved<'m> {
    fn from(of: &'m Move) -> Self {
        let delay = match of.to {
            Target::Parked(delay) => micros(delay),
            Target::Dead => 0,
        };
        let Move { lane, row, attempts, error, .. } = of;
        let attempts = i32::try_from(*attempts).unwrap_or(i32::MAX);
        Self(lane.lane, row.id, row.event_id.simple(), attempts, delay, error)
    }
}

/// The parts of a read, one for each lane. Their number is filled up to a power of two, so that few texts are to be
/// prepared.
pub(super) struct Asked<'r, R> {
    reads: &'r [R],
    pub(super) parts: usize,
}

impl<'r, R> Asked<'r, R> {
    pub(super) fn new(reads: &'r [R]) -> Self {
        Self { reads, parts: reads.len().next_power_of_two() }
    }

    /// The reads, and `None` for each part that is to read nothing.
    pub(super) fn iter(&self) -> impl Iterator<Item = Option<&'r R>> {
        let none = self.parts - self.reads.len();
        self.reads.iter().map(Some).chain(std::iter::repeat_n(None, none))
    }
}
