"""TLS over real sockets, with certificates made for the test. Names carry the rows."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import struct
import threading
import time
import typing as t
import warnings
from pathlib import Path

import pytest
import trustme
from conftest import SLACK, Client, Live, Running, wait_until
from flask_graceful import CertificateFileError, ConnState, Server, ServerClosed
from flask_graceful.listeners import parse_address
from flask_graceful.server import HTTPS_PORT
from load import Load
from test_server import Gate

Start = t.Callable[..., Running]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
RESET = struct.pack("ii", 1, 0)


def hello(environ: t.Any, start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def echo(environ: t.Any, start_response: t.Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [body]


class Files:
    """An authority, a certificate of its for localhost, and clients that trust it."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.certfile, self.keyfile = str(folder / "cert.pem"), str(folder / "key.pem")
        self.renew()
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(self.client)

    def renew(self) -> None:
        """A new certificate and key in place of those that are there."""
        leaf = self.authority.issue_cert("localhost")
        leaf.private_key_pem.write_to_path(self.keyfile)
        Path(self.certfile).write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certfile, self.keyfile)
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(params=["best", "portable"])
def poller(request: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_GRACEFUL_POLLER", request.param)


class TLSClient(Client):
    """A client that takes a connection's end without close_notify for an error."""

    def __init__(self, address: t.Any, context: ssl.SSLContext) -> None:
        super().__init__(address)
        plain = self.sock
        try:
            self.sock = context.wrap_socket(
                plain, server_hostname="localhost", suppress_ragged_eofs=False
            )
        except BaseException:
            plain.close()
            raise


class TLSRunning(Running):
    """A `Server` over TLS in this process."""

    def __init__(self, app: t.Any, files: Files, from_files: bool = True, **options: t.Any) -> None:
        self.files = files
        self._names = (files.certfile, files.keyfile) if from_files else ("", "")
        self.client_context = files.client
        super().__init__(app, **options)

    def connect(self, context: ssl.SSLContext | None = None) -> TLSClient:
        return TLSClient(self.address, context or self.client_context)

    def plain(self) -> Client:
        return Client(self.address)

    def _serve(self, sock: socket.socket) -> None:
        try:
            self.server.serve_tls(sock, *self._names)
        except (ServerClosed, OSError) as error:
            self.error = error


Begin = t.Callable[..., TLSRunning]


@pytest.fixture
def secure(running: Start, files: Files) -> Begin:
    def start(app: t.Any, **options: t.Any) -> TLSRunning:
        return t.cast("TLSRunning", running(app, kind=TLSRunning, files=files, **options))

    return start


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def handshake_errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = (record.getMessage() for record in caplog.records)
    expression = re.compile(r"http: TLS handshake error from 127\.0\.0\.1:\d+: (.*)")
    return [match[1] for line in lines if (match := expression.fullmatch(line))]


def test_requests_follow_each_other_and_say_https(secure: Begin, poller: None) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [f"{environ['wsgi.url_scheme']} {environ['HTTPS']}".encode()]

    with secure(app).connect() as client:
        for _ in range(3):
            assert client.get()[2] == b"https on"


@pytest.mark.parametrize("threads", [1, 8])
def test_large_bodies_go_both_ways(secure: Begin, poller: None, threads: int) -> None:
    body = os.urandom(3_000_000)
    with secure(echo, threads=threads).connect() as client:
        for _ in range(2):
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
            client.send(body)
            assert client.response()[2] == body


def test_P17_requests_in_one_record_are_all_answered(secure: Begin, poller: None) -> None:
    """What OpenSSL has already read is reported by no poller."""

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with secure(app).connect() as client:
        client.send(GET * 3)
        assert [client.response()[0] for _ in range(3)] == [200] * 3
        count = 2000
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(count)))
        assert [client.response()[2] for _ in range(count)] == [b"/%d" % i for i in range(count)]


def test_a_head_may_come_byte_by_byte(secure: Begin, poller: None) -> None:
    with secure(hello).connect() as client:
        for byte in GET:
            client.send(bytes([byte]))
        assert client.response()[2] == b"hello"


