-- {t} stands for the database, if one is set, and the prefix of the tables. Times are microseconds since
-- 1970-01-01 UTC. MySQL commits each of these statements: all may run again after a failure.

-- Rows that wait for their publish. Inserted once, deleted once confirmed, never updated.
CREATE TABLE IF NOT EXISTS {t}outbox (
    lane smallint NOT NULL,
    id bigint NOT NULL AUTO_INCREMENT,
    event_id binary(16) NOT NULL,
    name longtext NOT NULL,
    topic longtext NOT NULL,
    `key` longblob,
    content_type longtext,
    -- Not json, which sorts the names.
    headers longtext,
    body longblob NOT NULL,
    occurred_at bigint NOT NULL,
    mandatory boolean NOT NULL,
    created_at bigint NOT NULL,
    -- Of a body that is a zlib stream. Null: the body is stored as it is.
    uncompressed_size int,
    -- Read without the body, which is not in the row if it is large.
    size bigint GENERATED ALWAYS AS (COALESCE(uncompressed_size, LENGTH(body))) STORED,
    PRIMARY KEY (lane, id),
    -- AUTO_INCREMENT needs an index that begins with it.
    UNIQUE KEY (id)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Rows of keys that fail now: moved here with their ids, and tried again from next_at on.
CREATE TABLE IF NOT EXISTS {t}outbox_parked (
    lane smallint NOT NULL,
    id bigint NOT NULL,
    event_id binary(16) NOT NULL,
    name longtext NOT NULL,
    topic longtext NOT NULL,
    `key` longblob,
    content_type longtext,
    headers longtext,
    body longblob NOT NULL,
    occurred_at bigint NOT NULL,
    mandatory boolean NOT NULL,
    created_at bigint NOT NULL,
    uncompressed_size int,
    size bigint GENERATED ALWAYS AS (COALESCE(uncompressed_size, LENGTH(body))) STORED,
    attempts int NOT NULL,
    next_at bigint NOT NULL,
    first_failed_at bigint NOT NULL,
    last_error longtext NOT NULL,
    -- After a failover that lost the end of the sequence, ids are used again.
    PRIMARY KEY (lane, id, event_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Rows that were refused for good. The relay does not read them.
CREATE TABLE IF NOT EXISTS {t}outbox_dead (
    lane smallint NOT NULL,
    id bigint NOT NULL,
    event_id binary(16) NOT NULL,
    name longtext NOT NULL,
    topic longtext NOT NULL,
    `key` longblob,
    content_type longtext,
    headers longtext,
    body longblob NOT NULL,
    occurred_at bigint NOT NULL,
    mandatory boolean NOT NULL,
    created_at bigint NOT NULL,
    uncompressed_size int,
    attempts int NOT NULL,
    first_failed_at bigint NOT NULL,
    last_error longtext NOT NULL,
    died_at bigint NOT NULL,
    PRIMARY KEY (lane, id, event_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The relays that are alive, by their heartbeat on this server's clock.
CREATE TABLE IF NOT EXISTS {t}outbox_relay (
    id binary(16) NOT NULL PRIMARY KEY,
    seen_at bigint NOT NULL
) ENGINE = InnoDB;

-- The owner of each lane. The epoch grows with each change of the owner.
CREATE TABLE IF NOT EXISTS {t}outbox_lane (
    lane smallint NOT NULL PRIMARY KEY,
    owner binary(16),
    epoch bigint NOT NULL DEFAULT 0
) ENGINE = InnoDB;

INSERT IGNORE INTO {t}outbox_lane (lane) VALUES
    (0), (1), (2), (3), (4), (5), (6), (7), (8), (9), (10), (11), (12), (13), (14), (15),
    (16), (17), (18), (19), (20), (21), (22), (23), (24), (25), (26), (27), (28), (29), (30), (31),
    (32), (33), (34), (35), (36), (37), (38), (39), (40), (41), (42), (43), (44), (45), (46), (47),
    (48), (49), (50), (51), (52), (53), (54), (55), (56), (57), (58), (59), (60), (61), (62), (63);

-- Messages whose handling is committed, by consumer.
CREATE TABLE IF NOT EXISTS {t}inbox (
    -- UTF-8. Not a text, whose blanks at the end do not count.
    consumer varbinary(1020) NOT NULL,
    message_id binary(16) NOT NULL,
    seen_at bigint NOT NULL,
    PRIMARY KEY (consumer, message_id),
    KEY seen_at (seen_at)
) ENGINE = InnoDB;
