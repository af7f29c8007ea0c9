-- Rows that are published, by the day (UTC) of their delete. Without a partition, and empty, unless a relay keeps a
-- history: it makes and drops the partitions.
CREATE TABLE {t}outbox_done (
    LIKE {t}outbox,
    done_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (done_at);
