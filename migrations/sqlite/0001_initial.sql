-- Times are milliseconds since 1970, hours are whole hours since 1970. A column is what some query filters, orders, joins
-- or must hold unique; the rest of a record is its JSON `body`, to whose object later versions add members that
-- earlier ones pass over. No fact is in both.

-- The last revision. One row, so that the order of revisions is the order of commits.
CREATE TABLE sequence (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL CHECK (revision >= 0)
) STRICT;
INSERT INTO sequence (id, revision) VALUES (1, 0);

CREATE TABLE plans (
    id       TEXT PRIMARY KEY NOT NULL,
    revision INTEGER NOT NULL,
    body     TEXT NOT NULL
) STRICT;

CREATE TABLE accounts (
    id       TEXT PRIMARY KEY NOT NULL,
    plan_id  TEXT NOT NULL REFERENCES plans (id),
    revision INTEGER NOT NULL,
    body     TEXT NOT NULL
) STRICT;
-- Whether a plan is in use, asked when it is deleted.
CREATE INDEX accounts_by_plan ON accounts (plan_id);

-- Rows of keys are never deleted: what was revoked stays. The rowid is what loading splits the table by.
CREATE TABLE keys (
    id                BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    account_id        TEXT NOT NULL REFERENCES accounts (id),
    name              TEXT NOT NULL,
    environment       TEXT NOT NULL CHECK (environment IN ('live', 'test')),
    prefix            TEXT NOT NULL,
    status            TEXT NOT NULL CHECK (status IN ('active', 'disabled', 'revoked')),
    create_time       INTEGER NOT NULL,
    expire_time       INTEGER,
    auto_renew_millis INTEGER,
    revision          INTEGER NOT NULL,
    secret_hash       BLOB NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    pepper_id         TEXT,
    policy            TEXT NOT NULL,
    metadata          TEXT NOT NULL,
    body              TEXT NOT NULL
) STRICT;
-- A name is unique among the keys of an account that are not revoked; also counts those.
CREATE UNIQUE INDEX keys_by_name ON keys (account_id, name) WHERE status <> 'revoked';
-- The keys of an account in the order of their ids, which is how they are listed; the other filters of a list are
-- tried on the rows that this finds. Also the keys of an account whose usage is summed.
CREATE INDEX keys_by_account ON keys (account_id, id);
-- Whose key it is that begins so, over all accounts: what is asked when a part of a secret turns up somewhere. The
-- lists of all accounts by state, environment or time go through the table: their answers are large.
CREATE INDEX keys_by_prefix ON keys (prefix);
-- What is to be renewed next, asked every minute; few keys renew themselves.
CREATE INDEX keys_to_renew ON keys (expire_time) WHERE status = 'active' AND auto_renew_millis IS NOT NULL;
-- Which peppers are still needed, asked at every start; empty where there is no pepper.
CREATE INDEX keys_by_pepper ON keys (pepper_id) WHERE pepper_id IS NOT NULL;

-- Secrets that rotations replaced. A hash is in `keys` or here, once.
CREATE TABLE retired_secrets (
    hash        BLOB PRIMARY KEY NOT NULL CHECK (length(hash) = 32),
    key_id      BLOB NOT NULL REFERENCES keys (id),
    pepper_id   TEXT,
    expire_time INTEGER NOT NULL,
    revision    INTEGER NOT NULL
) STRICT;
-- The last one of a key, read with the key; and all of them, cut short by its next rotation.
CREATE INDEX retired_secrets_by_key ON retired_secrets (key_id, revision);
CREATE INDEX retired_secrets_by_pepper ON retired_secrets (pepper_id) WHERE pepper_id IS NOT NULL;

-- What each revision wrote.
CREATE TABLE changes (
    revision INTEGER NOT NULL,
    entity   TEXT NOT NULL CHECK (entity IN ('plan', 'account', 'key')),
    id       TEXT NOT NULL,
    PRIMARY KEY (revision, entity, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_events (
    revision INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    time     INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    details  TEXT NOT NULL,
    PRIMARY KEY (revision, seq)
) STRICT, WITHOUT ROWID;

-- Sums, clustered by key and hour: a range of hours of one key is read in one go. Here and in `key_activity` no reference
-- is declared: keys stay, and what is of an unknown key is passed over by the statement that writes.
CREATE TABLE usage_hourly (
    key_id   BLOB NOT NULL,
    hour     INTEGER NOT NULL,
    verdict  INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    credits  INTEGER NOT NULL,
    PRIMARY KEY (key_id, hour, verdict)
) STRICT, WITHOUT ROWID;

CREATE TABLE key_activity (
    key_id         BLOB PRIMARY KEY NOT NULL,
    last_used_time INTEGER NOT NULL,
    last_used_ip   TEXT
) STRICT, WITHOUT ROWID;

-- Flushes of usage that have been added, so that none is added twice. Kept for a day.
CREATE TABLE usage_flushes (
    id   BLOB PRIMARY KEY NOT NULL,
    time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- Which are older than a day, asked at every flush.
CREATE INDEX usage_flushes_by_time ON usage_flushes (time);
