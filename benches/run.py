#!/usr/bin/env python3
"""What a check costs in a whole server, beside a gRPC server that decides nothing. `make bench` runs it.

Tollgate gets a database with a million imported keys, three limits a key, usage and the caller's authentication on. Both
servers run with one worker on one core, h2load on another, in turn: A B A B and so on, because on a shared machine only
pairs of neighbours compare. Shown are the medians of all rounds, and how far they spread.

Timing never fails the run. A wrong answer does, and a count that does not add up: h2load takes a gRPC error for a success,
so Tollgate's own counters must have grown by exactly what was sent.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATH = "/tollgate.v1.KeyService/CheckKey"
CONNECTIONS = 8
STREAMS = 32
ACCOUNTS = 100
# Keys whose secrets Tollgate made, each the hot key of a round in its turn.
HOT_KEYS = 4
# Of imported keys: this and seven digits.
SECRET_PREFIX = "imported_"
# Never exhausted: a round spends some hundred thousand.
CAPACITY = 1_000_000_000_000
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Without the settings of whoever runs this.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}


class Wrong(Exception):
    """Something that is not a matter of time."""


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Wrong("two cores are needed: one for the server, one for the generator")
    binaries = build()
    with contextlib.ExitStack() as cleanup:
        work = pathlib.Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-")))
        bench = Bench(args, binaries, work, server_core=cores[0], client_core=cores[1], cleanup=cleanup)
        report = bench.run()
    out = ROOT / "target" / "bench" / "check_key.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    print(f"\nwritten to {out.relative_to(ROOT)}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=positive, default=1_000_000, help="keys to import (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=7, help="rounds of both servers (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=5, help="length of a round, about (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="20,000 keys, 2 rounds of 1 second: whether all of it works")
    parser.add_argument("--data", type=pathlib.Path, metavar="DIR",
                        help="keep the database in this directory, and use the one that is there")
    parser.add_argument("--log", type=pathlib.Path, metavar="FILE", help="append the servers' logs to this file")
    args = parser.parse_args()
    if args.quick:
        args.keys, args.rounds, args.seconds = 20_000, 2, 1
    return args


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def build():
    """The release binaries: with link-time optimisation, this takes minutes the first time."""
    say("building (release)")
    command = ["cargo", "build", "--release", "--bin", "tollgate", "--example", "noop", "--example", "touch",
               "--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode != 0:
        raise Wrong("the build failed")
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
    found = {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}
    return {name: found[name] for name in ("tollgate", "noop", "touch")}


# Processes


def pinned(core):
    return None if core is None else lambda: os.sched_setaffinity(0, {core})


def pin_all_threads(pid, core):
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), {core})


def cpu_seconds(pid):
    """User and system time of all threads, those that have ended included."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def memory_bytes(pid, field="VmRSS"):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise Wrong(f"no {field} of process {pid}")


class Server:
    """A process that prints a line when it is ready."""

    def __init__(self, command, ready_seconds_max, log, cleanup, core=None):
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=ENVIRONMENT,
                                        preexec_fn=pinned(core))
        cleanup.callback(self.kill)
        self.line = self._first_line(self.started + ready_seconds_max)
        self.ready_seconds = time.monotonic() - self.started
        self.pid = self.process.pid

    def _first_line(self, deadline):
        name, pipe, text = pathlib.Path(self.process.args[0]).name, self.process.stdout.fileno(), b""
        while not text.endswith(b"\n"):
            readable, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise Wrong(f"`{name}` was not ready in time")
            chunk = os.read(pipe, 4096)
            if not chunk:
                raise Wrong(f"`{name}` ended with {self.process.wait()}; --log FILE keeps what it says")
            text += chunk
        return text.decode().strip()

    def stop(self):
        """In order, as an operator would."""
        self.process.terminate()
        if self.process.wait(timeout=60) != 0:
            raise Wrong(f"a server ended with {self.process.returncode}; --log FILE keeps what it says")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


