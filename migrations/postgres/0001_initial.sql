-- As in migrations/sqlite, whose comments say what each column and index is for; here is what differs.
--
-- Times are milliseconds since 1970, as the processes give them; what the database itself says of a time is a `timestamptz`.
-- Text is compared byte by byte (COLLATE "C"), so that lists have one order on every server. `body`, `policy` and `metadata` are text
-- and not jsonb: nothing in the database looks into them, and they come back as they were written.

-- One row, locked by every commit until its end, so that the order of revisions is the order of commits.
CREATE TABLE sequence (
    id           smallint PRIMARY KEY CHECK (id = 1),
    revision     bigint NOT NULL CHECK (revision >= 0),
    -- Of which database this was written: the system's identifier and its timeline. Another one means that it was restored, or
    -- failed over.
    lineage      text NOT NULL,
    -- Set while the processes restate what they know after that: names the move, and when it began.
    moving       uuid,
    moving_since timestamptz,
    -- The last revision that anybody is known to have been told, while they do.
    moving_floor bigint NOT NULL DEFAULT 0,
    -- The last move that has ended.
    moved        uuid
);

-- What each revision drew at random. Kept for as long as `changes`, and the last one always.
CREATE TABLE commits (
    revision bigint PRIMARY KEY,
    stamp    bigint NOT NULL,
    time     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX commits_by_time ON commits (time);

CREATE TABLE plans (
    id       text COLLATE "C" PRIMARY KEY,
    revision bigint NOT NULL,
    body     text NOT NULL
);

CREATE TABLE accounts (
    id       text COLLATE "C" PRIMARY KEY,
    plan_id  text COLLATE "C" NOT NULL REFERENCES plans (id),
    revision bigint NOT NULL,
    body     text NOT NULL
);
CREATE INDEX accounts_by_plan ON accounts (plan_id);

CREATE TABLE keys (
    id                bytea PRIMARY KEY CHECK (length(id) = 16),
    account_id        text COLLATE "C" NOT NULL REFERENCES accounts (id),
    name              text COLLATE "C" NOT NULL,
    environment       text NOT NULL CHECK (environment IN ('live', 'test')),
    prefix            text COLLATE "C" NOT NULL,
    status            text NOT NULL CHECK (status IN ('active', 'disabled', 'revoked')),
    create_time       bigint NOT NULL,
    expire_time       bigint,
    auto_renew_millis bigint,
    revision          bigint NOT NULL,
    secret_hash       bytea NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    pepper_id         text COLLATE "C",
    policy            text NOT NULL,
    metadata          text NOT NULL,
    body              text NOT NULL
);
CREATE UNIQUE INDEX keys_by_name ON keys (account_id, name) WHERE status <> 'revoked';
CREATE INDEX keys_by_account ON keys (account_id, id);
CREATE INDEX keys_by_prefix ON keys (prefix);
CREATE INDEX keys_to_renew ON keys (expire_time) WHERE status = 'active' AND auto_renew_millis IS NOT NULL;
CREATE INDEX keys_by_pepper ON keys (pepper_id) WHERE pepper_id IS NOT NULL;

CREATE TABLE retired_secrets (
    hash        bytea PRIMARY KEY CHECK (length(hash) = 32),
    key_id      bytea NOT NULL REFERENCES keys (id),
    pepper_id   text COLLATE "C",
    expire_time bigint NOT NULL,
    revision    bigint NOT NULL
);
CREATE INDEX retired_secrets_by_key ON retired_secrets (key_id, revision);
CREATE INDEX retired_secrets_by_pepper ON retired_secrets (pepper_id) WHERE pepper_id IS NOT NULL;

-- What each revision wrote. Kept for `replicas.log_kept`. The id of a key is its bytes in hexadecimal digits.
CREATE TABLE changes (
    revision bigint NOT NULL,
    entity   text COLLATE "C" NOT NULL CHECK (entity IN ('plan', 'account', 'key')),
    id       text COLLATE "C" NOT NULL,
    PRIMARY KEY (revision, entity, id)
);

CREATE TABLE audit_events (
    revision bigint NOT NULL,
    seq      integer NOT NULL,
    time     bigint NOT NULL,
    actor    text NOT NULL,
    action   text NOT NULL,
    subject  text NOT NULL,
    details  text NOT NULL,
    PRIMARY KEY (revision, seq)
);

CREATE TABLE usage_hourly (
    key_id   bytea NOT NULL,
    hour     bigint NOT NULL,
    verdict  smallint NOT NULL,
    requests bigint NOT NULL,
    credits  bigint NOT NULL,
    PRIMARY KEY (key_id, hour, verdict)
);

CREATE TABLE key_activity (
    key_id         bytea PRIMARY KEY,
    last_used_time bigint NOT NULL,
    last_used_ip   text
);

CREATE TABLE usage_flushes (
    id   bytea PRIMARY KEY,
    time bigint NOT NULL
);
CREATE INDEX usage_flushes_by_time ON usage_flushes (time);

CREATE TABLE budgets (
    id          text COLLATE "C" PRIMARY KEY,
    -- Absent where nothing was granted yet: the row is there to be locked.
    state       text,
    -- Until when no more is granted than checks wait for, because units had to be called back.
    tight_until timestamptz
);

-- Locks: whoever changes or adds a row of a budget here for its own process holds the budget's row, or (operations) takes units
-- only from rows that are its own.
CREATE TABLE leases (
    incarnation bytea NOT NULL CHECK (length(incarnation) = 16),
    budget      text COLLATE "C" NOT NULL,
    slot        bigint NOT NULL,
    cell        bigint NOT NULL,
    units       bigint NOT NULL CHECK (units >= 0),
    base        bigint NOT NULL,
    settled     bigint NOT NULL,
    account     text COLLATE "C" NOT NULL,
    PRIMARY KEY (incarnation, budget, slot, cell)
);
-- Who else holds units of a budget, asked where it runs short.
CREATE INDEX leases_by_budget ON leases (budget);

-- Budgets of which a process is asked to give back what it has not spent.
CREATE TABLE recalls (
    incarnation bytea NOT NULL,
    budget      text COLLATE "C" NOT NULL,
    PRIMARY KEY (incarnation, budget)
);

CREATE TABLE uncertain_hourly (
    account    text COLLATE "C" NOT NULL,
    budget     text COLLATE "C" NOT NULL,
    hour       bigint NOT NULL,
    given_back boolean NOT NULL,
    units      bigint NOT NULL,
    PRIMARY KEY (account, budget, hour, given_back)
);

CREATE TABLE operations (
    account_id  text COLLATE "C" NOT NULL,
    id          bytea NOT NULL CHECK (length(id) = 32),
    key_id      bytea NOT NULL CHECK (length(key_id) = 16),
    environment text NOT NULL CHECK (environment IN ('live', 'test')),
    cost        bigint NOT NULL CHECK (cost >= 0),
    credits     bigint NOT NULL CHECK (credits >= 0),
    charges     text NOT NULL,
    time        bigint NOT NULL,
    refund_time bigint,
    PRIMARY KEY (account_id, id)
);
CREATE INDEX operations_by_time ON operations (time);

-- The processes whose acknowledgement counts.
CREATE TABLE replicas (
    incarnation  bytea PRIMARY KEY CHECK (length(incarnation) = 16),
    name         text NOT NULL,
    fence_millis bigint NOT NULL CHECK (fence_millis > 0),
    -- The number of its last poll, the revision that it had applied then, and when that was.
    beat         bigint NOT NULL,
    acknowledged bigint NOT NULL,
    seen         timestamptz NOT NULL,
    -- Up to when all that it counted is in `usage_hourly`.
    flushed      bigint NOT NULL,
    -- The move for which it has said all that it knew.
    restated     uuid
) WITH (fillfactor = 50);
