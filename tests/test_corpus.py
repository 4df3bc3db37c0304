"""The public corpus of raw requests: what gunicorn's own tests feed to its parser.

It is fetched from the package index when the tests run, kept in pytest's cache directory and never
part of the repository. Without an index the tests are skipped, and fail when `REQUIRE_CORPUS` is 1.

Each case is a file of bytes with a description beside it, a Python file of assignments, which is
read and not run. Everything is sent over a real socket; and, one byte at a time, to the parser.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import threading
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Running
from flask_graceful.body import body_decoder
from flask_graceful.errors import ProtocolError
from flask_graceful.http11 import HeadBuffer, HeadParser, Request

VERSION = "27.0.1"
SUITE = f"gunicorn-{VERSION}/tests/requests/"

# What gunicorn refuses and we accept.
ACCEPTED = {
    "003c": "an unregistered method is a method (row P6)",
    "006": "max_header_bytes limits the head as a whole; a line of it may be long (row P1)",
    "007": "the same: a long field",
    "008": "the same: a long field",
    "009": "the same: many fields",
    "017": "the same: a long field",
    "limit_header_default_01": "the same: a long field",
    "rfc9112_leading_crlf_02": "two empty lines before a request are skipped (row P15)",
    "rfc9112_target_non_ascii_01": "bytes above 127 pass (row P7): curl sends them as typed",
    "rfc9112_target_non_ascii_02": "the same",
}
# What gunicorn accepts and we answer otherwise: the statuses, and why.
REFUSED = {
    "025": ([400], "two Transfer-Encoding fields (row B3)"),
    "025_line": ([501], "chunked is the only coding known (row B3)"),
    "029": ([400], "two Transfer-Encoding fields (row B3)"),
    "030": ([400], "two Transfer-Encoding fields (row B3)"),
    "rfc9112_smuggle_gzip_chunked_01": ([501], "chunked is the only coding known (row B3)"),
    "rfc9112_smuggle_te_identity_chunked_01": ([501], "identity is no coding any more (row B3)"),
    "rfc9112_target_absolute_userinfo_01": ([400], "user info is deprecated (RFC 9110, 4.2.4)"),
    "rfc9112_target_asterisk_options_01": (
        [200],
        "the server's own answer, not the app's (row P16)",
    ),
    "rfc9112_target_authority_connect_01": ([501], "a WSGI server has no tunnel to offer"),
    "rfc9112_target_authority_ipv6_01": ([501], "the same"),
    "099": ([], "9315 bytes of the announced body are missing (row B7)"),
}


class Expected(t.NamedTuple):
    """One request as the corpus describes it, or as the application saw it."""

    method: str
    target: str
    version: str
    fields: dict[str, str]
    body: bytes


class Case(t.NamedTuple):
    data: bytes
    # None for what is invalid.
    requests: list[Expected] | None
    needs_option: bool


@pytest.fixture(scope="module")
def corpus(request: pytest.FixtureRequest) -> dict[str, Case]:
    """All cases, under `valid/name` and `invalid/name`."""
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("corpus")
    path = folder / f"gunicorn-{VERSION}.tar.gz"
    if not path.exists():
        problem = _download(folder)
        if problem and os.environ.get("REQUIRE_CORPUS") == "1":
            pytest.fail(f"the corpus of requests can't be fetched: {problem}")
        if problem:
            pytest.skip(f"the corpus of requests can't be fetched: {problem}")
    with tarfile.open(path) as archive:
        return dict(_cases(archive))


def _download(folder: Path) -> str:
    """Fetch the source distribution, unpacked by nobody; what went wrong."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"gunicorn=={VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        return "pip took longer than 90 s"
    return (done.stderr.strip().splitlines() or ["pip failed"])[-1] if done.returncode else ""


def _cases(archive: tarfile.TarFile) -> t.Iterator[tuple[str, Case]]:
    for member in archive.getmembers():
        if not (member.name.startswith(SUITE) and member.name.endswith(".http")):
            continue
        name = member.name[len(SUITE) : -len(".http")]
        description = _read(archive, member.name[: -len(".http")] + ".py").decode()
        requests = _described(description) if name.startswith("valid/") else None
        # A change of gunicorn's limits needs nothing here: ours are wider.
        options = set(re.findall(r"cfg\.set\(['\"](\w+)", description))
        if requests is not None:
            options -= {"limit_request_line", "limit_request_field_size"}
        yield name, Case(_decoded(_read(archive, member.name)), requests, bool(options))


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def _decoded(text: bytes) -> bytes:
    """The bytes that a case stands for: line breaks mean nothing, escapes mean bytes."""
    known = {b"\\r": b"\r", b"\\n": b"\n", b"\\t": b"\t", b"\\0": b"\0"}

    def byte(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1], 16)]) if match[1] else known[match[0]]

    return re.sub(rb"\\(?:x([0-9A-Fa-f]{2})|[rnt0])", byte, text.replace(b"\n", b""))


