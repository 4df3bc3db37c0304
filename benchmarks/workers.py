"""What a second worker brings: `make bench-workers`.

One and two workers are measured in turn, with a Flask application and wrk on the same machine. On a
machine of two cores the client takes its share of them: what it costs is measured and stated.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import sys
import typing as t

from bench import running, wrk

CONNECTIONS = 32


def measure(server: str, app: str, seconds: float) -> tuple[float, float]:
    """Requests a second, and the client's CPU time for each of them in microseconds."""
    with running(server, app) as (port, _):
        wrk(port, CONNECTIONS, 1)
        before = client_time()
        result = wrk(port, CONNECTIONS, seconds)
        spent = client_time() - before
    assert not result["errors"], result
    return result["rate"], spent / (result["rate"] * seconds) * 1e6


def client_time() -> float:
    """CPU seconds of the clients that have ended; servers are waited for later."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{datetime.date.today()}, Python {platform.python_version()}, {cores} cores\n")
    print("| work | one worker | two workers | ratio | client's CPU with two |")
    print("|---|---|---|---|---|")
    for app in ("flask", "bare"):
        print(row(app, options), flush=True)


def row(app: str, options: t.Any) -> str:
    rates: dict[str, list[float]] = {"workers_1": [], "workers_2": []}
    costs = []
    for number in range(options.rounds):
        for server in sorted(rates, reverse=bool(number % 2)):
            rate, cost = measure(server, app, options.seconds)
            rates[server].append(rate)
            # With one worker the client looks more often, and finds less.
            if server == "workers_2":
                costs.append(cost)
            print(f"{app}, round {number + 1}: {server} {rate:.0f}/s", file=sys.stderr)
    pairs = list(zip(rates["workers_1"], rates["workers_2"], strict=True))
    ratio = statistics.median(two / one for one, two in pairs)
    one, two = (statistics.median(values) for values in rates.values())
    cost = statistics.median(costs)
    return (
        f"| {app}, {CONNECTIONS} connections | {one:,.0f}/s | {two:,.0f}/s | {ratio:.2f} x "
        f"| {cost:.1f} us a request |"
    )


if __name__ == "__main__":
    main()
