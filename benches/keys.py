"""A database with many keys, three limits a key, and the secrets of those that are needed."""

import hashlib
import json
import time

from servers import Cli, Tollgate, Wrong, say

ACCOUNTS = 100
# Keys whose secrets Tollgate made, each the hot key of a round in its turn.
HOT_KEYS = 4
# Of imported keys: this and seven digits.
SECRET_PREFIX = "imported_"
# Never exhausted: a round spends some hundred thousand.
CAPACITY = 1_000_000_000_000


def prepare(binary, keys, data, work, log, cleanup):
    """Makes the database in `data`, unless it is there."""
    kept = data / "secrets.json"
    if kept.exists():
        secrets = json.loads(kept.read_text())
        if secrets["keys"] != keys:
            raise Wrong(f"{data} holds {secrets['keys']} keys: give --keys {secrets['keys']} or another --data")
        return secrets
    database = data / "bench.sqlite"
    operator = Cli(binary, log).bootstrap(database)
    tollgate = Tollgate(binary, database, log, cleanup)
    call = Cli(binary, log, tollgate.grpc(), operator)
    accounts = plan_and_accounts(call, work)
    import_s = import_keys(call, keys, accounts, work)
    create = lambda account, name, *scopes: call(
        "keys", "create", "--account", account, "--name", name,
        *(word for scope in scopes for word in ("--scope", scope)))["secret"]
    secrets = {"keys": keys, "import_s": import_s,
               "caller": create("acct_operator", "edge", "tollgate:check"),
               "hot": [create(accounts[0], f"hot key {number}", "tasks:read", "tasks:write")
                       for number in range(HOT_KEYS)]}
    tollgate.stop()
    kept.touch(mode=0o600)
    kept.write_text(json.dumps(secrets))
    return secrets


def plan_and_accounts(call, work):
    plans = work / "plans.toml"
    limits = [f'{{ name = "per-{period}", capacity = {CAPACITY}, period = "{period}" }}'
              for period in ("minute", "hour", "day")]
    plans.write_text(f'[plans.bench]\ndisplay_name = "Bench"\nkey_limits = [{", ".join(limits)}]\n')
    call("plans", "apply", str(plans))
    accounts = [f"acct_bench{number:04}" for number in range(ACCOUNTS)]
    for account in accounts:
        call("accounts", "create", "--id", account, "--name", f"Bench {account[-4:]}", "--plan", "bench")
    return accounts


def import_keys(call, keys, accounts, work):
    say(f"importing {keys} keys")
    file = work / "keys.ndjson"
    with open(file, "w", encoding="ascii") as lines:
        for number in range(keys):
            digest = hashlib.sha256(f"{SECRET_PREFIX}{number:07}".encode()).hexdigest()
            lines.write(f'{{"hash":"{digest}","account_id":"{accounts[number % ACCOUNTS]}",'
                        f'"name":"production key {number}","prefix":"{SECRET_PREFIX}","environment":"live",'
                        f'"scopes":["tasks:read","tasks:write"]}}\n')
    start = time.monotonic()
    report = call("keys", "import", str(file), seconds_max=3600)
    file.unlink()
    if (report["imported"], report["failed"]) != (keys, 0):
        raise Wrong(f"the import answered {json.dumps(report)[:500]}")
    took = time.monotonic() - start
    say(f"imported in {took:.1f} s, {keys / took:.0f} a second")
    return round(took, 1)
