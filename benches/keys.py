"""A database with many keys, three limits a key, and the secrets of those that are needed; and keys that are near their limits."""

import hashlib
import itertools
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
# Keys of one limit a minute: the window, its capacity, and how many.
STEADY = [("fixed", 1_000, 100), ("sliding", 1_000, 100), ("fixed", 10_000, 20), ("sliding", 10_000, 20)]


def prepare(binary, keys, data, work, log, cleanup):
    """Makes the database in `data`, unless it is there."""
    kept = data / "secrets.json"
    if kept.exists():
        secrets = json.loads(kept.read_text())
        if secrets["keys"] != keys:
            raise Wrong(f"{data} holds {secrets['keys']} keys: give --keys {secrets['keys']} or another --data")
        if "free" not in secrets:
            raise Wrong(f"{data} was made by an earlier version of this program: give another --data")
        return secrets
    secrets = fill(binary, data / "bench.sqlite", keys, STEADY, work, log, cleanup)
    kept.touch(mode=0o600)
    kept.write_text(json.dumps(secrets))
    return secrets


def fill(binary, database, keys, steady, work, log, cleanup):
    """Makes accounts, plans and keys in an empty database, and tells the secrets."""
    operator = Cli(binary, log).bootstrap(database)
    tollgate = Tollgate(binary, database, log, cleanup)
    call = Cli(binary, log, tollgate.grpc(), operator)
    accounts = plan_and_accounts(call, steady, work)
    import_s = import_keys(call, keys, accounts, steady, work)
    create = lambda account, name, *scopes: call(
        "keys", "create", "--account", account, "--name", name,
        *(word for scope in scopes for word in ("--scope", scope)))["secret"]
    secrets = {"keys": keys, "import_s": import_s, "operator": operator,
               "caller": create("acct_operator", "edge", "tollgate:check"),
               "hot": [create(accounts[0], f"hot key {number}", "tasks:read", "tasks:write")
                       for number in range(HOT_KEYS)],
               "free": [create("acct_benchfree", f"free key {number}", "tasks:read", "tasks:write")
                        for number in range(HOT_KEYS)]}
    tollgate.stop()
    return secrets


def plan_and_accounts(call, steady_groups, work):
    plans = work / "plans.toml"
    limits = [f'{{ name = "per-{period}", capacity = {CAPACITY}, period = "{period}" }}'
              for period in ("minute", "hour", "day")]
    steady = [f'[plans.{steady_name(kind, capacity)}]\nkey_limits = [{{ name = "per-minute", capacity = {capacity}, '
              f'period = "minute", algorithm = "{kind}_window" }}]\n' for kind, capacity, _ in steady_groups]
    plans.write_text(f'[plans.bench]\ndisplay_name = "Bench"\nkey_limits = [{", ".join(limits)}]\n'
                     f'[plans.benchfree]\ndisplay_name = "Without limits"\n{"".join(steady)}')
    call("plans", "apply", str(plans))
    for plan in ["benchfree"] + [steady_name(kind, capacity) for kind, capacity, _ in steady_groups]:
        call("accounts", "create", "--id", f"acct_{plan}", "--name", plan, "--plan", plan)
    accounts = [f"acct_bench{number:04}" for number in range(ACCOUNTS)]
    for account in accounts:
        call("accounts", "create", "--id", account, "--name", f"Bench {account[-4:]}", "--plan", "bench")
    return accounts


def steady_name(kind, capacity):
    return f"steady{kind}{capacity}"


def steady_secrets(kind, capacity, count):
    return [f"{steady_name(kind, capacity)}_{number:07}" for number in range(count)]


def import_keys(call, keys, accounts, steady_groups, work):
    say(f"importing {keys} keys")
    of_accounts = ((f"{SECRET_PREFIX}{number:07}", accounts[number % ACCOUNTS]) for number in range(keys))
    steady = [(secret, f"acct_{steady_name(*group[:2])}") for group in steady_groups for secret in steady_secrets(*group)]
    file = work / "keys.ndjson"
    with open(file, "w", encoding="ascii") as lines:
        for number, (secret, account) in enumerate(itertools.chain(of_accounts, steady)):
            digest = hashlib.sha256(secret.encode()).hexdigest()
            lines.write(f'{{"hash":"{digest}","account_id":"{account}",'
                        f'"name":"production key {number}","prefix":"{secret[:9]}","environment":"live",'
                        f'"scopes":["tasks:read","tasks:write"]}}\n')
    start = time.monotonic()
    report = call("keys", "import", str(file), seconds_max=3600)
    file.unlink()
    if (report["imported"], report["failed"]) != (keys + len(steady), 0):
        raise Wrong(f"the import answered {json.dumps(report)[:500]}")
    took = time.monotonic() - start
    say(f"imported in {took:.1f} s, {keys / took:.0f} a second")
    return round(took, 1)
