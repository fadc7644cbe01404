"""Leases: how many checks wait for the store, and what those feel that don't."""

import time

import keys
import messages
from measure import Contest, spread
from servers import say

# Of its limit, what each key is asked.
SHARE = 0.9
# Before it is counted: until leases follow the demand.
SETTLING_SECONDS = 3
# The server sets its counters once a second.
COUNTERS_SECONDS = 1.2


def waits(tollgate, steady, seconds):
    """The share of checks that waited, of keys that are checked steadily near their limit, by the kind of limit."""
    found = {}
    for kind, capacity, count in keys.STEADY:
        load = [(capacity * SHARE / 60, messages.check_key_request(secret))
                for secret in keys.steady_secrets(kind, capacity, count)]
        before = tollgate.checks(steady.path)
        with steady.sending(tollgate.grpc(), load, SETTLING_SECONDS + seconds + COUNTERS_SECONDS) as answered:
            time.sleep(SETTLING_SECONDS + COUNTERS_SECONDS)
            start = counters(tollgate)
            time.sleep(seconds)
            rounds, waited, checks = (now - then for now, then in zip(counters(tollgate), start))
        sent = answered[0]["sent"]
        tollgate.expect_counted(before, steady.path, sent)
        share = {"keys": count, "checks": checks, "waits": waited, "rounds": rounds, "share": round(waited / checks, 6)}
        found[f"{kind} {capacity}"] = {**share, **answered[0]}
        say(f"{kind} windows of {capacity:,} a minute: {waited} of {checks} checks waited, {share['share']:.3%}")
    return found


def counters(tollgate):
    """Times that the store was asked, that a check waited for it, and checks."""
    page = tollgate.scrape()
    checks = sum(int(float(value)) for name, value in page.items() if name.startswith("tollgate_checks_total"))
    return [int(float(page[f"tollgate_lease_{name}_total"])) for name in ("rounds", "waits")] + [checks]


def half_load(tollgate, generators, steady, secrets, args):
    """Latency at half of what the server reaches on its core, of keys with three limits and of keys without any, in turn."""
    contests = {name: Contest({"tollgate": tollgate}, generator, args.seconds) for name, generator in generators.items()}
    most = {}
    for name, contest in contests.items():
        contest.warm_up()
        most[name] = contest.load("tollgate", contest.requests["tollgate"], 0)
    rate = min(one["per_second"] for one in most.values()) // 2
    rounds = {name: [] for name in contests}
    for number in range(args.rounds):
        for name in contests:
            load = [(rate / len(secrets[name]), messages.check_key_request(secret)) for secret in secrets[name]]
            before = tollgate.checks(steady.path)
            found = steady.send(tollgate.grpc(), load, args.seconds)
            tollgate.expect_counted(before, steady.path, found["sent"])
            rounds[name].append(found)
        say(f"round {number + 1}: " + ", ".join("{} p50 {p50:.0f} p99 {p99:.0f} µs".format(name, **found[-1])
                                                for name, found in rounds.items()))
    return {"per_second": rate, "most": most, "rounds": rounds,
            "summary": {name: {figure: spread([one[figure] for one in found]) for figure in found[0]}
                        for name, found in rounds.items()}}
