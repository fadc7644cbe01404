"""Load on one server after the other, what it takes of them, and the medians."""

import contextlib
import json
import os
import statistics
import subprocess
import time

from messages import STREAM_ID
from servers import Wrong, cpu_seconds, pinned, say

CONNECTIONS = 8
STREAMS = 32


class H2load:
    """CheckKey, always the same message."""

    name = "h2load"
    path = "/tollgate.v1.KeyService/CheckKey"
    # `allowed` is the first field of the answer.
    answer_begins = b"\x08\x01"

    def __init__(self, messages, headers, work, core, log, keys):
        self.files = [work / f"check_key_{keys}_{number}" for number in range(len(messages))]
        for file, message in zip(self.files, messages):
            file.write_bytes(message)
        self.message, self.headers, self.core, self.log = messages[0], headers, core, log

    def send(self, endpoint, requests, turn, seconds_max, *options):
        file = self.files[turn % len(self.files)]
        command = ["h2load", "-n", str(requests), "-c", str(CONNECTIONS), "-m", str(STREAMS), "-t", "1", "-d", str(file),
                   *(word for name, value in self.headers for word in ("-H", f"{name}: {value}")),
                   *options, f"http://{endpoint}{self.path}"]
        h2load(command, requests, seconds_max, self.core, self.log)


class Load:
    """Envoy's Check, with another number of the stream each time, as by Envoy."""

    name = "load"
    path = "/envoy.service.auth.v3.Authorization/Check"
    # An empty `status` is the first field of the answer: its code is 0.
    answer_begins = b"\x0a\x00"
    # Of all generators: the same number again would be a call that is sent again.
    next_id = int(STREAM_ID) + 1

    def __init__(self, binary, messages, headers, work, core):
        self.binary, self.messages, self.headers = binary, messages, headers
        self.message, self.file, self.core = messages[0], work / "check", core

    def send(self, endpoint, requests, turn, seconds_max):
        stream = str(Load.next_id)
        Load.next_id += requests
        self.file.write_bytes(self.messages[turn % len(self.messages)].replace(STREAM_ID.encode(), stream.encode()))
        done = subprocess.run([self.binary, endpoint, str(self.file), str(requests), stream], check=False, text=True,
                              input="".join(f"{name}: {value}\n" for name, value in self.headers),
                              stderr=subprocess.PIPE, timeout=seconds_max, preexec_fn=pinned(self.core))
        if done.returncode != 0:
            raise Wrong(f"the generator ended with {done.returncode}: {done.stderr.strip()[-500:]}")