def _described(description: str) -> list[Expected]:
    """What the assignments of a description add up to, without running it."""
    values: dict[str, t.Any] = {}
    for statement in ast.parse(description).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if name != "cfg":
                values[name] = _value(statement.value, values)
    found = values["request"]
    return [_expected(one) for one in (found if isinstance(found, list) else [found])]


def _value(node: ast.expr, values: dict[str, t.Any]) -> t.Any:
    """A literal, in which names stand for earlier values and uri(x) for x."""
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, (_value(value, values) for value in node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item, values) for item in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        method = getattr(_value(node.func.value, values), node.func.attr)
        return method(*(_value(argument, values) for argument in node.args))
    if isinstance(node, ast.Call):
        return _value(node.args[0], values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _value(node.left, values) + _value(node.right, values)
    return ast.literal_eval(node)


def _expected(described: dict[str, t.Any]) -> Expected:
    fields: dict[str, str] = {}
    for name, value in described["headers"]:
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        fields[key] = f"{fields[key]}, {value}" if key in fields else value
    # What is handed on has no framing.
    fields.pop("HTTP_TRANSFER_ENCODING", None)
    version = "HTTP/{}.{}".format(*described["version"])
    target = described["uri"]
    if target.startswith("http"):
        fields["HTTP_HOST"] = target.split("/")[2]
    return Expected(described["method"], target, version, fields, described["body"] or b"")


def with_hosts(case: Case) -> tuple[bytes, list[Expected]]:
    """The case with a Host in each request: half of the corpus leaves out what 1.1 demands."""
    assert case.requests is not None
    if all("HTTP_HOST" in one.fields or one.version == "HTTP/1.0" for one in case.requests):
        return case.data, case.requests
    lines = re.compile(rb"( HTTP/1\.1\r\n)(?!Host)")
    requests = [
        one._replace(fields={"HTTP_HOST": "a", **one.fields}) if one.version == "HTTP/1.1" else one
        for one in case.requests
    ]
    return lines.sub(rb"\1Host: a\r\n", case.data), requests


class Recorder:
    """An application that notes what it is asked, and whether it could read the body."""

    def __init__(self) -> None:
        self.seen: list[Expected] = []
        self.begun: list[str] = []

    def __call__(self, environ: t.Any, start_response: t.Any) -> list[bytes]:
        self.begun.append(environ["RAW_URI"])
        body = environ["wsgi.input"].read()
        fields = {
            key: value
            for key, value in environ.items()
            if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")
        }
        self.seen.append(
            Expected(
                environ["REQUEST_METHOD"],
                environ["RAW_URI"],
                environ["SERVER_PROTOCOL"],
                fields,
                body,
            )
        )
        start_response("200 OK", [])
        return [b"seen"]


def answers(address: t.Any, data: bytes) -> list[int]:
    """Send bytes and their end; the status codes of all that comes back."""
    with Client(address) as client:
        # A refused request may be answered, and its connection closed, before all of it was sent.
        sender = threading.Thread(target=_send, args=(client, data))
        sender.start()
        try:
            received = client.rest()
        except ConnectionResetError:
            received = client.buffer
        sender.join()
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]


