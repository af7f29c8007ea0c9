//! Lists of rows in the statements of MySQL: a JSON text that the server reads as a table. So each row is found by
//! its primary key, in a text of SQL that does not depend on the number of rows.

use serde::Serialize;
use uuid::Uuid;

/// A list of rows as the table `q`: its elements are those of [`list`], or have these further fields.
pub(crate) const LIST: &str = "JSON_TABLE(?, '$[*]' COLUMNS (lane smallint PATH '$[0]', id bigint PATH '$[1]', \
                               event_id char(32) PATH '$[2]', attempts int PATH '$[3]', \
                               delay bigint PATH '$[4]', \
                               error varchar(4096) CHARACTER SET utf8mb4 PATH '$[5]')) q";

/// The rows `r` of the list, by the primary key. A statement that writes would wait at each row that it scans
/// and another transaction has just inserted.
pub(crate) const LISTED: &str = "r FORCE INDEX (PRIMARY) \
                                 ON r.lane = q.lane AND r.id = q.id AND r.event_id = UNHEX(q.event_id)";

/// A list of rows: lane, id and event id.
pub(crate) fn list(rows: impl Iterator<Item = (i16, i64, Uuid)>) -> String {
    json(&rows.map(|(lane, id, event_id)| (lane, id, event_id.simple())).collect::<Vec<_>>())
}

/// Not `sqlx::types::Json`, whose type MariaDB does not have.
pub(crate) fn json<T: Serialize>(list: &[T]) -> String {
    // Writing numbers and texts to a string cannot fail.
    serde_json::to_string(list).unwrap_or_default()
}

/// Numbers with commas between them.
pub(crate) fn numbers<N: ToString>(numbers: impl Iterator<Item = N>) -> String {
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
}