class Steady:
    """CheckKey of many keys, each at a rate of its own, however long answers take."""

    path = H2load.path

    def __init__(self, binary, headers, core):
        self.binary, self.core = binary, core
        # What every gRPC call has, the generator adds.
        self.headers = [header for header in headers if header[0] not in ("content-type", "te")]

    @contextlib.contextmanager
    def sending(self, endpoint, load, seconds):
        """`load` is pairs of calls a second and a message. Gives a list that holds what was found once the calls have ended."""
        head = "".join(f"{name}: {value}\n" for name, value in self.headers)
        keys = "".join(f"{rate} {message.hex()}\n" for rate, message in load)
        process = subprocess.Popen([self.binary, endpoint, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, preexec_fn=pinned(self.core))
        found = []
        try:
            process.stdin.write(f"{head}\n{keys}")
            process.stdin.close()
            process.stdin = None
            yield found
            text, wrong = process.communicate(timeout=seconds + 120)
        finally:
            if process.poll() is None:
                process.kill()
        if process.returncode != 0:
            raise Wrong(f"the generator ended with {process.returncode}: {wrong.strip()[-500:]}")
        found.append(json.loads(text))

    def send(self, endpoint, load, seconds):
        with self.sending(endpoint, load, seconds) as found:
            pass
        return found[0]


def h2load(command, requests, seconds_max, core, log):
    """Runs it, and sees to it that all requests succeeded."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=pinned(core))
    try:
        text, _ = process.communicate(timeout=seconds_max)
    finally:
        if process.poll() is None:
            process.kill()
    line = lambda start: next((line for line in text.splitlines() if line.startswith(start)), "")
    if (process.returncode != 0 or f" {requests} succeeded, 0 failed, 0 errored, 0 timeout" not in line("requests:")
            or f" {requests} 2xx" not in line("status codes:")):
        raise Wrong(f"h2load ended with {process.returncode}: {line('requests:') or text[-500:]} {line('status codes:')}")


def answer_of(tollgate, generator, headers, work):
    """A real answer, for the other server to give: the file that holds it."""
    question, answer = work / "question", work / f"answer_of_{generator.name}"
    question.write_bytes(generator.message)
    subprocess.run(["curl", "--silent", "--show-error", "--fail", "--http2-prior-knowledge", "--max-time", "10",
                    "--header", "content-type: application/grpc", "--header", "te: trailers",
                    *(word for name, value in headers for word in ("--header", f"{name}: {value}")),
                    "--data-binary", f"@{question}", "--output", str(answer),
                    f"http://{tollgate.grpc()}{generator.path}"], check=True)
    frame = answer.read_bytes()
    if not frame[5:].startswith(generator.answer_begins):
        raise Wrong(f"the first check was answered {frame!r}")
    return answer


class Clock:
    """What passes of time, of processes' CPU and of the generator's between two looks."""

    def __init__(self, pids):
        self.pids = pids
        self.before = self._look()

    def _look(self):
        times = os.times()
        return [time.monotonic(), times.children_user + times.children_system, *(cpu_seconds(pid) for pid in self.pids)]

    def passed(self):
        return [now - before for now, before in zip(self._look(), self.before)]


class Contest:
    """The servers that answer the same question."""

    def __init__(self, servers, generator, seconds):
        self.servers, self.generator, self.seconds = servers, generator, seconds
        self.requests = {}

    def load(self, name, requests, turn, *options):
        """Sends so many requests. Tells what they took, and sees to it that each was counted."""
        server = self.servers[name]
        with self.servers["tollgate"].counting(self.generator.path, requests, to=name):
            clock = Clock([server.pid])
            self.generator.send(server.grpc(), requests, turn, self.seconds * 20 + 60, *options)
            seconds, client_cpu, cpu = clock.passed()
        return {"server": name, "requests": requests, "per_second": round(requests / seconds),
                "cpu_us": round(cpu / requests * 1e6, 3), "server_busy": round(cpu / seconds, 3),
                "client_busy": round(client_cpu / seconds, 3)}

    def warm_up(self):
        for name in self.servers:
            self.load(name, 20_000, 0)
            self.requests[name] = max(1_000, self.load(name, 50_000, 0)["per_second"] * self.seconds)

    def round(self, number):
        pair = [self.load(name, self.requests[name], number) for name in self.servers]
        say("round {}: ".format(number + 1) + ", ".join(
            "{server} {per_second}/s {cpu_us:.2f} µs (server {server_busy:.0%}, generator {client_busy:.0%})".format(**r)
            for r in pair))
        return pair

    def half_load(self, rounds, work):
        """Latency at one rate for both, half of what the slower one reaches."""
        rate = min(statistics.median(pair[i]["per_second"] for pair in rounds) for i in range(2)) / 2
        rate_per_connection = max(1, round(rate / CONNECTIONS))
        half = {"per_second": rate_per_connection * CONNECTIONS}
        latencies = {name: [] for name in self.servers}
        for number in range(max(2, len(rounds) // 2)):
            for name in self.servers:
                log = work / "latency"
                log.unlink(missing_ok=True)
                requests = rate_per_connection * CONNECTIONS * self.seconds
                self.load(name, requests, number, f"--rps={rate_per_connection}", f"--log-file={log}")
                latencies[name].append(percentiles(log))
        return {**half, **{name: medians(found) for name, found in latencies.items()}}


def percentiles(log):
    """In microseconds, of a log of h2load."""
    took = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    return {f"p{p}": took[len(took) * p // 100] for p in (50, 99)}


def medians(found):
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


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
