-- {t} stands for the prefix of the tables. Times are microseconds since 1970-01-01 UTC.

-- Rows that wait for their publish. Inserted once, deleted once confirmed, never updated.
-- AUTOINCREMENT: the id of a deleted row is not used again.
CREATE TABLE {t}outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    lane INTEGER NOT NULL,
    event_id BLOB NOT NULL CHECK (length(event_id) = 16),
    name TEXT NOT NULL,
    topic TEXT NOT NULL,
    key BLOB,
    content_type TEXT,
    headers TEXT,
    body BLOB NOT NULL,
    occurred_at INTEGER NOT NULL,
    mandatory INTEGER NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    -- Of a body that is a zlib stream. Null: the body is stored as it is.
    uncompressed_size INTEGER
) STRICT;

-- Rows of keys that fail now: moved here with their ids, and tried again from next_at on. In a table that was emptied
-- and restored an id is used again, for another event.
CREATE TABLE {t}outbox_parked (
    id INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    event_id BLOB NOT NULL,
    name TEXT NOT NULL,
    topic TEXT NOT NULL,
    key BLOB,
    content_type TEXT,
    headers TEXT,
    body BLOB NOT NULL,
    occurred_at INTEGER NOT NULL,
    mandatory INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    uncompressed_size INTEGER,
    attempts INTEGER NOT NULL,
    next_at INTEGER NOT NULL,
    first_failed_at INTEGER NOT NULL,
    last_error TEXT NOT NULL,
    PRIMARY KEY (id, event_id)
) STRICT;

-- Rows that were refused for good. The relay does not read them.
CREATE TABLE {t}outbox_dead (
    id INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    event_id BLOB NOT NULL,
    name TEXT NOT NULL,
    topic TEXT NOT NULL,
    key BLOB,
    content_type TEXT,
    headers TEXT,
    body BLOB NOT NULL,
    occurred_at INTEGER NOT NULL,
    mandatory INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    uncompressed_size INTEGER,
    attempts INTEGER NOT NULL,
    first_failed_at INTEGER NOT NULL,
    last_error TEXT NOT NULL,
    died_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    PRIMARY KEY (id, event_id)
) STRICT;

-- The relays that are alive, by their heartbeat.
CREATE TABLE {t}outbox_relay (
    id BLOB PRIMARY KEY,
    seen_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The owner of the one lane.
CREATE TABLE {t}outbox_lane (
    lane INTEGER PRIMARY KEY,
    owner BLOB,
    epoch INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO {t}outbox_lane (lane) VALUES (0);

-- Messages whose handling is committed, by consumer.
CREATE TABLE {t}inbox (
    consumer TEXT NOT NULL,
    message_id BLOB NOT NULL,
    seen_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    PRIMARY KEY (consumer, message_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX {t}inbox_seen_at ON {t}inbox (seen_at);
