"""Replicas on PostgreSQL: the price of a check with one and with three, what the database is asked, how long revocations take, and how
long it takes to be back after the database."""

import contextlib
import statistics
import subprocess
import threading
import time

import grpc

import check_key
import keys
import messages
from leases import COUNTERS_SECONDS, SETTLING_SECONDS, SHARE, counters
from measure import Clock, Contest, H2load, Steady, answer_of, summary
from postgres import Postgres
from servers import Cli, Server, Tollgate, Wrong, memory_bytes, pin_all_threads, say

PARTS = ("replicas", "statements", "revocation", "recovery")
REPLICAS = 3
# Keys of one limit a minute: the window, its capacity, and how many.
STEADY = [("fixed", 10_000, 100), ("sliding", 10_000, 100)]
# Keys that are revoked, one after the other.
REVOKED = 200
REVOKE_PATH = "/tollgate.v1.KeyService/RevokeKey"
# Times that the database goes away, for how long each time, and how much longer a replica may take to be back: more than the fence.
OUTAGES = 5
OUTAGE_SECONDS = 8
BACK_SECONDS_MAX = 60


def run(bench):
    """All of these parts that are asked for, on one PostgreSQL server."""
    args, binary = bench.args, bench.binaries["tollgate"]
    postgres = Postgres(bench.log, bench.cleanup)
    subprocess.run([binary, "migrate", "--database", postgres.url()], check=True, stdout=bench.log, stderr=bench.log)
    secrets = keys.fill(binary, postgres.url(), args.keys, STEADY, bench.work, bench.log, bench.cleanup)
    # As in a database that has been there for a while.
    postgres.sql("CHECKPOINT")
    start = lambda: Tollgate(binary, postgres.url(), bench.log, bench.cleanup)
    replicas = [start()]
    time.sleep(2)
    loaded = load_figures(replicas[0], bench.log)
    generator = bench.check_key_generator(secrets, "hot")
    steady = Steady(bench.binaries["steady"], generator.headers, bench.client_core)
    found = {}

    def measure(name):
        for replica in replicas:
            pin_all_threads(replica.pid, bench.server_core)
        if "replicas" in args.part:
            say(f"CheckKey, {name} on PostgreSQL")
            found.setdefault("replicas", {"postgres": postgres.version, "load": loaded})[name] = compare(bench, replicas, generator)
        if "statements" in args.part:
            ways = ("to any", "by key") if len(replicas) > 1 else ("to any",)
            for way in ways:
                title = name if len(ways) == 1 else f"{name}, {way}"
                found.setdefault("statements", {"seconds": args.waits_seconds, "postgres": postgres.version, "limits": {}})
                found["statements"]["limits"].update(statements(postgres, replicas, steady, args.waits_seconds, title, way))

    measure("one")
    replicas += [start() for _ in range(REPLICAS - 1)]
    time.sleep(2)
    measure("three")
    if "revocation" in args.part:
        found["revocation"] = {"postgres": postgres.version, **revocation(binary, replicas, secrets, bench.log)}
    if "recovery" in args.part:
        found["recovery"] = {"postgres": postgres.version, **recovery(binary, postgres, replicas, secrets, bench.log)}
    for replica in replicas:
        replica.stop()
    postgres.stop()
    return found


def load_figures(replica, log):
    """What it took to load the keys."""
    held = int(replica.metric("tollgate_index_keys"))
    found = {"keys": held, "process_start_to_ready_s": round(replica.ready_seconds, 3),
             "index_s": check_key.index_seconds(log), "rss_bytes": memory_bytes(replica.pid),
             "rss_peak_bytes": memory_bytes(replica.pid, "VmHWM")}
    say(f"{held} keys loaded from PostgreSQL in {replica.ready_seconds:.2f} s")
    return found


