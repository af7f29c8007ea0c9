-- {t} stands for the schema, if one is set, and the prefix of the tables.

-- Rows that wait for their publish. Inserted once, deleted once confirmed, never updated.
CREATE TABLE {t}outbox (
    lane smallint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    event_id uuid NOT NULL,
    name text NOT NULL,
    topic text NOT NULL,
    key bytea,
    content_type text,
    -- Not jsonb, which sorts the names and refuses U+0000.
    headers json,
    body bytea NOT NULL,
    occurred_at timestamptz NOT NULL,
    mandatory boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Of a body that is a zlib stream. Null: the body is stored as it is.
    uncompressed_size integer,
    PRIMARY KEY (lane, id)
) WITH (
    -- Many dead rows, few live ones: a share of the table says nothing.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0
);

-- Rows of keys that fail now: moved here with their ids, and tried again from next_at on. After a failover that lost
-- rows an id is used again, for another event.
CREATE TABLE {t}outbox_parked (
    LIKE {t}outbox,
    attempts integer NOT NULL,
    next_at timestamptz NOT NULL,
    first_failed_at timestamptz NOT NULL,
    last_error text NOT NULL,
    PRIMARY KEY (lane, id, event_id)
);

-- Rows that were refused for good. The relay does not read them.
CREATE TABLE {t}outbox_dead (
    LIKE {t}outbox,
    attempts integer NOT NULL,
    first_failed_at timestamptz NOT NULL,
    last_error text NOT NULL,
    died_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lane, id, event_id)
);

-- The relays that are alive, by their heartbeat on this server's clock.
CREATE TABLE {t}outbox_relay (
    id uuid PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- The owner of each lane. The epoch grows with each change of the owner.
CREATE TABLE {t}outbox_lane (
    lane smallint PRIMARY KEY,
    owner uuid,
    epoch bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

INSERT INTO {t}outbox_lane (lane) SELECT generate_series(0, 63);

-- Messages whose handling is committed, by consumer.
CREATE TABLE {t}inbox (
    consumer text NOT NULL,
    message_id uuid NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_id)
);

CREATE INDEX ON {t}inbox (seen_at);
