-- What was granted of each limit and allowance, as `decision::quota` writes it. Rows are never deleted: a clock that jumped
-- ahead and back would otherwise find a window open again that has been spent.
CREATE TABLE budgets (
    id    TEXT PRIMARY KEY NOT NULL,
    state TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What was granted to a process for a slot and is not yet known to be spent or given back. A row of a process that is gone
-- is what it may or may not have spent.
CREATE TABLE leases (
    incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
    budget      TEXT NOT NULL,
    slot        INTEGER NOT NULL,
    units       INTEGER NOT NULL CHECK (units >= 0),
    PRIMARY KEY (incarnation, budget, slot)
) STRICT, WITHOUT ROWID;

-- Those that are settled, which go as soon as they are.
CREATE INDEX leases_settled ON leases (units) WHERE units = 0;

-- What processes that ended without a word had leased and not reported, by the hour in which that was found out.
CREATE TABLE uncertain_hourly (
    budget TEXT NOT NULL,
    hour   INTEGER NOT NULL,
    units  INTEGER NOT NULL,
    PRIMARY KEY (budget, hour)
) STRICT, WITHOUT ROWID;
