-- Checks that were charged under an operation's id, so that none is charged twice. An id is kept as its SHA-256; `charges` is
-- what each budget was charged, as JSON: [[budget, slot, units], …]. Kept for a day, and then overwritten or deleted.
CREATE TABLE operations (
    account_id  TEXT NOT NULL,
    id          BLOB NOT NULL CHECK (length(id) = 32),
    key_id      BLOB NOT NULL CHECK (length(key_id) = 16),
    environment TEXT NOT NULL CHECK (environment IN ('live', 'test')),
    cost        INTEGER NOT NULL CHECK (cost >= 0),
    credits     INTEGER NOT NULL CHECK (credits >= 0),
    charges     TEXT NOT NULL,
    time        INTEGER NOT NULL,
    refund_time INTEGER,
    PRIMARY KEY (account_id, id)
) STRICT;
-- Which are older than a day, asked with every write.
CREATE INDEX operations_by_time ON operations (time);
