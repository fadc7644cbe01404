-- What was granted to a process for a slot and is not yet known to be spent or given back, as before, and now also by the
-- counter of the process's journal in which it counts what it spends of it, -1 where there is none. Of a process that is gone,
-- `counter - base - settled` is what it spent of `units`; where the counter isn't known, nobody knows.
CREATE TABLE leases_new (
    incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
    budget      TEXT NOT NULL,
    slot        INTEGER NOT NULL,
    cell        INTEGER NOT NULL,
    units       INTEGER NOT NULL CHECK (units >= 0),
    -- What the counter stood at when the row was made.
    base        INTEGER NOT NULL,
    -- Units since then that are known to be spent, and are not among `units` any more.
    settled     INTEGER NOT NULL,
    -- Whose keys spend it.
    account     TEXT NOT NULL,
    PRIMARY KEY (incarnation, budget, slot, cell)
) STRICT, WITHOUT ROWID;
INSERT INTO leases_new (incarnation, budget, slot, cell, units, base, settled, account)
    SELECT incarnation, budget, slot, -1, units, 0, 0, '' FROM leases;
DROP TABLE leases;
ALTER TABLE leases_new RENAME TO leases;
CREATE INDEX leases_settled ON leases (units) WHERE units = 0;

-- The same with the account, by which it is asked for, and with what became of the units. What was noted of accounts before is not known by account.
CREATE TABLE uncertain_new (
    account    TEXT NOT NULL,
    budget     TEXT NOT NULL,
    hour       INTEGER NOT NULL,
    -- 1 where the units were given back, 0 where they count as spent.
    given_back INTEGER NOT NULL CHECK (given_back IN (0, 1)),
    units      INTEGER NOT NULL,
    PRIMARY KEY (account, budget, hour, given_back)
) STRICT, WITHOUT ROWID;
INSERT INTO uncertain_new (account, budget, hour, given_back, units)
    SELECT '', budget, hour, 0, units FROM uncertain_hourly;
DROP TABLE uncertain_hourly;
ALTER TABLE uncertain_new RENAME TO uncertain_hourly;
