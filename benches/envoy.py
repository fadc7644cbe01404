"""A request through Envoy, with Tollgate as its external authorization and without, as `deploy/envoy.yaml` sets it up.

Envoy answers by itself, so that no upstream takes time. Envoy and Tollgate share one core, so the requests a second are
what that core can do, and the CPU time of the two adds up to it.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from measure import CONNECTIONS, STREAMS, Clock, Load, h2load, percentiles, spread
from messages import client_headers
from servers import ENVIRONMENT, Wrong, pinned, say

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "deploy" / "envoy.yaml"
READY_SECONDS_MAX = 30
# A second, of h2load.
TICKS = 100
# What the shipped file is changed in: the ports, and no upstream. The time limit is another one because timing must not
# fail the run.
CHANGES = [
    (r"address: 127\.0\.0\.1, port_value: 9901 ", "address: 127.0.0.1, port_value: 0 "),
    (r"address: 0\.0\.0\.0, port_value: 10000 ", "address: 127.0.0.1, port_value: 0 "),
    (r"port_value: 50051 ", "port_value: {port} "),
    (r"(?<!_)timeout: 0\.25s", "timeout: 30s"),
    (r"route: \{ cluster: upstream \}", "direct_response: {{ status: 200, body: {{ inline_string: ok }} }}"),
]
FILTER = r"(?s)- name: envoy\.filters\.http\.ext_authz\n.*?(?=- name: envoy\.filters\.http\.router)"


def run(bench, tollgate, secrets):
    """The figures, or none where there is no Envoy."""
    binary = os.environ.get("TOLLGATE_TEST_ENVOY") or ROOT / "target" / "tools" / "bin" / "envoy"
    for needed in (pathlib.Path(binary), CONFIG):
        if not needed.exists():
            say(f"SKIPPED envoy: `{needed}` is not there")
            return {}
    say("envoy")
    start = lambda checked: Envoy(binary, config(tollgate, checked), secrets["caller"], bench)
    envoys = {"plain": start(False), "checked": start(True)}
    contest = Passage(envoys, tollgate, client_headers(secrets["hot"][0]), bench)
    found = contest.run(bench.args)
    for envoy in envoys.values():
        envoy.kill()
    return {"envoy": found}


def config(tollgate, checked):
    text = CONFIG.read_text()
    port = tollgate.grpc().rpartition(":")[2]
    for pattern, replacement in CHANGES + ([] if checked else [(FILTER, "")]):
        text, times = re.subn(pattern, replacement.format(port=port), text)
        if times == 0:
            raise Wrong(f"deploy/envoy.yaml has nothing like `{pattern}`; benches/envoy.py is to follow it")
    return text


def connections_at(rate):
    return max(1, rate // TICKS)


class Envoy:
    """A process with one worker thread."""

    def __init__(self, binary, text, token, bench):
        folder = pathlib.Path(tempfile.mkdtemp(dir=bench.work))
        (folder / "envoy.yaml").write_text(text)
        admin = folder / "admin"
        command = [binary, "--config-path", str(folder / "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart",
                   "--admin-address-path", str(admin), "--log-level", "warning"]
        # Its standard output is the access log, a line each request.
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=bench.log,
                                        env={**ENVIRONMENT, "TOLLGATE_TOKEN": token}, preexec_fn=pinned(bench.server_core))
        bench.cleanup.callback(self.kill)
        self.pid = self.process.pid
        self.address = self._ready(admin)

    def _ready(self, admin):
        """Where it listens, once it does."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Wrong(f"envoy ended with {self.process.returncode}; --log FILE keeps what it says")
            with contextlib.suppress(OSError, urllib.error.URLError, IndexError):
                url = f"http://{admin.read_text()}/listeners?format=json"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    local = json.load(answer)["listener_statuses"][0]["local_address"]["socket_address"]
                return f"{local['address']}:{local['port_value']}"
            time.sleep(0.1)
        raise Wrong("envoy was not ready in time")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Passage:
    """The same requests through one Envoy after the other."""

    def __init__(self, envoys, tollgate, headers, bench):
        self.envoys, self.tollgate, self.headers = envoys, tollgate, headers
        self.core, self.log, self.work = bench.client_core, bench.log, bench.work

    def load(self, name, requests, connections, *options, seconds_max=600):
        envoy, checked = self.envoys[name], name == "checked"
        command = ["h2load", "-n", str(requests), "-c", str(connections), "-m", str(STREAMS), "-t", "1",
                   *(word for header, value in self.headers for word in ("-H", f"{header}: {value}")),
                   *options, f"http://{envoy.address}/v1/tasks/4711"]
        with self.tollgate.counting(Load.path, requests, to="tollgate" if checked else "envoy alone"):
            clock = Clock([envoy.pid, self.tollgate.pid])
            h2load(command, requests, seconds_max, self.core, self.log)
            seconds, client_cpu, *cpu = clock.passed()
        return {"per_second": round(requests / seconds), "client_busy": round(client_cpu / seconds, 3),
                **{f"{whose}_cpu_us": round(one / requests * 1e6, 2) for whose, one in zip(("envoy", "tollgate"), cpu)}}

    def at_rate(self, name, rate, seconds):
        """Latency while there is little to do. h2load sends what is due every 10 ms, so a connection has one request at a time
        and begins a millisecond later than the one before; all at once they would wait for each other."""
        log = self.work / "latency"
        log.unlink(missing_ok=True)
        connections = connections_at(rate)
        self.load(name, connections * TICKS * seconds, connections, f"--rps={TICKS}", "--rate=1", "--rate-period=11ms",
                  f"--log-file={log}")
        return percentiles(log)

    def run(self, args):
        requests = {}
        for name in self.envoys:
            self.load(name, 5_000, CONNECTIONS)
            requests[name] = max(1_000, self.load(name, 10_000, CONNECTIONS)["per_second"] * args.seconds)
        full, calm = ({name: [] for name in self.envoys} for _ in range(2))
        for number in range(args.rounds):
            for name in self.envoys:
                full[name].append(self.load(name, requests[name], CONNECTIONS))
            for name in self.envoys:
                calm[name].append(self.at_rate(name, args.rate, args.seconds))
            say(f"round {number + 1}: " + ", ".join(
                "{} {per_second}/s, Envoy {envoy_cpu_us} + Tollgate {tollgate_cpu_us} µs".format(name, **full[name][-1])
                + ", p50 {p50} p99 {p99} µs".format(**calm[name][-1]) for name in self.envoys))
        return {"rate": connections_at(args.rate) * TICKS, "full": full, "calm": calm,
                "summary": {name: {figure: spread([one[figure] for one in full[name]]) for figure in full[name][0]}
                            | {figure: spread([one[figure] for one in calm[name]]) for figure in calm[name][0]}
                            for name in self.envoys}}