# The messages: https://protobuf.dev/programming-guides/encoding/


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def field(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


def check_key_request(secret):
    """`CheckKeyRequest`, as an edge sends it, framed for gRPC."""
    context = field(1, b"192.0.2.17") + field(3, b"GET") + field(4, b"api.example.com") + field(5, b"/v1/tasks/4711")
    message = field(1, secret.encode()) + field(2, b"tasks:read") + field(6, context)
    return b"\0" + len(message).to_bytes(4, "big") + message


class Bench:
    def __init__(self, args, binaries, work, server_core, client_core, cleanup):
        self.args = args
        self.binaries = binaries
        self.work = work
        self.server_core = server_core
        self.client_core = client_core
        self.cleanup = cleanup
        self.log = cleanup.enter_context(open(args.log or work / "log", "ab"))
        self.data = args.data or work / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.sent = 0

    def run(self):
        few, few_rss = self.few_keys()
        secrets = self.prepare()
        tollgate = self.start(self.data / "bench.sqlite")
        load_seconds = tollgate.ready_seconds
        time.sleep(2)
        rss = memory_bytes(tollgate.pid)
        keys = int(self.metric(tollgate, "tollgate_index_keys"))
        loaded = {"keys": keys, "process_start_to_ready_s": round(load_seconds, 3), "index_s": self.load_log(),
                  "rss_bytes": rss, "rss_peak_bytes": memory_bytes(tollgate.pid, "VmHWM"),
                  "rss_few_keys_bytes": few_rss, "bytes_per_key": round((rss - few_rss) / (keys - few), 1)}
        say(f"{keys} keys loaded in {load_seconds:.2f} s, {loaded['bytes_per_key']} bytes each")

        pin_all_threads(tollgate.pid, self.server_core)
        self.bodies(secrets)
        answer = self.answer(tollgate, secrets)
        noop = Server([self.binaries["noop"], str(answer)], 10, self.log, self.cleanup, core=self.server_core)
        self.servers = {"noop": noop, "tollgate": tollgate}
        self.endpoints = {"noop": noop.line, "tollgate": self.address(tollgate, "grpc")}
        self.headers = ["content-type: application/grpc", "te: trailers", f"authorization: Bearer {secrets['caller']}"]

        rounds = self.rounds()
        half = self.half_load(rounds)
        touched = self.touch(tollgate, secrets["caller"], keys - few)
        touched["bytes_per_key"] = round((memory_bytes(tollgate.pid) - few_rss) / (keys - few), 1)
        noop.kill()
        tollgate.stop()
        return {"machine": machine(), "options": {"keys": self.args.keys, "rounds": self.args.rounds,
                "seconds": self.args.seconds, "connections": CONNECTIONS, "streams": STREAMS},
                "message_bytes": {"request": len(check_key_request(secrets["hot"][0])), "answer": answer.stat().st_size},
                "summary": summary(rounds), "half_load": half, "load": loaded, "touched": touched, "rounds": rounds}

    # Tollgate

    def start(self, database, load_seconds_max=300):
        return Server([self.binaries["tollgate"], "serve", "--database", f"sqlite:{database}", "--workers", "1",
                       "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--import-timeout", "1h",
                       "--log-format", "json"], load_seconds_max, self.log, self.cleanup)

    @staticmethod
    def address(tollgate, port):
        return dict(word.split("=", 1) for word in tollgate.line.split() if "=" in word)[port]

    def command(self, *arguments, token=None, endpoint=None, seconds_max=60):
        """A command of the CLI, and the JSON that it answers."""
        env = dict(ENVIRONMENT)
        if endpoint is not None:
            env.update(TOLLGATE_TOKEN=token, TOLLGATE_ENDPOINT=f"http://{endpoint}")
        done = subprocess.run([self.binaries["tollgate"], *arguments, "--output", "json"], env=env, check=False,
                              stdout=subprocess.PIPE, stderr=self.log, text=True, timeout=seconds_max)
        if done.returncode != 0:
            raise Wrong(f"`tollgate {' '.join(arguments[:2])}` ended with {done.returncode}: {done.stdout[-500:]}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def bootstrap(self, database):
        return self.command("bootstrap", "--database", f"sqlite:{database}")["secret"]

    def few_keys(self):
        """What the process takes by itself."""
        database = self.work / "few.sqlite"
        self.bootstrap(database)
        tollgate = self.start(database)
        time.sleep(2)
        few, rss = int(self.metric(tollgate, "tollgate_index_keys")), memory_bytes(tollgate.pid)
        tollgate.stop()
        return few, rss

    def prepare(self):
        """A database with all the keys, and the secrets that are needed later."""
        kept = self.data / "secrets.json"
        if kept.exists():
            secrets = json.loads(kept.read_text())
            if secrets["keys"] != self.args.keys:
                raise Wrong(f"{self.data} holds {secrets['keys']} keys: give --keys {secrets['keys']} or another --data")
            return secrets
        database = self.data / "bench.sqlite"
        operator = self.bootstrap(database)
        tollgate = self.start(database)
        endpoint = self.address(tollgate, "grpc")
        call = lambda *words, seconds_max=60: self.command(*words, token=operator, endpoint=endpoint,
                                                           seconds_max=seconds_max)
        plans = self.work / "plans.toml"
        limits = [f'{{ name = "per-{period}", capacity = {CAPACITY}, period = "{period}" }}'
                  for period in ("minute", "hour", "day")]
        plans.write_text(f'[plans.bench]\ndisplay_name = "Bench"\nkey_limits = [{", ".join(limits)}]\n')
        call("plans", "apply", str(plans))
        accounts = [f"acct_bench{number:04}" for number in range(ACCOUNTS)]
        for account in accounts:
            call("accounts", "create", "--id", account, "--name", f"Bench {account[-4:]}", "--plan", "bench")

        say(f"importing {self.args.keys} keys")
        start = time.monotonic()
        file = self.work / "keys.ndjson"
        with open(file, "w", encoding="ascii") as lines:
            for number in range(self.args.keys):
                digest = hashlib.sha256(f"{SECRET_PREFIX}{number:07}".encode()).hexdigest()
                lines.write(f'{{"hash":"{digest}","account_id":"{accounts[number % ACCOUNTS]}",'
                            f'"name":"production key {number}","prefix":"{SECRET_PREFIX}","environment":"live",'
                            f'"scopes":["tasks:read","tasks:write"]}}\n')
        start = time.monotonic()
        report = call("keys", "import", str(file), seconds_max=3600)
        file.unlink()
        if (report["imported"], report["failed"]) != (self.args.keys, 0):
            raise Wrong(f"the import answered {json.dumps(report)[:500]}")
        took = time.monotonic() - start
        say(f"imported in {took:.1f} s, {self.args.keys / took:.0f} a second")

        create = lambda account, name, *scopes: call(
            "keys", "create", "--account", account, "--name", name,
            *(word for scope in scopes for word in ("--scope", scope)))["secret"]
        secrets = {"keys": self.args.keys, "import_s": round(took, 1),
                   "caller": create("acct_operator", "edge", "tollgate:check"),
                   "hot": [create(accounts[0], f"hot key {number}", "tasks:read", "tasks:write")
                           for number in range(HOT_KEYS)]}
        tollgate.stop()
        kept.touch(mode=0o600)
        kept.write_text(json.dumps(secrets))
        return secrets

    def load_log(self):
        """What the server itself says that filling the index took."""
        self.log.flush()
        for line in reversed(pathlib.Path(self.log.name).read_text(errors="replace").splitlines()):
            with contextlib.suppress(ValueError, AttributeError):
                entry = json.loads(line)
                entry = {**entry, **entry.get("fields", {})}
                if "took_ms" in entry:
                    return entry["took_ms"] / 1000
        return None

    def scrape(self, tollgate):
        request = urllib.request.Request(f"http://{self.address(tollgate, 'http')}/metrics",
                                         headers={"accept-encoding": "identity"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines()
                        if line and not line.startswith("#"))

    def metric(self, tollgate, name):
        """A gauge, once the server has set it."""
        for _ in range(50):
            value = float(self.scrape(tollgate).get(name, "0"))
            if value > 0:
                return value
            time.sleep(0.1)
        raise Wrong(f"`{name}` stays 0")

    def checks(self, tollgate):
        """How many checks were allowed, how many refused, and how many calls ended otherwise than OK."""
        allowed = denied = failed = 0
        for name, value in self.scrape(tollgate).items():
            if name.startswith("tollgate_checks_total"):
                if 'verdict="ALLOWED"' in name:
                    allowed += int(float(value))
                else:
                    denied += int(float(value))
            if name.startswith("tollgate_rpc_duration_seconds_count") and "KeyService/CheckKey" in name:
                failed += 0 if 'code="OK"' in name else int(float(value))
        return allowed, denied, failed

    # The generator

    def bodies(self, secrets):
        for number, secret in enumerate(secrets["hot"]):
            (self.work / f"request{number}").write_bytes(check_key_request(secret))

    def answer(self, tollgate, secrets):
        """A real answer, for the other server to give."""
        file = self.work / "answer"
        url = f"http://{self.address(tollgate, 'grpc')}{PATH}"
        subprocess.run(["curl", "--silent", "--show-error", "--fail", "--http2-prior-knowledge", "--max-time", "10",
                        "--header", "content-type: application/grpc", "--header", "te: trailers",
                        "--header", f"authorization: Bearer {secrets['caller']}",
                        "--data-binary", f"@{self.work / 'request0'}", "--output", str(file), url], check=True)
        frame = file.read_bytes()
        # `allowed` is the first field.
        if not frame[5:].startswith(b"\x08\x01"):
            raise Wrong(f"the first check was answered {frame!r}")
        self.sent += 1
        return file

    def h2load(self, server, requests, body, *options):
        command = ["h2load", "-n", str(requests), "-c", str(CONNECTIONS), "-m", str(STREAMS), "-t", "1",
                   "-d", str(self.work / f"request{body}"), *(word for h in self.headers for word in ("-H", h)),
                   *options, f"http://{self.endpoints[server]}{PATH}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True,
                                   preexec_fn=pinned(self.client_core))
        try:
            text, _ = process.communicate(timeout=self.args.seconds * 20 + 60)
        finally:
            if process.poll() is None:
                process.kill()
        counts = next((line for line in text.splitlines() if line.startswith("requests:")), "")
        if process.returncode != 0 or f" {requests} succeeded, 0 failed, 0 errored, 0 timeout" not in counts:
            raise Wrong(f"h2load on {server} ended with {process.returncode}: {counts or text[-500:]}")

    def load(self, server, requests, body, *options):
        """Sends so many requests. Tells what they took, and sees to it that each was counted."""
        process, tollgate = self.servers[server], self.servers["tollgate"]
        before, cpu = self.checks(tollgate), cpu_seconds(process.pid)
        usage, start = os.times(), time.monotonic()
        self.h2load(server, requests, body, *options)
        seconds, client = time.monotonic() - start, os.times()
        cpu = cpu_seconds(process.pid) - cpu
        client_cpu = client.children_user + client.children_system - usage.children_user - usage.children_system
        counted = tuple(after - b for after, b in zip(self.checks(tollgate), before))
        if counted != (requests if server == "tollgate" else 0, 0, 0):
            raise Wrong(f"{requests} checks were sent to {server}; counted (allowed, denied, failed): {counted}")
        return {"server": server, "requests": requests, "per_second": round(requests / seconds),
                "cpu_us": round(cpu / requests * 1e6, 3), "server_busy": round(cpu / seconds, 3),
                "client_busy": round(client_cpu / seconds, 3)}

    def rounds(self):
        requests = {}
        for server in self.servers:
            self.load(server, 20_000, 0)
            requests[server] = max(1_000, self.load(server, 50_000, 0)["per_second"] * self.args.seconds)
        rounds = []
        for number in range(self.args.rounds):
            pair = [self.load(server, requests[server], number % HOT_KEYS) for server in self.servers]
            rounds.append(pair)
            say("round {}: ".format(number + 1) + ", ".join(
                "{server} {per_second}/s {cpu_us:.2f} µs (server {server_busy:.0%}, h2load {client_busy:.0%})".format(**r)
                for r in pair))
        return rounds

    def half_load(self, rounds):
        """Latency at one rate for both, half of what the slower one reaches."""
        rate = min(statistics.median(pair[i]["per_second"] for pair in rounds) for i in range(2)) / 2
        rate_per_connection = max(1, round(rate / CONNECTIONS))
        half = {"per_second": rate_per_connection * CONNECTIONS}
        latencies = {server: [] for server in self.servers}
        for number in range(max(2, self.args.rounds // 2)):
            for server in self.servers:
                log = self.work / "latency"
                log.unlink(missing_ok=True)
                requests = rate_per_connection * CONNECTIONS * self.args.seconds
                self.load(server, requests, number % HOT_KEYS, f"--rps={rate_per_connection}", f"--log-file={log}")
                took = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
                latencies[server].append({f"p{p}": took[len(took) * p // 100] for p in (50, 99)})
        for server, found in latencies.items():
            half[server] = {name: statistics.median(one[name] for one in found) for name in ("p50", "p99")}
        return half

    def touch(self, tollgate, caller, keys):
        """Uses every imported key once."""
        say("checking every key once")
        imported = self.args.keys
        before, cpu = self.checks(tollgate), cpu_seconds(tollgate.pid)
        start = time.monotonic()
        subprocess.run([self.binaries["touch"], self.address(tollgate, "grpc"), SECRET_PREFIX, str(imported)],
                       input=caller, text=True, check=True, timeout=600, stderr=self.log,
                       preexec_fn=pinned(self.client_core))
        seconds, cpu = time.monotonic() - start, cpu_seconds(tollgate.pid) - cpu
        counted = tuple(after - b for after, b in zip(self.checks(tollgate), before))
        if counted != (imported, 0, 0):
            raise Wrong(f"{imported} checks were sent; counted (allowed, denied, failed): {counted}")
        flushed = self.wait_for_flush(tollgate, keys)
        return {"checks": imported, "per_second": round(imported / seconds), "cpu_us": round(cpu / imported * 1e6, 3),
                "flush_s": flushed}

    def wait_for_flush(self, tollgate, keys):
        """Seconds until the usage of all keys is in the store."""
        start = time.monotonic()
        limit = 60 + keys / 5_000
        while time.monotonic() - start < limit:
            time.sleep(1.1)
            if float(self.scrape(tollgate)["tollgate_usage_pending_rows"]) == 0:
                # What was taken out last is written within a second or two.
                time.sleep(2)
                return round(time.monotonic() - start, 1)
        raise Wrong(f"usage is not in the store after {limit:.0f} s")


# The report


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(rounds):
    found = {pair_member["server"]: {name: spread([pair[i][name] for pair in rounds])
                                     for name in ("per_second", "cpu_us", "server_busy", "client_busy")}
             for i, pair_member in enumerate(rounds[0])}
    noop, tollgate = (0, 1)
    # Requests per CPU second, Tollgate to no-op, neighbour by neighbour.
    found["ratio_per_cpu_second"] = spread([round(pair[noop]["cpu_us"] / pair[tollgate]["cpu_us"], 4) for pair in rounds])
    found["ratio_throughput"] = spread([round(pair[tollgate]["per_second"] / pair[noop]["per_second"], 4)
                                        for pair in rounds])
    return found


def machine():
    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    tool = lambda *command: subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "rustc": tool("rustc", "--version"),
            "h2load": tool("h2load", "--version"), "load_average": os.getloadavg()[0]}


def print_report(report):
    found, half, load, touched = report["summary"], report["half_load"], report["load"], report["touched"]
    cell = lambda values, form: "{} ({}-{})".format(*(form.format(values[k]) for k in ("median", "min", "max")))
    rows = [("", "no-op", "Tollgate", "ratio")]
    rows.append(("requests a second", cell(found["noop"]["per_second"], "{:,.0f}"),
                 cell(found["tollgate"]["per_second"], "{:,.0f}"), cell(found["ratio_throughput"], "{:.2f}")))
    rows.append(("CPU µs a request", cell(found["noop"]["cpu_us"], "{:.2f}"), cell(found["tollgate"]["cpu_us"], "{:.2f}"),
                 cell(found["ratio_per_cpu_second"], "{:.2f}")))
    for p in ("p50", "p99"):
        rows.append((f"{p} µs at {half['per_second']:,} a second", f"{half['noop'][p]:,.0f}",
                     f"{half['tollgate'][p]:,.0f}", ""))
    rows.append((f"load {load['keys']:,} keys", "", f"{load['process_start_to_ready_s']:.2f} s", ""))
    rows.append(("memory a key", "", f"{load['bytes_per_key']:.0f} bytes", ""))
    rows.append(("the same once all were used", "", f"{touched['bytes_per_key']:.0f} bytes", ""))
    rows.append(("CPU µs a check, each of another key", "", f"{touched['cpu_us']:.2f}", ""))
    print(f"\n{report['machine']['cpu']}, {report['machine']['cores']} cores, Linux {report['machine']['kernel']}; "
          f"median (range) of {report['options']['rounds']} rounds; request {report['message_bytes']['request']}, "
          f"answer {report['message_bytes']['answer']} bytes\n")
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([row[0].ljust(widths[0])] + [row[i].rjust(widths[i]) for i in range(1, 4)]).rstrip())
    for server in ("noop", "tollgate"):
        if found[server]["server_busy"]["median"] < 0.9:
            print(f"\nnote: {server}'s core was not full ({found[server]['server_busy']['median']:.0%}): its requests a "
                  "second are the generator's or the machine's, and only the CPU time compares")


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        say(f"WRONG: {wrong}")
        sys.exit(1)
    except subprocess.SubprocessError as error:
        say(f"WRONG: {error}")
        sys.exit(1)