def _send(client: Client, data: bytes) -> None:
    try:
        client.send(data).sock.shutdown(1)
    except OSError:
        # Closed by the server already, which the answers show.
        pass


def test_corpus_is_whole(corpus: dict[str, Case]) -> None:
    """The exceptions name cases that exist, and the corpus has the size that it is known for."""
    names = {name.partition("/")[2] for name in corpus}
    assert set(ACCEPTED) | set(REFUSED) <= names
    assert sum(name.startswith("valid/") for name in corpus) >= 62
    assert sum(name.startswith("invalid/") for name in corpus) >= 81


def test_every_valid_case_is_seen_as_it_was_meant(
    corpus: dict[str, Case], running: t.Callable[..., Running]
) -> None:
    recorder = Recorder()
    one = running(recorder)
    wrong = {}
    for path, case in corpus.items():
        kind, _, name = path.partition("/")
        if kind != "valid" or case.needs_option:
            continue
        data, requests = with_hosts(case)
        recorder.seen.clear()
        codes = answers(one.address, data)
        if name in REFUSED:
            if codes != REFUSED[name][0] or recorder.seen:
                wrong[name] = (codes, recorder.seen[:])
        elif recorder.seen != requests or codes != [200] * len(requests):
            wrong[name] = (codes, recorder.seen[:])
        if data != case.data and answers(one.address, case.data)[-1] != 400:
            wrong[name] = "without a Host, yet not refused (row P9)"
    assert not wrong


def test_every_invalid_case_is_refused(
    corpus: dict[str, Case], running: t.Callable[..., Running]
) -> None:
    """By 4xx, 5xx or a closed connection; the app at most began to read a body that failed."""
    recorder = Recorder()
    one = running(recorder)
    wrong = {}
    for path, case in corpus.items():
        kind, _, name = path.partition("/")
        if kind != "invalid" or case.needs_option:
            continue
        # A Host is added where there is none, so that its absence is not what is refused.
        data = case.data
        if not re.search(rb"\r\n(?i:host):", data):
            data = data.replace(b" HTTP/1.1\r\n", b" HTTP/1.1\r\nHost: a\r\n", 1)
        recorder.seen.clear()
        recorder.begun.clear()
        codes = answers(one.address, data)
        if name in ACCEPTED:
            if codes != [200]:
                wrong[name] = (codes, recorder.seen[:])
        elif recorder.seen or len(recorder.begun) > 1 or any(code < 400 for code in codes):
            wrong[name] = (codes, recorder.seen[:])
    assert not wrong


def read_bytewise(data: bytes) -> list[tuple[Request, bytes]]:
    """The requests in the bytes, given one at a time; up to a close or the last whole one."""
    inbox = HeadBuffer(1 << 20)
    parser = HeadParser()
    found: list[tuple[Request, bytes]] = []
    request: Request | None = None
    decoder = None
    body = b""
    for i in range(len(data)):
        piece = data[i : i + 1]
        if request is None:
            head = inbox.take(piece)
            if head is None:
                continue
            request = parser.parse(head)
            decoder = body_decoder(request)
            body = b""
        else:
            inbox.data += piece
        if decoder is not None:
            body += decoder.decode(inbox.data)
        if decoder is None or decoder.done:
            found.append((request, body))
            if not request.keep_alive:
                break
            request = None
    return found


def test_one_byte_at_a_time_makes_no_difference(corpus: dict[str, Case]) -> None:
    wrong = {}
    for path, case in corpus.items():
        kind, _, name = path.partition("/")
        if case.needs_option or name in ACCEPTED or name in REFUSED:
            continue
        data, requests = with_hosts(case) if case.requests is not None else (case.data, [])
        try:
            found = read_bytewise(data)
        except ProtocolError as error:
            if kind == "valid":
                wrong[name] = str(error)
            continue
        seen = [
            Expected(
                request.method,
                request.target,
                "HTTP/1.1" if request.version else "HTTP/1.0",
                {k: v for k, v in request.fields.items() if k != "HTTP_TRANSFER_ENCODING"},
                body,
            )
            for request, body in found
        ]
        if seen != requests:
            wrong[name] = str(seen)
    assert not wrong