def test_a_response_larger_than_the_socket_takes_needs_no_thread(
    secure: Begin, poller: None
) -> None:
    content = os.urandom(1 << 20) * 16

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/":
            return hello(environ, start_response)
        start_response("200 OK", [])
        return [content]

    one = secure(app, threads=1)
    with one.connect() as slow, one.connect() as fast:
        slow.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        # The only thread has the large response behind it when it answers this.
        assert fast.get()[2] == b"hello"
        assert fast.get()[2] == b"hello"
        assert slow.response()[2] == content
        assert slow.get()[2] == b"hello"


def test_a_slow_reader_of_blocks_gets_them_all(secure: Begin) -> None:
    blocks = [os.urandom(300_000) for _ in range(40)]
    taken: list[bytes] = []

    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [])
        for block in blocks:
            taken.append(block)
            yield block

    def is_blocked() -> bool:
        count = len(taken)
        time.sleep(0.1)
        return 0 < count == len(taken) < len(blocks)

    with secure(app).connect() as client:
        client.send(GET)
        head = client._until(b"\r\n\r\n")
        assert b"chunked" in head
        wait_until(is_blocked, "both buffers full")
        assert client._chunks() == b"".join(blocks)


def test_TM11_a_client_that_does_not_read_is_cut(secure: Begin, poller: None) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * 50_000_000]

    one = secure(app, write_timeout=0.4)
    with one.connect() as client:
        client.send(GET)
        wait_until(lambda: not one.server.connections(), "cut")


def test_the_end_of_a_connection_is_said(secure: Begin) -> None:
    """close_notify, in each way that a connection ends; TLSClient takes nothing less."""
    one = secure(hello)
    with one.connect() as client:
        client.get(headers="Connection: close\r\n")
        assert client.is_closed()
    with one.connect() as client:
        client.send(b"garbage\r\n\r\n")
        assert client.response()[0] == 400
        assert client.is_closed()
    with one.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        client.send(b"x" * 1000000)
        assert client.response()[1]["connection"] == "close"
        assert client.is_closed()
    with one.connect() as client:
        client.get()
        one.server.shutdown()
        assert client.is_closed()


@pytest.mark.parametrize("says_so", [True, False])
def test_B20_a_client_that_half_closes_gets_its_answer(secure: Begin, says_so: bool) -> None:
    gate = Gate()
    with secure(gate).connect().send(GET) as client:
        gate.wait()
        if says_so:
            client.sock.settimeout(0)
            with pytest.raises(ssl.SSLWantReadError):
                # close_notify; the server's own has not come yet.
                t.cast("ssl.SSLSocket", client.sock).unwrap()
            client.sock.settimeout(20)
        socket.socket.shutdown(client.sock, socket.SHUT_WR)
        gate.leave.set()
        assert client.response()[2] == b"late"


def test_X1_silent_handshakes_delay_nobody(secure: Begin, files: Files, poller: None) -> None:
    one = secure(hello, threads=1)
    opening = client_hello(files.client)
    silent = [one.plain() for _ in range(10)] + [one.plain().send(opening[:50]) for _ in range(10)]
    began = time.monotonic()
    with one.connect() as client:
        for _ in range(5):
            assert client.get()[2] == b"hello"
    assert time.monotonic() - began < SLACK
    for plain in silent:
        plain.sock.close()


@pytest.mark.parametrize("piece", [1, 1000])
@pytest.mark.parametrize("opening", ["GET / HTTP/1.1", "HEAD /", "POST /", "PUT /a", "OPTIONS *"])
def test_X2_F7_plain_http_gets_its_400_and_no_log(
    secure: Begin, caplog: pytest.LogCaptureFixture, opening: str, piece: int
) -> None:
    data = (opening + " HTTP/1.1\r\nHost: a\r\n\r\n").encode()
    with secure(hello).plain() as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), piece):
            client.send(data[start : start + piece])
        assert client.rest() == (
            b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
        )
    assert caplog.records == []


@pytest.mark.parametrize(
    "data", [b"DELETE / HTTP/1.1\r\n\r\n", b"PATCH / ", b"GET http:", b"\0" * 9]
)
def test_X2_F3_other_plaintext_is_closed(
    secure: Begin, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    with secure(hello).plain() as client:
        client.send(data)
        try:
            assert client.rest() == b""
        except ConnectionResetError:
            # Bytes that nobody read.
            pass
    expected = ["tls: first record does not look like a TLS handshake"]
    wait_until(lambda: handshake_errors(caplog) == expected, "logged")


def test_X3_http_1_1_is_all_that_is_offered(secure: Begin, files: Files) -> None:
    one = secure(hello)
    for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), (["foo"], None), ([], None)):
        if offered:
            files.client.set_alpn_protocols(offered)
        else:
            files.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            files.authority.configure_trust(files.client)
        with one.connect(files.client) as client:
            assert t.cast("ssl.SSLSocket", client.sock).selected_alpn_protocol() == chosen
            assert client.get()[0] == 200


