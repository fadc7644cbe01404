"""The servers that are measured, and what the system says of their processes."""

import contextlib
import json
import os
import pathlib
import select
import subprocess
import sys
import time
import urllib.request

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Without the settings of whoever runs this.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}


class Wrong(Exception):
    """Something that is not a matter of time."""


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


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

    def grpc(self):
        """Where it serves gRPC."""
        return self.line

    def stop(self):
        """In order, as an operator would."""
        self.process.terminate()
        if self.process.wait(timeout=60) != 0:
            raise Wrong(f"a server ended with {self.process.returncode}; --log FILE keeps what it says")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def database_url(database):
    """Of a SQLite file by its path; what is a URL already stays it."""
    return database if isinstance(database, str) else f"sqlite:{database}"


class Tollgate(Server):
    """Tollgate with one worker, on a database that `bootstrap` has made."""

    def __init__(self, binary, database, log, cleanup, ready_seconds_max=300, options=()):
        super().__init__([binary, "serve", "--database", database_url(database), "--workers", "1",
                          "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--import-timeout", "1h",
                          "--log-format", "json", *options], ready_seconds_max, log, cleanup)
        self.ports = dict(word.split("=", 1) for word in self.line.split() if "=" in word)

    def grpc(self):
        return self.ports["grpc"]

    def scrape(self):
        request = urllib.request.Request(f"http://{self.ports['http']}/metrics", headers={"accept-encoding": "identity"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines()
                        if line and not line.startswith("#"))

    def gauge(self, name):
        """A gauge, once the server has set all of them, which it does every second."""
        time.sleep(1.2)
        return float(self.scrape()[name])

    def metric(self, name):
        """A gauge, once the server has set it."""
        for _ in range(50):
            value = float(self.scrape().get(name, "0"))
            if value > 0:
                return value
            time.sleep(0.1)
        raise Wrong(f"`{name}` stays 0")

    def checks(self, path):
        """How many checks were allowed, how many refused, and how many calls of this path ended otherwise than OK."""
        allowed = denied = failed = 0
        for name, value in self.scrape().items():
            if name.startswith("tollgate_checks_total"):
                if 'verdict="ALLOWED"' in name:
                    allowed += int(float(value))
                else:
                    denied += int(float(value))
            if name.startswith("tollgate_rpc_duration_seconds_count") and path.removeprefix("/") in name:
                failed += 0 if 'code="OK"' in name else int(float(value))
        return allowed, denied, failed

    @contextlib.contextmanager
    def counting(self, path, sent, to="tollgate"):
        """Sees to it that exactly the checks that were sent are counted, and all of them as allowed."""
        before = self.checks(path)
        yield
        self.expect_counted(before, path, sent, to)

    def expect_counted(self, before, path, sent, to="tollgate"):
        """Sees to it that since `before` exactly the checks that were sent are counted, and all of them as allowed."""
        counted = tuple(after - b for after, b in zip(self.checks(path), before))
        if counted != (sent if to == "tollgate" else 0, 0, 0):
            raise Wrong(f"{sent} checks were sent to {to}; counted (allowed, denied, failed): {counted}")


class Cli:
    """Tollgate's commands."""

    def __init__(self, binary, log, endpoint=None, token=None):
        self.binary, self.log, self.env = binary, log, dict(ENVIRONMENT)
        if endpoint is not None:
            self.env.update(TOLLGATE_TOKEN=token, TOLLGATE_ENDPOINT=f"http://{endpoint}")

    def __call__(self, *arguments, seconds_max=60):
        """The JSON that a command answers."""
        done = subprocess.run([self.binary, *arguments, "--output", "json"], env=self.env, check=False,
                              stdout=subprocess.PIPE, stderr=self.log, text=True, timeout=seconds_max)
        if done.returncode != 0:
            raise Wrong(f"`tollgate {' '.join(arguments[:2])}` ended with {done.returncode}: {done.stdout[-500:]}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def bootstrap(self, database):
        return self("bootstrap", "--database", database_url(database))["secret"]