def compare(bench, replicas, generator):
    """The server that decides nothing, and these, in turn: of several, each with its share of the calls at the same time."""
    answer = answer_of(replicas[0], generator, [header for header in generator.headers if header[0] == "authorization"], bench.work)
    # To Envoy's question, which is not asked here: a frame without a message.
    nothing = bench.work / "nothing"
    nothing.write_bytes(bytes(5))
    noop = Server([bench.binaries["noop"], str(answer), str(nothing)], 10, bench.log, bench.cleanup,
                  core=bench.server_core)
    contest = Several({"noop": noop, "tollgate": replicas[0]}, replicas, generator, bench.args.seconds)
    contest.warm_up()
    rounds = [contest.round(number) for number in range(bench.args.rounds)]
    noop.kill()
    return {"message_bytes": {"request": len(generator.message), "answer": answer.stat().st_size},
            "summary": summary(rounds), "rounds": rounds}


class Several(Contest):
    """Tollgate's part is played by several servers at once."""

    def __init__(self, servers, replicas, generator, seconds):
        super().__init__(servers, generator, seconds)
        self.replicas = replicas

    def load(self, name, requests, turn, *options):
        if name == "noop" or len(self.replicas) == 1:
            return super().load(name, requests, turn, *options)
        each = requests // len(self.replicas)
        path, wrong = self.generator.path, []
        before = [replica.checks(path) for replica in self.replicas]
        clock = Clock([replica.pid for replica in self.replicas])

        def send(replica):
            try:
                self.generator.send(replica.grpc(), each, turn, self.seconds * 20 + 60, *options)
            except (Wrong, subprocess.SubprocessError) as error:
                wrong.append(error)

        threads = [threading.Thread(target=send, args=[replica]) for replica in self.replicas]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise wrong[0]
        seconds, client_cpu, *cpu = clock.passed()
        for replica, then in zip(self.replicas, before):
            replica.expect_counted(then, path, each)
        sent = each * len(self.replicas)
        return {"server": name, "requests": sent, "per_second": round(sent / seconds),
                "cpu_us": round(sum(cpu) / sent * 1e6, 3), "server_busy": round(sum(cpu) / seconds, 3),
                "client_busy": round(client_cpu / seconds, 3)}


def statements(postgres, replicas, steady, seconds, title, way):
    """What the database is asked, and how many checks wait for it, while keys are checked steadily near their limit."""
    found = {}
    for kind, capacity, count in STEADY:
        rate = capacity * SHARE / 60
        asked = [(rate, messages.check_key_request(secret)) for secret in keys.steady_secrets(kind, capacity, count)]
        if way == "by key":
            loads = [asked[number::len(replicas)] for number in range(len(replicas))]
        else:
            loads = [[(rate / len(replicas), message) for _, message in asked] for _ in replicas]
        before = [replica.checks(steady.path) for replica in replicas]
        with contextlib.ExitStack() as sending:
            answered = [sending.enter_context(steady.sending(replica.grpc(), load, SETTLING_SECONDS + seconds + COUNTERS_SECONDS))
                        for replica, load in zip(replicas, loads)]
            time.sleep(SETTLING_SECONDS + COUNTERS_SECONDS)
            start, asked_before = look(replicas), postgres.statements()
            time.sleep(seconds)
            end, asked_after = look(replicas), postgres.statements()
        for replica, then, one in zip(replicas, before, answered):
            replica.expect_counted(then, steady.path, one[0]["sent"])
        rounds, waited, checks = (now - then for now, then in zip(end, start))
        figures = {"keys": count, "checks": checks, "waits": waited, "rounds": rounds, "share": round(waited / checks, 6),
                   "p50": statistics.median(one[0]["p50"] for one in answered), "p99": max(one[0]["p99"] for one in answered)}
        if asked_after is not None:
            by_text = {text: calls - asked_before.get(text, 0) for text, calls in asked_after.items()}
            ranked = sorted(((calls, text) for text, calls in by_text.items() if calls > 0), reverse=True)
            total = sum(by_text.values())
            figures.update(statements=total, per_thousand_checks=round(total / checks * 1000, 3),
                           most=[{"calls": calls, "statement": text[:120]} for calls, text in ranked[:12]])
        found[f"{title}: {kind} {capacity}"] = figures
        say(f"{title}, {kind} windows of {capacity:,} a minute: {waited} of {checks} checks waited; "
            f"{figures.get('per_thousand_checks', 'uncounted')} statements a thousand checks")
    return found