def test_TLS_1_2_is_the_least(
    secure: Begin, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    one = secure(hello)
    files.client.maximum_version = ssl.TLSVersion.TLSv1_2
    with one.connect(files.client) as client:
        assert t.cast("ssl.SSLSocket", client.sock).version() == "TLSv1.2"
        assert client.get()[0] == 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        files.client.minimum_version = files.client.maximum_version = ssl.TLSVersion.TLSv1_1
    files.client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        one.connect(files.client)
    wait_until(lambda: handshake_errors(caplog) == ["tls: unsupported protocol"], "logged")


def test_X4_a_context_is_used_as_it_is(secure: Begin, files: Files) -> None:
    context = files.server_context()
    before = (context.options, context.minimum_version, context.verify_mode, context.verify_flags)
    files.client.set_alpn_protocols(["http/1.1"])
    one = secure(hello, from_files=False, ssl_context=context)
    with one.connect() as client:
        assert client.get()[0] == 200
        # Ours would have chosen.
        assert t.cast("ssl.SSLSocket", client.sock).selected_alpn_protocol() is None
    after = (context.options, context.minimum_version, context.verify_mode, context.verify_flags)
    assert before == after
    with pytest.raises(RuntimeError, match="load_cert_chain"):
        one.server.reload_certificate()


def test_X4_what_is_missing_or_too_much_is_said(files: Files) -> None:
    with pytest.raises(ValueError, match="TLS needs a certfile and a keyfile, or Server"):
        Server(":0", hello).listen_and_serve_tls()
    with pytest.raises(ValueError, match="must be empty beside an ssl_context"):
        server = Server(":0", hello, ssl_context=files.server_context())
        server.listen_and_serve_tls(files.certfile, files.keyfile)
    with pytest.raises(ValueError, match="expected a server's"):
        Server(":0", hello, ssl_context=files.client)
    with pytest.raises(TypeError, match=r"expected an ssl\.SSLContext, got 'cert.pem'"):
        Server(":0", hello, ssl_context="cert.pem")  # type: ignore[arg-type]


def test_L6_the_port_of_https() -> None:
    assert parse_address("", HTTPS_PORT).port == 443
    assert parse_address(Server("", hello).address.text, HTTPS_PORT).port == 443
    assert parse_address(":https").port == 443
    assert parse_address(Server(":8443", hello).address.text, HTTPS_PORT).port == 8443


def broken_files(files: Files, folder: Path) -> dict[str, tuple[str, str, str]]:
    """Certificate, key, and what is wrong with them."""
    from cryptography.hazmat.primitives import serialization as pem

    garbage, other, locked = (str(folder / name) for name in ("garbage", "other", "locked"))
    Path(garbage).write_text("garbage")
    files.authority.issue_cert("b").private_key_pem.write_to_path(other)
    key = pem.load_pem_private_key(Path(files.keyfile).read_bytes(), None)
    form, lock = pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"x")
    Path(locked).write_bytes(key.private_bytes(pem.Encoding.PEM, form, lock))
    torn = str(folder / "torn")
    Path(torn).write_text(Path(files.certfile).read_text().replace("MII", "!!!", 1))
    cert, key_name = files.certfile, files.keyfile
    return {
        "no certificate": ("/no/cert.pem", key_name, "certificate /no/cert.pem: no such file"),
        "no key": (cert, "/no/key.pem", "key /no/key.pem: no such file"),
        "garbage": (garbage, key_name, f"certificate {garbage}: expected PEM"),
        "garbage key": (cert, garbage, f"key {garbage}: expected PEM"),
        "torn": (torn, key_name, f"certificate {torn}, key {key_name}: "),
        "not its key": (cert, other, f"key {other}: does not belong to certificate {cert}"),
        "encrypted": (cert, locked, f"key {locked}: is encrypted"),
        "no key in it": (cert, "", f"key {cert}: expected PEM"),
    }


