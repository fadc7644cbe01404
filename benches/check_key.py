"""CheckKey: the price of a check, of a million keys, and of checking each of them once."""

import json
import pathlib
import contextlib
import subprocess
import time

import keys
from measure import Clock, Contest, summary
from servers import Wrong, memory_bytes, pinned, say


def loaded(tollgate, log, few):
    """What it took to load the keys, `few` being the number and the memory of a server with hardly any."""
    rss = memory_bytes(tollgate.pid)
    held = int(tollgate.metric("tollgate_index_keys"))
    found = {"keys": held, "process_start_to_ready_s": round(tollgate.ready_seconds, 3), "index_s": index_seconds(log),
             "rss_bytes": rss, "rss_peak_bytes": memory_bytes(tollgate.pid, "VmHWM"), "rss_few_keys_bytes": few[1],
             "bytes_per_key": round((rss - few[1]) / (held - few[0]), 1)}
    say(f"{held} keys loaded in {tollgate.ready_seconds:.2f} s, {found['bytes_per_key']} bytes each")
    return found


def index_seconds(log):
    """What the server itself says that filling the index took."""
    log.flush()
    for line in reversed(pathlib.Path(log.name).read_text(errors="replace").splitlines()):
        with contextlib.suppress(ValueError, AttributeError):
            entry = json.loads(line)
            entry = {**entry, **entry.get("fields", {})}
            if "took_ms" in entry:
                return entry["took_ms"] / 1000
    return None


def run(servers, generator, args, work):
    say("CheckKey")
    contest, rounds = compare(servers, generator, args)
    return {"summary": summary(rounds), "half_load": contest.half_load(rounds, work), "rounds": rounds}


def journal(servers, generator, args):
    say("CheckKey, without a journal and with one")
    _, rounds = compare(servers, generator, args)
    return {"summary": summary(rounds), "rounds": rounds}


def compare(servers, generator, args):
    contest = Contest(servers, generator, args.seconds)
    contest.warm_up()
    return contest, [contest.round(number) for number in range(args.rounds)]


def touch(binary, tollgate, generator, caller, imported, log):
    """Uses every imported key once."""
    say("checking every key once")
    with tollgate.counting(generator.path, imported):
        clock = Clock([tollgate.pid])
        subprocess.run([binary, tollgate.grpc(), keys.SECRET_PREFIX, str(imported)], input=caller, text=True, check=True,
                       timeout=600, stderr=log, preexec_fn=pinned(generator.core))
        seconds, _, cpu = clock.passed()
    return {"checks": imported, "per_second": round(imported / seconds), "cpu_us": round(cpu / imported * 1e6, 3),
            "flush_s": wait_for_flush(tollgate, imported)}


def wait_for_flush(tollgate, imported):
    """Seconds until the usage of all keys is in the store."""
    start = time.monotonic()
    limit = 60 + imported / 5_000
    while time.monotonic() - start < limit:
        time.sleep(1.1)
        if float(tollgate.scrape()["tollgate_usage_pending_rows"]) == 0:
            # What was taken out last is written within a second or two.
            time.sleep(2)
            return round(time.monotonic() - start, 1)
    raise Wrong(f"usage is not in the store after {limit:.0f} s")
