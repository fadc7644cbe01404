"""The figures, for people."""

import os
import pathlib
import platform
import subprocess


def machine(root):
    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    tool = lambda *command: subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "rustc": tool("rustc", "--version"),
            "h2load": tool("h2load", "--version"), "load_average": os.getloadavg()[0]}


def cell(values, form):
    return "{} ({}-{})".format(*(form.format(values[k]) for k in ("median", "min", "max")))


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join([row[0].ljust(widths[0])] + [text.rjust(width) for text, width in zip(row[1:], widths[1:])]).rstrip())


def print_report(about, found):
    machine_, options = about["machine"], about["options"]
    print(f"\n{machine_['cpu']}, {machine_['cores']} cores, Linux {machine_['kernel']}, load average "
          f"{machine_['load_average']:.1f}; median (range) of {options['rounds']} rounds")
    if "check_key" in found:
        print_check_key(found["check_key"])
    if "ext_authz" in found:
        print_ext_authz(found["ext_authz"])
    if "waits" in found:
        print_waits(found["waits"])
    if "half_load" in found:
        print_half_load(found["half_load"])
    if "envoy" in found:
        print_envoy(found["envoy"])
    if "journal" in found:
        print_journal(found["journal"])
    if "replicas" in found:
        print_replicas(found["replicas"])
    if "statements" in found:
        print_statements(found["statements"])
    if "revocation" in found:
        print_revocation(found["revocation"])
    if "recovery" in found:
        print_recovery(found["recovery"])


def contest_rows(title, summary):
    return [
        (title, "no-op", "Tollgate", "ratio"),
        ("requests a second", cell(summary["noop"]["per_second"], "{:,.0f}"),
         cell(summary["tollgate"]["per_second"], "{:,.0f}"), cell(summary["ratio_throughput"], "{:.2f}")),
        ("CPU µs a request", cell(summary["noop"]["cpu_us"], "{:.2f}"), cell(summary["tollgate"]["cpu_us"], "{:.2f}"),
         cell(summary["ratio_per_cpu_second"], "{:.2f}")),
    ]


def bytes_of(part):
    return "request {request}, answer {answer} bytes".format(**part["message_bytes"])


def print_check_key(part):
    half, load, touched = part["half_load"], part["load"], part["touched"]
    rows = contest_rows(f"CheckKey: {bytes_of(part)}", part["summary"])
    for p in ("p50", "p99"):
        rows.append((f"{p} µs at {half['per_second']:,} a second", f"{half['noop'][p]:,.0f}",
                     f"{half['tollgate'][p]:,.0f}", ""))
    rows.append((f"load {load['keys']:,} keys", "", f"{load['process_start_to_ready_s']:.2f} s", ""))
    rows.append(("memory a key", "", f"{load['bytes_per_key']:.0f} bytes", ""))
    rows.append(("the same once all were used", "", f"{touched['bytes_per_key']:.0f} bytes", ""))
    rows.append(("CPU µs a check, each of another key", "", f"{touched['cpu_us']:.2f}", ""))
    table(rows)
    note_idle(part["summary"])


def print_ext_authz(part):
    forms = {"raw": "with `header_map`", "map": "with `headers`"}
    for form, name in forms.items():
        title = f"ext_authz {name}" + (f": {bytes_of(part)}" if form == "raw" else "")
        table(contest_rows(title, part[form]["summary"]))
        note_idle(part[form]["summary"])


def print_waits(part):
    rows = [(f"keys at 90 % of a limit a minute, for {part['seconds']} s", "checks", "waited", "share", "p50 µs", "p99 µs")]
    for name, group in part["limits"].items():
        kind, capacity = name.split()
        rows.append((f"{group['keys']} keys, {kind}, {int(capacity):,}", f"{group['checks']:,}", f"{group['waits']:,}",
                     f"{group['share']:.3%}", f"{group['p50']:,.0f}", f"{group['p99']:,.0f}"))
    table(rows)


def print_half_load(part):
    limited, free = part["summary"]["hot"], part["summary"]["free"]
    row = lambda title, figure: (title, cell(free[figure], "{:,.0f}"), cell(limited[figure], "{:,.0f}"))
    most = part["most"]
    table([
        ("CheckKey at half load", "without limits", "three limits a key"),
        ("most requests a second", f"{most['free']['per_second']:,}", f"{most['hot']['per_second']:,}"),
        row(f"p50 µs at {part['per_second']:,} a second", "p50"),
        row(f"p99 µs at {part['per_second']:,} a second", "p99"),
        row("p99 µs by which the generator was late itself", "late_p99"),
    ])


def print_envoy(part):
    plain, checked = part["summary"]["plain"], part["summary"]["checked"]
    row = lambda title, figure, form: (title, cell(plain[figure], form), cell(checked[figure], form))
    table([
        ("a request through Envoy", "without a check", "with Tollgate"),
        row("requests a second, all on one core", "per_second", "{:,.0f}"),
        row("Envoy's CPU µs a request", "envoy_cpu_us", "{:.1f}"),
        row("Tollgate's CPU µs a request", "tollgate_cpu_us", "{:.1f}"),
        row(f"p50 µs at {part['rate']:,} a second", "p50", "{:,.0f}"),
        row(f"p99 µs at {part['rate']:,} a second", "p99", "{:,.0f}"),
    ])


def print_journal(part):
    found = part["summary"]
    row = lambda title, figure, form, ratio: (title, cell(found["off"][figure], form), cell(found["tollgate"][figure], form),
                                              cell(found[ratio], "{:.3f}"))
    table([
        ("CheckKey", "without a journal", "with one", "ratio"),
        row("requests a second", "per_second", "{:,.0f}", "ratio_throughput"),
        row("CPU µs a request", "cpu_us", "{:.2f}", "ratio_per_cpu_second"),
    ])


def print_replicas(part):
    for name in ("one", "three"):
        table(contest_rows(f"CheckKey, {name} on PostgreSQL {part['postgres']}: {bytes_of(part[name])}", part[name]["summary"]))
    load = part["load"]
    print(f"load {load['keys']:,} keys from PostgreSQL: {load['process_start_to_ready_s']:.2f} s")


def print_statements(part):
    rows = [(f"keys at 90 % of a limit a minute, for {part['seconds']} s", "checks", "waited", "share", "p50 µs", "p99 µs",
             "statements/1,000")]
    for name, group in part["limits"].items():
        rows.append((f"{group['keys']} keys, {name}", f"{group['checks']:,}", f"{group['waits']:,}", f"{group['share']:.3%}",
                     f"{group['p50']:,.0f}", f"{group['p99']:,.0f}", f"{group.get('per_thousand_checks', 'uncounted')}"))
    table(rows)


def print_revocation(part):
    print("\nRevokeKey with three replicas: p50 {p50_ms} ms, p99 {p99_ms} ms, at most {max_ms} ms, of {revocations}".format(**part))


def note_idle(summary):
    for server in ("noop", "tollgate"):
        busy = summary[server]["server_busy"]["median"]
        if busy < 0.9:
            print(f"note: {server}'s core was not full ({busy:.0%}): its requests a second are the generator's or the "
                  "machine's, and only the CPU time compares")


def print_recovery(part):
    print("\nAfter an outage of the database, replicas admit again in {median_ms} ms, at most {max_ms} ms, of {outages}".format(**part))