def test_L7_files_that_can_t_be_used_are_named_and_nothing_is_held(
    files: Files, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for certfile, keyfile, message in broken_files(files, tmp_path).values():
        with pytest.raises(CertificateFileError) as caught:
            Server(f"127.0.0.1:{port}", hello).listen_and_serve_tls(certfile, keyfile)
        assert str(caught.value).startswith(message)
        with socket.socket() as sock:
            # Free at once, for this server and for others.
            sock.bind(("127.0.0.1", port))
            sock.listen()
            with pytest.raises(CertificateFileError):
                Server(":0", hello).serve_tls(sock, certfile, keyfile)
            assert sock.fileno() == -1


def test_L2_after_shutdown_nothing_is_served(files: Files) -> None:
    server = Server(":0", hello)
    server.shutdown()
    with pytest.raises(ServerClosed):
        server.listen_and_serve_tls(files.certfile, files.keyfile)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ServerClosed):
            server.serve_tls(sock, files.certfile, files.keyfile)
        assert sock.fileno() == -1


def test_X5_K4_states(secure: Begin) -> None:
    record: list[str] = []
    one = secure(hello, conn_state=lambda connection, state: record.append(str(state)))

    def closed() -> bool:
        return bool(record) and record[-1] == "closed"

    one.plain().sock.close()
    wait_until(closed, "closed")
    assert record == ["new", "closed"]
    record.clear()
    with one.plain().send(GET) as plain:
        plain.rest()
    wait_until(closed, "closed")
    assert record == ["new", "closed"]
    record.clear()
    with one.connect() as client:
        client.get()
    wait_until(closed, "closed")
    assert record == ["new", "active", "idle", "closed"]


def test_F3_a_client_that_goes_away_is_one_line(
    secure: Begin, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    one = secure(hello)

    def expect(text: str) -> None:
        wait_until(lambda: handshake_errors(caplog) == [text], text)
        caplog.clear()

    one.plain().sock.close()
    expect("EOF")
    one.plain().send(client_hello(files.client)[:50]).sock.close()
    expect("unexpected EOF")
    one.plain().send(b"GET").sock.close()
    expect("unexpected EOF")
    # The line is logged before its connection is forgotten.
    wait_until(lambda: not one.server.connections(), "forgotten")
    with one.plain() as client:
        connection = wait_until(one.server.connections, "accepted")[0]
        assert connection.state is ConnState.NEW
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    expect("connection reset by peer")
    with pytest.raises(ssl.SSLCertVerificationError):
        one.connect(ssl.create_default_context())
    expect("tls: tlsv1 alert unknown ca")


def test_clients_that_go_away_later_are_no_line_at_all(
    secure: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * 5_000_000]

    one = secure(app, threads=2)
    for data in (b"", b"GET / HT", GET, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"):
        for option in (None, RESET):
            with one.connect() as client:
                client.send(data)
                if option:
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        # Cut in the clear, in the middle of the encrypted stream.
        with one.connect() as client:
            client.send(data)
            socket.socket.send(client.sock, b"\x17\x03\x03\x00\x20" + b"garbage!" * 4)
    wait_until(lambda: not one.server.connections(), "closed")
    with one.connect() as client:
        assert client.get()[0] == 200
    assert caplog.records == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"read_timeout": 60, "read_header_timeout": 50, "write_timeout": 0.4}, 0.4),
        ({"read_timeout": 60, "read_header_timeout": 0.4}, 0.4),
        ({"read_timeout": 0.4, "write_timeout": 0, "idle_timeout": 0.1}, 0.4),
    ],
)
def test_TM16_the_nearest_time_out_ends_a_handshake(
    secure: Begin,
    files: Files,
    caplog: pytest.LogCaptureFixture,
    poller: None,
    options: dict[str, float],
    expected: float,
) -> None:
    one = secure(hello, **options)
    opening = client_hello(files.client)
    for data in (b"", b"GE", opening[:50], opening):
        with one.plain() as client:
            began = time.monotonic()
            client.send(data)
            client.rest()
            assert expected - 0.05 < time.monotonic() - began < expected + SLACK
    assert handshake_errors(caplog) == ["i/o timeout"] * 4


def test_TM1_TM16_the_handshake_s_deadline_ends_with_it(secure: Begin) -> None:
    one = secure(hello, read_header_timeout=1.5, write_timeout=0.3)
    began = time.monotonic()
    with one.connect() as client:
        assert client.is_closed()
        assert 1.45 < time.monotonic() - began < 1.5 + SLACK
    with one.connect() as client:
        assert not client.is_closed(0.5)
        assert client.get()[0] == 200


