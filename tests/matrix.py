"""The tests on each Python that is here, with the lowest and with the newest dependencies.

    python tests/matrix.py            the server's and the blog's tests, but those that take long
    python tests/matrix.py --short    imports, requests, the extension, restarts under load
    python tests/matrix.py --whole    all tests; hours

Each pair of a Python and bounds has an environment of its own in .venv-matrix, made anew. The
lowest dependencies are the lower bounds of pyproject.toml and requirements.txt, taken at their
word; what those depend on is the newest. Further words are pytest's, instead of the usual tests:
`tests/test_tls.py -x`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
import typing as t
from pathlib import Path

from environment import Environment

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".venv-matrix"
VERSIONS = ["3.10", "3.11", "3.12", "3.13"]
LOWEST, NEWEST = "lowest", "newest"
# Whose versions are told: what users bring, and may be of any version.
TOLD = ["Flask", "Werkzeug", "httptools", "prometheus_client"]

RESTARTS = "tests/test_restart.py::test_E19_no_request_is_lost_in_ten_restarts"
# The extension as one line, with workers, its hooks, its keys, and what pages say.
EXTENSION = [
    *(f"tests/test_extension.py::test_{name}" for name in (
        "one_changed_line_and_no_client_notices_a_restart",
        "with_workers_one_pid_is_restarted_and_stopped",
        "hooks_and_signals_run_in_their_order_and_inside_the_apps_context",
        "a_stream_ends_when_shutdown_begins_and_is_closed",
        "several_apps_share_an_extension_and_each_has_its_configuration",
        "each_setting_has_a_key_and_words_are_read",
        "misuse_is_told_with_the_remedy",
        "the_status_page_is_there_when_asked_for",
    )),
    "tests/test_health.py::test_nobody_needs_to_log_in_and_no_hook_of_the_app_runs",
    "tests/test_metrics.py::test_requests_are_counted_and_timed",
    "tests/test_metrics.py::test_a_restart_does_not_set_counters_back",
]  # fmt: skip
SHORT = ["tests/test_http11.py", "tests/test_wsgi.py", "tests/test_framing.py", RESTARTS]
SHORT += EXTENSION
USUAL = [
    *(f"tests/test_{name}.py" for name in ("http11", "wsgi", "framing", "rows", "server")),
    *(f"tests/test_{name}.py" for name in ("restart", "moving", "stop", "tls", "hijack", "files")),
    *(f"tests/test_{name}.py" for name in ("cli", "control", "deadlines", "reloads", "spread")),
    *(f"tests/test_{name}.py" for name in ("extension", "health", "metrics", "statuspage")),
    *(f"tests/test_{name}.py" for name in ("flask_commands", "development", "package")),
    "tests/blog",
]


class Run(t.NamedTuple):
    """What came of one environment."""

    python: str
    bounds: str
    versions: str
    result: str
    seconds: float
    is_good: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="import and restart, two minutes")
    parser.add_argument("--whole", action="store_true", help="all tests")
    parser.add_argument("--python", action="append", metavar="X.Y", help="this one alone")
    parser.add_argument("--bounds", choices=[LOWEST, NEWEST], help="with these alone")
    options, words = parser.parse_known_args()
    tests = words or (SHORT if options.short else ["tests"] if options.whole else USUAL)
    runs: list[Run] = []
    for version in options.python or VERSIONS:
        python = find(version)
        if python is None:
            print(f"Python {version} is not here", flush=True)
            continue
        for bounds in [options.bounds] if options.bounds else [LOWEST, NEWEST]:
            print(f"Python {version}, {bounds} dependencies", flush=True)
            runs.append(one(version, python, bounds, tests, is_short=options.short and not words))
            print(f"    {runs[-1].versions}: {runs[-1].result}", flush=True)
    report(runs, tests)
    return 0 if runs and all(run.is_good for run in runs) else 1


def find(version: str) -> str | None:
    """The Python of this version: from PATH, or as pyenv keeps it."""
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = sorted(home.glob(f"versions/{version}.*/bin/python"))
    for place in [shutil.which(f"python{version}"), *(str(path) for path in kept)]:
        if place is not None and _version(place) == version:
            return place
    return None


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    # What PATH has may be pyenv's, which fails for a version that is not chosen.
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def one(version: str, python: str, bounds: str, tests: list[str], is_short: bool) -> Run:
    """Make the environment, and run the tests in it."""
    began = time.monotonic()
    directory = PLACE / f"{version}-{bounds}"
    shutil.rmtree(directory, ignore_errors=True)
    environment = Environment(directory, python)
    wanted = ["-e", f"{ROOT}[flask,metrics]", "pytest", "pytest-timeout"]
    if not is_short:
        # test_package.py makes environments of its own, with the pip that is here.
        wanted = ["-r", str(ROOT / "requirements-dev.txt"), "pip"]
    if bounds == LOWEST:
        constraints = directory / "lowest.txt"
        constraints.write_text("".join(f"{line}\n" for line in lowest()))
        wanted += ["--constraint", str(constraints)]
    environment.install(*wanted)
    versions = ", ".join(f"{name} {environment.version(name)}" for name in TOLD)
    # An unfinished line of dots is of no use here.
    command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    if not is_short:
        # As `make test` runs them; their times are of interest there.
        command += ["-n", "2", "--dist", "loadfile", "-m", "not alone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    result = (done.stdout.splitlines() or [done.stderr])[-1]
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    seconds = time.monotonic() - began
    return Run(version, bounds, versions, result, seconds, done.returncode == 0)


def lowest() -> list[str]:
    """The lower bounds, as exact versions. An extra that is not wanted binds nobody."""
    required = importlib.metadata.requires("flask-graceful") or []
    required += (ROOT / "requirements.txt").read_text().splitlines()
    bounds: dict[str, str] = {}
    for match in (re.match(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", line) for line in required):
        # Of two bounds the higher one counts.
        if match and _numbers(match[2]) > _numbers(bounds.get(match[1], "0")):
            bounds[match[1]] = match[2]
    return [f"{name}=={version}" for name, version in sorted(bounds.items())]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def report(runs: list[Run], tests: list[str]) -> None:
    print(f"\nRan {' '.join(tests)}\n")
    for run in runs:
        word = "ok" if run.is_good else "FAILED"
        print(f"{word:6} {run.python:4} {run.bounds}: {run.versions}; {run.seconds:.0f} s")
        print(f"       {run.result}")


if __name__ == "__main__":
    sys.exit(main())
