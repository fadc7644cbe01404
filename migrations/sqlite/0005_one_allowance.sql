-- An account's allowance is one budget, whatever day its months begin on: under a name of its own for each day, changing the day
-- would give the allowance a second time. Of several, the one that sorts last stays.
UPDATE OR REPLACE budgets SET id = substr(id, 1, instr(id, '//credits/') + 8) WHERE id LIKE '%//credits/%';
UPDATE OR REPLACE leases SET budget = substr(budget, 1, instr(budget, '//credits/') + 8) WHERE budget LIKE '%//credits/%';
UPDATE OR REPLACE uncertain_hourly SET budget = substr(budget, 1, instr(budget, '//credits/') + 8)
    WHERE budget LIKE '%//credits/%';

-- Slots of sliding windows are counted in microseconds.
UPDATE budgets SET state = json_set(
        json_remove(state, '$.sliding.slot_millis'),
        '$.sliding.slot_micros', json_extract(state, '$.sliding.slot_millis') * 1000
    )
    WHERE json_extract(state, '$.sliding.slot_millis') IS NOT NULL;