def test_K8_a_handshake_counts_as_new(secure: Begin, caplog: pytest.LogCaptureFixture) -> None:
    one = secure(hello)
    began = time.monotonic()
    with one.plain() as silent, one.plain() as slow:
        wait_until(lambda: len(one.server.connections()) == 2, "accepted")
        stopper = threading.Thread(target=one.server.shutdown)
        stopper.start()
        one.join()
        # Row S4: it may still make its handshake, and be served.
        with one.files.client.wrap_socket(slow.sock, server_hostname="localhost") as sock:
            slow.sock = sock
            code, headers, _ = slow.get()
            assert (code, headers["connection"]) == (200, "close")
        assert silent.is_closed()
        stopper.join(20)
        assert 4.5 < time.monotonic() - began < 7 + SLACK
    assert handshake_errors(caplog) == ["use of closed network connection"]


def test_C1_close_cuts_handshakes_and_connections(secure: Begin) -> None:
    one = secure(hello)
    with one.plain() as silent, one.connect() as idle:
        idle.get()
        one.server.close()
        assert silent.is_closed()
        with pytest.raises(ssl.SSLEOFError):
            # Cut, not ended.
            idle.is_closed()
    assert isinstance(one.join(), ServerClosed)


def test_shutdown_with_idle_connections_is_quick(secure: Begin, poller: None) -> None:
    one = secure(hello)
    clients = [one.connect() for _ in range(20)]
    for client in clients:
        client.get()
    began = time.monotonic()
    one.server.shutdown(timeout=10)
    assert time.monotonic() - began < SLACK
    for client in clients:
        with client:
            assert client.is_closed()


def certificate_entries(environ: t.Any, start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [])
    lines = (f"{key}={environ[key]}" for key in sorted(environ) if key.startswith("SSL_"))
    return ["\n".join(lines).encode("latin-1")]


def test_client_certificates_are_in_environ_when_asked_for(secure: Begin, files: Files) -> None:
    context = files.server_context()
    context.verify_mode = ssl.CERT_OPTIONAL
    one = secure(certificate_entries, from_files=False, ssl_context=context)
    with one.connect() as client:
        assert client.get()[2] == b"SSL_CLIENT_VERIFY=NONE"
    leaf = files.authority.issue_cert(
        "alice@example.org", common_name="Alice, Ä", organization_name="#1 <Ex>"
    )
    leaf.configure_cert(files.client)
    with one.connect() as client, TLSClient(one.address, _trusting(files)) as other:
        text = client.get()[2].decode()
        assert text.startswith("SSL_CLIENT_CERT=-----BEGIN CERTIFICATE-----\n")
        assert text.endswith("\nSSL_CLIENT_VERIFY=SUCCESS")
        name = re.search("^SSL_CLIENT_S_DN=(.*)$", text, re.MULTILINE)
        assert name is not None
        assert "CN=Alice\\, Ä" in name[1]
        assert name[1].endswith("O=\\#1 \\<Ex\\>")
        pem = leaf.cert_chain_pems[0].bytes().decode()
        assert pem in text
        assert other.get()[2] == b"SSL_CLIENT_VERIFY=NONE"
        assert client.get()[2].decode() == text
    one.server.close()


