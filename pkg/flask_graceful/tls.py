"""TLS: what handshakes are made with, and what they tell.

Owns SSL contexts and the files behind them, the words for a handshake that failed, and the entries
of environ that come from a client's certificate. The handshake's steps are the wire's.

Strategy: a new context is made whenever the files are read, and put in place of the old one in one
assignment. A handshake that has begun keeps the context that it began with.

Rules: a context that the user made is used as it is. Files that can't be used never replace ones
that can. The socket of a client that does not speak TLS is recognised by its first byte, before
OpenSSL sees it.
"""

from __future__ import annotations

import errno
import ssl
import typing as t

if t.TYPE_CHECKING:
    import socket

# How long a handshake may take when no time-out of the server says it.
HANDSHAKE_TIME = 10.0

ALPN = ["http/1.1"]

# What plain HTTP begins with, as far as it is told apart (row X2).
PLAIN_HTTP = frozenset({b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO"})
PLAIN_HTTP_ANSWER = (
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
)
NOT_TLS = "tls: first record does not look like a TLS handshake"
# The content types of TLS records (RFC 8446, section 5.1) that OpenSSL judges best itself.
_RECORD_TYPES = frozenset({20, 21, 22, 23})


class CertificateFileError(OSError):
    """A certificate or key can't be used; the message names its file."""

    def __str__(self) -> str:
        return self.strerror or ""


class HandshakeError(Exception):
    """A handshake failed; the message is what Go would log."""


class PlainHTTPError(HandshakeError):
    """The client speaks HTTP without TLS."""


class Credentials:
    """What a listener's handshakes are made with.

    :param certfile: the certificate in PEM, with the intermediate ones behind it.
    :param keyfile: its private key in PEM, not encrypted; empty: it is in `certfile` too.
    :param context: used instead of files, as it is.
    :raises CertificateFileError: a file can't be read or used.
    :raises ValueError: neither files nor a context are given, or both, or a client's context.
    """

    def __init__(
        self, certfile: str = "", keyfile: str = "", context: ssl.SSLContext | None = None
    ) -> None:
        self._certfile = certfile
        self._keyfile = keyfile
        if context is None:
            if not certfile:
                raise ValueError("TLS needs a certfile and a keyfile, or Server(ssl_context=...)")
            context = self.load()
        elif certfile or keyfile:
            raise ValueError(
                "certfile and keyfile must be empty beside an ssl_context; "
                "load them into it with its load_cert_chain()"
            )
        self.context = check_context(context)
        self.has_files = bool(certfile)

    def load(self) -> ssl.SSLContext:
        """A context made from the files as they are now; for `context`.

        :raises CertificateFileError: a file can't be read or used.
        """
        certfile, keyfile = self._certfile, self._keyfile
        _check_pem(certfile, "certificate", b"CERTIFICATE-----")
        _check_pem(keyfile or certfile, "key", b"PRIVATE KEY-----")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A client could make the server compute for long (CVE-2011-1473).
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(ALPN)

        def refuse_to_ask() -> str:
            # OpenSSL would ask the terminal.
            raise _file_error(
                f"key {keyfile or certfile}: is encrypted; expected one without a pass phrase"
            )

        try:
            context.load_cert_chain(certfile, keyfile or None, refuse_to_ask)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                text = f"key {keyfile or certfile}: does not belong to certificate {certfile}"
            else:
                text = f"certificate {certfile}, key {keyfile or certfile}: {_words(error)}"
            raise _file_error(text) from error
        return context


def check_context(context: t.Any) -> ssl.SSLContext:
    """A context that a server can use.

    :raises TypeError: it is none. :raises ValueError: it is a client's.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl_context: expected an ssl.SSLContext, got {context!r}")
    if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            "ssl_context: expected a server's, e.g. ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)"
        )
    return context


def wrap(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """The server's end of a TLS connection whose handshake is to come; takes the socket over.

    :raises OSError: the client has gone already; the socket is closed.
    """
    try:
        # ssl leaves a socket open that is no longer connected.
        sock.getpeername()
        return context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
    except BaseException:
        sock.close()
        raise


def may_be_tls(first: bytes) -> bool:
    """Could a stream that begins with this byte be TLS?"""
    return first[0] in _RECORD_TYPES


def failure_text(error: Exception) -> str:
    """Why a handshake failed, in words like those of Go's log."""
    if isinstance(error, ssl.SSLEOFError):
        return "unexpected EOF"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return NOT_TLS
        return "tls: " + _words(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def client_entries(sock: ssl.SSLSocket) -> dict[str, str]:
    """What the handshake told about the client, under the names of Apache's mod_ssl.

    Empty unless the context asks for client certificates. `SSL_CLIENT_VERIFY` is `SUCCESS` or
    `NONE`; with a certificate, `SSL_CLIENT_CERT` is it in PEM and `SSL_CLIENT_S_DN` its subject
    (RFC 4514, UTF-8 as PEP 3333 wants it).
    """
    if sock.context.verify_mode is ssl.CERT_NONE:
        return {}
    der = sock.getpeercert(binary_form=True)
    if not der:
        return {"SSL_CLIENT_VERIFY": "NONE"}
    subject = (sock.getpeercert() or {}).get("subject", ())
    return {
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_CERT": ssl.DER_cert_to_PEM_cert(der),
        "SSL_CLIENT_S_DN": _distinguished_name(t.cast("_Name", subject)),
    }


_Name = tuple[tuple[tuple[str, str], ...], ...]

# RFC 4514, section 3; the ssl module has the long names.
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}


def _distinguished_name(name: _Name) -> str:
    """RFC 4514, section 2: the parts from the last to the first."""
    parts = (
        "+".join(f"{_SHORT_NAMES.get(key, key)}={_escaped(value)}" for key, value in part)
        for part in reversed(name)
    )
    return ",".join(parts).encode("utf-8").decode("latin-1")


def _escaped(value: str) -> str:
    """RFC 4514, section 2.4; control characters as their hexadecimal digits."""
    text = "".join(
        "\\" + char
        if char in '",+;<>\\'
        else f"\\{ord(char):02X}"
        if char < " " or char == "\x7f"
        else char
        for char in value
    )
    if text.startswith(("#", " ")):
        text = "\\" + text
    if len(value) > 1 and value.endswith(" "):
        text = text[:-1] + "\\ "
    return text


def _check_pem(path: str, kind: str, mark: bytes) -> None:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _file_error(f"{kind} {path}: {reason}", error.errno) from error
    if mark not in data:
        raise _file_error(f"{kind} {path}: expected PEM with -----BEGIN ... {mark.decode()}")


def _file_error(text: str, code: int | None = None) -> CertificateFileError:
    return CertificateFileError(code or errno.EINVAL, text)


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
