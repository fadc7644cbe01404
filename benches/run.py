#!/usr/bin/env python3
"""What a check costs in a whole server, beside a gRPC server that decides nothing. `make bench` runs it.

Tollgate gets a database with a million imported keys, three limits a key, usage and the caller's authentication on. Both
servers run with one worker on one core, the generator on another, in turn: A B A B and so on, because on a shared machine
only pairs of neighbours compare. Shown are the medians of all rounds, and how far they spread. The parts:

  check_key  tollgate.v1.KeyService/CheckKey: speed, latency, and the memory and the loading of all keys
  ext_authz  envoy.service.auth.v3.Authorization/Check, as Envoy asks it
  envoy      a request through Envoy, with Tollgate and without it; skipped where there is no Envoy
  waits      the share of checks that wait for the store, of keys that are checked steadily at 90 % of their limit
  journal    CheckKey with the journal, and without one
  half_load  CheckKey's latency at half of what the server reaches, of keys with three limits and of keys with none

and on a PostgreSQL server that the bench starts:

  replicas    CheckKey with one replica and with three, and the loading of all keys
  statements  what the database is asked, and the share of checks that wait for it, at 90 % of limits of 10,000 a minute
  revocation  how long RevokeKey takes with three replicas
  recovery    how long replicas take to admit again after the database was away

Timing never fails the run. A wrong answer does, and a count that does not add up: a generator may take an error for a
success, so Tollgate's own counters must have grown by exactly what was sent.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import check_key
import envoy
import ext_authz
import keys
import leases
import messages
import replicas
import report
from measure import CONNECTIONS, STREAMS, H2load, Load, Steady, answer_of
from servers import Cli, Server, Tollgate, Wrong, memory_bytes, pin_all_threads, say

ROOT = pathlib.Path(__file__).resolve().parent.parent
SQLITE_PARTS = ("check_key", "ext_authz", "waits", "half_load", "envoy", "journal")
PARTS = (*SQLITE_PARTS, *replicas.PARTS)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Wrong("two cores are needed: one for the server, one for the generator")
    binaries = build()
    about = {"machine": report.machine(ROOT), "options": {"keys": args.keys, "rounds": args.rounds,
             "seconds": args.seconds, "connections": CONNECTIONS, "streams": STREAMS}}
    with contextlib.ExitStack() as cleanup:
        work = pathlib.Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-")))
        bench = Bench(args, binaries, work, server_core=cores[0], client_core=cores[1], cleanup=cleanup)
        found = bench.run()
    out = ROOT / "target" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    for part, figures in found.items():
        (out / f"{part}.json").write_text(json.dumps({**about, **figures}, indent=2) + "\n")
    report.print_report(about, found)
    print(f"\nwritten to {out.relative_to(ROOT)}: {', '.join(f'{part}.json' for part in found)}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be given several times")
    parser.add_argument("--keys", type=positive, default=1_000_000, help="keys to import (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=7, help="rounds of both servers (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=5, help="length of a round, about (default: %(default)s)")
    parser.add_argument("--rate", type=positive, default=1_000,
                        help="requests a second at which Envoy's latency is taken, in hundreds (default: %(default)s)")
    parser.add_argument("--waits-seconds", type=positive, default=60, metavar="SECONDS",
                        help="how long waits are counted for each kind of limit; 60 hold one begin of a fixed window (default: "
                        "%(default)s)")
    parser.add_argument("--quick", action="store_true", help="20,000 keys, 2 rounds of 1 second: whether all of it works")
    parser.add_argument("--data", type=pathlib.Path, metavar="DIR",
                        help="keep the database in this directory, and use the one that is there")
    parser.add_argument("--log", type=pathlib.Path, metavar="FILE", help="append the servers' logs to this file")
    args = parser.parse_args()
    if args.quick:
        args.keys, args.rounds, args.seconds, args.waits_seconds = 20_000, 2, 1, 2
    args.part = args.part or PARTS
    return args


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def build():
    """The release binaries: with link-time optimisation, this takes minutes the first time."""
    say("building (release)")
    names = ("tollgate", "noop", "touch", "load", "steady")
    command = ["cargo", "build", "--release", "--bin", names[0], *(word for name in names[1:] for word in ("--example", name)),
               "--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode != 0:
        raise Wrong("the build failed")
    lines = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
    found = {m["target"]["name"]: m["executable"] for m in lines if m.get("executable")}
    return {name: found[name] for name in names}


class Bench:
    def __init__(self, args, binaries, work, server_core, client_core, cleanup):
        self.args, self.binaries, self.work, self.cleanup = args, binaries, work, cleanup
        self.server_core, self.client_core = server_core, client_core
        self.log = cleanup.enter_context(open(args.log or work / "log", "ab"))
        self.data = args.data or work / "data"
        self.data.mkdir(parents=True, exist_ok=True)

    def run(self):
        found = self.on_sqlite() if set(self.args.part) & set(SQLITE_PARTS) else {}
        if set(self.args.part) & set(replicas.PARTS):
            found.update(replicas.run(self))
        return found

    def on_sqlite(self):
        few = self.few_keys()
        secrets = keys.prepare(self.binaries["tollgate"], self.args.keys, self.data, self.work, self.log, self.cleanup)
        tollgate = self.start(self.data / "bench.sqlite")
        time.sleep(2)
        loaded = check_key.loaded(tollgate, self.log, few)
        pin_all_threads(tollgate.pid, self.server_core)

        checks, edges = self.generators(secrets)
        answers = [answer_of(tollgate, generator, [("authorization", f"Bearer {secrets['caller']}")], self.work)
                   for generator in (checks, edges["raw"])]
        noop = Server([self.binaries["noop"], *map(str, answers)], 10, self.log, self.cleanup, core=self.server_core)
        servers = {"noop": noop, "tollgate": tollgate}
        bytes_of = lambda generator, answer: {"request": len(generator.message), "answer": answer.stat().st_size}

        found = {}
        if "check_key" in self.args.part:
            found["check_key"] = {"message_bytes": bytes_of(checks, answers[0]), "load": loaded,
                                  **check_key.run(servers, checks, self.args, self.work)}
        if "ext_authz" in self.args.part:
            found["ext_authz"] = {"message_bytes": bytes_of(edges["raw"], answers[1]),
                                  **ext_authz.run(servers, edges, self.args)}
        noop.kill()
        found.update(self.leases(tollgate, checks, secrets))
        if "envoy" in self.args.part:
            found.update(envoy.run(self, tollgate, secrets))
        # Last, because it fills the memory.
        if "check_key" in self.args.part:
            found["check_key"]["touched"] = self.touch(tollgate, checks, secrets, loaded, few)
        tollgate.stop()
        if "journal" in self.args.part:
            found["journal"] = self.journal(checks)
        return found

    def journal(self, checks):
        """Two servers on copies of the database, one of which keeps a journal."""
        servers = {}
        for name, options in (("off", ["--limits-journal", "off"]), ("tollgate", [])):
            database = self.work / f"journal-{name}.sqlite"
            shutil.copy(self.data / "bench.sqlite", database)
            servers[name] = Tollgate(self.binaries["tollgate"], database, self.log, self.cleanup, options=options)
            if servers[name].gauge("tollgate_journal_on") != (name == "tollgate"):
                raise Wrong("the journal is not as it was asked for")
            pin_all_threads(servers[name].pid, self.server_core)
        time.sleep(2)
        found = check_key.journal(servers, checks, self.args)
        for server in servers.values():
            server.stop()
        return found

    def leases(self, tollgate, checks, secrets):
        steady = Steady(self.binaries["steady"], checks.headers, self.client_core)
        found = {}
        if "waits" in self.args.part:
            say("waits")
            found["waits"] = {"seconds": self.args.waits_seconds,
                              "limits": leases.waits(tollgate, steady, self.args.waits_seconds)}
        if "half_load" in self.args.part:
            say("half load")
            free = self.check_key_generator(secrets, "free")
            found["half_load"] = leases.half_load(tollgate, {"hot": checks, "free": free}, steady, secrets, self.args)
        return found

    def check_key_generator(self, secrets, name):
        plain = [("content-type", "application/grpc"), ("te", "trailers"), ("authorization", f"Bearer {secrets['caller']}")]
        return H2load([messages.check_key_request(secret) for secret in secrets[name]], plain,
                      self.work, self.client_core, self.log, name)

    def generators(self, secrets):
        """For CheckKey, and for both forms in which Envoy sends headers."""
        caller, hot = secrets["caller"], secrets["hot"]
        checks = self.check_key_generator(secrets, "hot")
        edges = {form: Load(self.binaries["load"], [messages.check_request(secret, form == "raw") for secret in hot],
                            messages.check_headers(caller), self.work, self.client_core) for form in ("raw", "map")}
        return checks, edges

    def start(self, database):
        return Tollgate(self.binaries["tollgate"], database, self.log, self.cleanup)

    def few_keys(self):
        """How many keys a new server has, and what the process takes by itself."""
        database = self.work / "few.sqlite"
        Cli(self.binaries["tollgate"], self.log).bootstrap(database)
        tollgate = self.start(database)
        time.sleep(2)
        few = int(tollgate.metric("tollgate_index_keys")), memory_bytes(tollgate.pid)
        tollgate.stop()
        return few

    def touch(self, tollgate, generator, secrets, loaded, few):
        touched = check_key.touch(self.binaries["touch"], tollgate, generator, secrets["caller"], self.args.keys, self.log)
        bytes_per_key = (memory_bytes(tollgate.pid) - few[1]) / (loaded["keys"] - few[0])
        return {**touched, "bytes_per_key": round(bytes_per_key, 1)}


if __name__ == "__main__":
    try:
        main()
    except (Wrong, subprocess.SubprocessError) as wrong:
        say(f"WRONG: {wrong}")
        sys.exit(1)