def _trusting(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    files.authority.configure_trust(context)
    return context


def test_nothing_of_a_client_certificate_is_said_unasked(secure: Begin, files: Files) -> None:
    files.authority.issue_cert("a@example.org").configure_cert(files.client)
    with secure(certificate_entries).connect() as client:
        assert client.get()[2] == b""


def test_a_client_certificate_may_be_required(
    secure: Begin, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    context = files.server_context()
    one = secure(hello, from_files=False, ssl_context=context)
    context.verify_mode = ssl.CERT_REQUIRED
    with one.connect() as client, pytest.raises((ssl.SSLError, ConnectionError)):
        # TLS 1.3: the client is done before the server has looked.
        client.get()
    expected = ["tls: peer did not return a certificate"]
    wait_until(lambda: handshake_errors(caplog) == expected, "logged")


def test_a_context_chosen_by_name_decides(secure: Begin, files: Files, tmp_path: Path) -> None:
    context, other = files.server_context(), files.server_context()
    other.verify_mode = ssl.CERT_OPTIONAL

    def choose(sock: ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        assert name == "localhost"
        sock.context = other

    one = secure(certificate_entries, from_files=False, ssl_context=context)
    with one.connect() as client:
        assert client.get()[2] == b""
    context.sni_callback = choose  # type: ignore[assignment]
    with one.connect() as client:
        assert client.get()[2] == b"SSL_CLIENT_VERIFY=NONE"


def serial(one: TLSRunning) -> str:
    with one.connect() as client:
        certificate = t.cast("ssl.SSLSocket", client.sock).getpeercert()
        assert certificate
        return str(certificate["serialNumber"])


def test_certificates_are_read_again_under_load(secure: Begin, files: Files) -> None:
    one = secure(hello)
    old = serial(one)

    def connect(address: t.Any) -> TLSClient:
        return TLSClient(address, files.client)

    with one.connect() as kept, Load(one.address[1], 3, connect=connect) as load:
        seen = {old}
        for _ in range(5):
            load.wait_count(load.count + 5)
            files.renew()
            assert serial(one) in seen
            one.server.reload_certificate()
            assert serial(one) not in seen
            seen.add(serial(one))
        Path(files.certfile).write_text("garbage")
        with pytest.raises(CertificateFileError, match="expected PEM"):
            one.server.reload_certificate()
        assert serial(one) in seen
        assert kept.get()[0] == 200
        load.stop()
        assert load.failed == []


PROGRAM = """
import os, sys
from flask_graceful import GracefulServer, ServerClosed

def app(environ, start_response):
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]

server = GracefulServer(":0", app)

@server.before_begin
def log_pid(addr):
    print("Serving HTTP on", addr, flush=True)
    print("Actual pid is", os.getpid(), flush=True)

try:
    server.listen_and_serve_tls("cert.pem", "key.pem")
except ServerClosed as err:
    print("Server err:", err, flush=True)
"""


def test_a_restart_over_tls_loses_nothing(
    live: t.Callable[..., Live], tmp_path: Path, files: Files
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    one = live("program.py", cwd=tmp_path)

    def connect(address: t.Any) -> TLSClient:
        return TLSClient(address, files.client)

    with Load(one.port, clients=4, connect=connect) as load:
        for generation in range(1, 4):
            pids = one.wait_pids(generation)
            load.wait_count(load.count + 20)
            with connect(("127.0.0.1", one.port)) as idle:
                assert idle.get()[2] == b"%d" % pids[-1]
                os.kill(pids[-1], signal.SIGHUP)
                one.wait_for("Waiting for connections", generation)
                # Its process is on its way out, and answers once more.
                code, headers, body = idle.get()
                assert (code, headers["connection"], body) == (200, "close", b"%d" % pids[-1])
                assert idle.is_closed()
            one.wait_for(r"Serve\(\) returning", generation)
        pids = one.wait_pids(4)
        load.wait_count(load.count + 20)
        certificate = Path(files.certfile).read_bytes()
        Path(files.certfile).write_text("garbage")
        os.kill(pids[-1], signal.SIGHUP)
        one.wait_for(f"{pids[-1]} Restart failed: .*this process goes on serving")
        assert "certificate cert.pem: expected PEM" in one.log
        Path(files.certfile).write_bytes(certificate)
        load.wait_count(load.count + 20)
        load.stop()
    assert load.failed == []
    assert len(load.answers) == 4
    os.kill(pids[-1], signal.SIGTERM)
    one.wait_for("Server err: ", 4)


def test_tls_over_a_unix_socket(files: Files, tmp_path: Path) -> None:
    server = Server(f"unix:{tmp_path}/s", hello)
    errors: list[Exception] = []

    def serve() -> None:
        try:
            server.listen_and_serve_tls(files.certfile, files.keyfile)
        except ServerClosed as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    wait_until(lambda: (tmp_path / "s").exists() and server._acceptors, "listening")
    with TLSClient(f"{tmp_path}/s", files.client) as client:
        assert client.get()[2] == b"hello"
    server.shutdown()
    thread.join(20)
    assert len(errors) == 1


def test_a_handshake_has_a_limit_of_its_own(secure: Begin) -> None:
    one = secure(hello)
    with one.plain():
        (connection,) = wait_until(one.server.connections, "accepted")
        wait_until(lambda: connection.deadline - connection.accepted == 10, "10 seconds")