def look(replicas):
    return [sum(figures) for figures in zip(*(counters(replica) for replica in replicas))]


def revocation(binary, replicas, secrets, log):
    """How long RevokeKey takes, with all replicas well; and that none of them admits the key after it."""
    call = Cli(binary, log, replicas[0].grpc(), secrets["operator"])
    made = [create(call, f"revoked {number}") for number in range(REVOKED)]
    with contextlib.ExitStack() as channels:
        opened = [channels.enter_context(grpc.insecure_channel(replica.grpc())) for replica in replicas]
        checks = [check_of(channel, secrets) for channel in opened]
        revokes = [method(channel, REVOKE_PATH) for channel in opened]
        operator = [("authorization", f"Bearer {secrets['operator']}")]
        took = []
        for number, one in enumerate(made):
            if not all(check(one["secret"]) for check in checks):
                raise Wrong("a replica does not know a new key")
            revoke = revokes[number % len(revokes)]
            began = time.monotonic()
            revoke(messages.field(1, one["key"]["id"]), metadata=operator, timeout=30)
            took.append((time.monotonic() - began) * 1000)
            if any(check(one["secret"]) for check in checks):
                raise Wrong("a replica admits a key after RevokeKey returned")
    took.sort()
    found = {"revocations": len(took), "p50_ms": round(took[len(took) // 2], 2), "p99_ms": round(took[len(took) * 99 // 100], 2),
             "max_ms": round(took[-1], 2)}
    say("revocation with {} replicas: p50 {p50_ms} ms, p99 {p99_ms} ms".format(len(replicas), **found))
    return found


def recovery(binary, postgres, replicas, secrets, log):
    """How long each replica takes to admit again once the database takes connections, after it was away for longer than the fence."""
    one = create(Cli(binary, log, replicas[0].grpc(), secrets["operator"]), "recovery")
    took = []
    with contextlib.ExitStack() as channels:
        checks = [check_of(channels.enter_context(grpc.insecure_channel(replica.grpc())), secrets) for replica in replicas]
        for _ in range(OUTAGES):
            back(checks, one["secret"])
            postgres.stop()
            time.sleep(OUTAGE_SECONDS)
            if any(is_admitted(check, one["secret"]) for check in checks):
                raise Wrong("a replica admits a key although its fence has ended")
            postgres.start()
            took += back(checks, one["secret"])
    took.sort()
    found = {"outages": OUTAGES, "median_ms": round(took[len(took) // 2]), "max_ms": round(took[-1])}
    say("after an outage of the database: back in {median_ms} ms, at most {max_ms} ms".format(**found))
    return found


def back(checks, secret):
    """In milliseconds, after how long each of them admits."""
    began, away, took = time.monotonic(), list(checks), []
    while away:
        for check in [check for check in away if is_admitted(check, secret)]:
            away.remove(check)
            took.append((time.monotonic() - began) * 1000)
        if time.monotonic() - began > BACK_SECONDS_MAX:
            raise Wrong("a replica does not come back after an outage of the database")
        time.sleep(0.005)
    return took


def is_admitted(check, secret):
    try:
        return check(secret)
    except grpc.RpcError:
        return False


def create(call, name):
    return call("keys", "create", "--account", "acct_benchfree", "--name", name, "--scope", "tasks:read")


def method(channel, path):
    return channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)


def check_of(channel, secrets):
    """Whether the replica admits a key."""
    check = method(channel, H2load.path)
    caller = [("authorization", f"Bearer {secrets['caller']}")]
    return lambda secret: check(messages.check_key_request(secret)[5:], metadata=caller, timeout=5).startswith(H2load.answer_begins)
