"""Listening sockets: bind, adopt, name, close.

Owns the sockets that take connections, and the text of their addresses. An address is written
`host:port`, `:port`, `[v6]:port`, `unix:/path` or `systemd:NAME`, as users write it; a `Listener`
also knows the address that it really has, in Go's form (`[::]:8000`).

Rules: an inherited listener is matched by the address that was asked for, then by the one that it
has (row G8), so a successor gets the same socket, its queue included. `:port` takes IPv4 and IPv6
with one socket. Sockets are non-blocking for life and never inherited by accident.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import re
import socket
import struct
import sys
import typing as t

from .handshakes import has_handshakes
from .holder import holder_text
from .settings import MOST_PORT
from .sockfile import SocketFile, remove_stale

FORMS = "host:port, :port, [v6]:port, unix:/path or systemd:NAME"
_TCP_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:\[\]]*)):([0-9]{1,5}|http|https)?")


class ListenError(OSError):
    """An address can't be listened on; the message names it, and who holds it where known."""

    def __str__(self) -> str:
        return self.strerror or ""


class Address(t.NamedTuple):
    """An address as asked for. `path` is set for Unix sockets, host and port for TCP; `name`, and
    nothing else, is what systemd calls a socket that it passes."""

    text: str
    host: str = ""
    port: int = 0
    path: str = ""
    name: str | None = None


def parse_address(text: str, default_port: int = 80) -> Address:
    """Read an address.

    :raises ValueError: it is in no known form; TypeError: it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"address: expected a string such as ':8000', got {text!r}")
    if text.startswith("unix:"):
        if not text[5:] or "\0" in text:
            raise ValueError(f"address {text!r}: expected unix:/path")
        return Address(text, path=text[5:])
    if text.startswith("systemd:"):
        return Address(text, name=text[8:])
    if not text:
        return Address(":", port=default_port)
    match = _TCP_ADDRESS.fullmatch(text)
    port = (match[3] or str(default_port)) if match else ""
    port = {"http": "80", "https": "443"}.get(port, port)
    if match is None or int(port) > MOST_PORT:
        raise ValueError(f"address {text!r}: expected {FORMS}")
    return Address(text, match[1] or match[2] or "", int(port))


def parse_addresses(addr: str | t.Sequence[str]) -> list[Address]:
    """Read one address or several.

    :raises ValueError: there is none, one is in no known form, or one is given twice: a successor
        could not tell the two sockets apart.
    :raises TypeError: one is no text.
    """
    is_one = isinstance(addr, (str, bytes)) or not isinstance(addr, t.Iterable)
    given = [t.cast("str", addr)] if is_one else addr
    addresses = [parse_address(text) for text in given]
    if not addresses:
        raise ValueError("no address: expected at least one, such as ':8000'")
    texts = [address.text for address in addresses]
    for text in texts:
        if texts.count(text) > 1:
            raise ValueError(f"address {text!r} is given {texts.count(text)} times")
    return addresses


class Listener:
    """One listening socket.

    :param sock: bound and listening; the listener owns it from now on.
    :param requested: the address as asked for.
    :param inherited_as: the address by which the process asked for it that had it first, and may
        still serve it; empty when this process is the first one.
    :param is_ours: this program has bound it, now or as its predecessor. Another's is never shut.
    :param file: what is to be removed when nobody goes on with the socket.
    """

    def __init__(
        self,
        sock: socket.socket,
        requested: str,
        inherited_as: str = "",
        is_ours: bool = True,
        file: SocketFile | None = None,
    ) -> None:
        self.sock = sock
        self.requested = requested
        self.inherited_as = inherited_as
        self.is_ours = is_ours
        self.file = file
        self.is_shut = False
        self.network = "tcp" if sock.family in (socket.AF_INET, socket.AF_INET6) else "unix"
        sock.setblocking(False)
        name = sock.getsockname()
        if self.network == "tcp":
            self.host, self.port = name[0], name[1]
            self.address = join_host_port(self.host, self.port)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            if isinstance(name, bytes):
                # An abstract one, which has no file (unix(7)); as Go writes it.
                name = "@" + os.fsdecode(name[1:])
            self.host, self.port = name, 0
            self.address = name

    @property
    def place(self) -> str:
        """The address that it really has, as it is written."""
        return self.address if self.network == "tcp" else f"unix:{self.address}"

    def fileno(self) -> int:
        return self.sock.fileno()

    def accept(self) -> tuple[socket.socket, t.Any]:
        """The next connection, non-blocking.

        :raises BlockingIOError: none is waiting.
        """
        try:
            sock, peer = self.sock.accept()
        except OSError as error:
            # Shut here, or by the process whose socket it is.
            if error.errno == errno.EINVAL and (self.is_shut or not self.is_ours):
                raise BlockingIOError from error
            raise
        sock.setblocking(False)
        return sock, peer

    def probe_clients(self, seconds: float) -> None:
        """Have TCP ask clients that are silent for so long whether they live; 0: never (row Y2).

        Sockets accepted from now on inherit it.
        """
        if self.network != "tcp":
            return
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(seconds > 0))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL"):
            if seconds > 0 and hasattr(socket, name):
                # What Linux takes.
                whole = min(math.ceil(seconds), 32767)
                self.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), whole)

    def shut(self) -> bool:
        """Let nobody in any more, while those in the queue can still be accepted; for the last one
        who serves the socket. May some have begun to come in, who will be in the queue soon?

        Without this, who comes in between the last `accept` and `close` is reset by the kernel.
        """
        if not self.is_ours:
            return False
        try:
            if self.network == "unix":
                self.is_shut = True
                self.sock.shutdown(socket.SHUT_RD)
            elif sys.platform == "linux":
                _drop_new_handshakes(self.sock)
                self.is_shut = True
                return True
        except OSError:
            # The system can't; what it can't do is left undone.
            pass
        return False

    def reopen(self) -> None:
        """Undo what another process did that shut a socket in the belief to be the last."""
        if self.is_ours and self.network == "tcp" and sys.platform == "linux":
            with contextlib.suppress(OSError):
                # There is nothing to undo.
                self.sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def is_awaited(self) -> bool:
        """Are there clients who had knocked before it was shut, and are not in yet?"""
        return self.network == "tcp" and has_handshakes(self.port)

    def close(self, unlink: bool = True) -> None:
        """Close the socket; a Unix socket's file goes too, unless a successor goes on with it."""
        if unlink and self.file is not None and self.sock.fileno() >= 0:
            self.file.remove()
        self.sock.close()

    def __repr__(self) -> str:
        return f"<Listener {self.network} {self.address}>"


def listen(address: Address, keep_alive: float = 0) -> Listener:
    """Bind a new listening socket.

    :param keep_alive: see `Listener.probe_clients`; for who comes before it is served.
    :raises ListenError: the system refuses.
    """
    if address.name is not None:
        what = f"a socket named {address.name!r}" if address.name else "a socket"
        raise ListenError(errno.ENOENT, f"listen {address.text}: systemd has not passed {what}")
    sock = None
    try:
        sock = _bind_unix(address.path) if address.path else _bind_tcp(address)
        has_file = address.path and not _is_abstract(address.path)
        file = SocketFile.at(address.path) if has_file else None
        listener = Listener(sock, address.text, file=file)
        listener.probe_clients(keep_alive)
        sock.listen(_backlog())
    except OSError as error:
        if sock is not None:
            sock.close()
        network = "unix" if address.path else "tcp"
        where = address.path or address.text
        text = f"listen {network} {where}: bind: {(error.strerror or str(error)).lower()}"
        if error.errno == errno.EADDRINUSE and not address.path:
            text += holder_text(address.port)
        raise ListenError(error.errno, text) from None
    return listener


def bind_missing(
    addresses: t.Mapping[Address, float], known: list[Listener]
) -> tuple[list[Listener], list[Listener]]:
    """The listeners of all addresses, in their order, and those among them that nobody had.

    :param addresses: with what `listen` wants to know besides.
    :raises ListenError: an address can't be bound. No new one is held then.
    """
    found = matched(list(addresses), known)
    fresh: dict[Address, Listener] = {}
    try:
        for address, listener in found:
            if listener is None:
                fresh[address] = listen(address, addresses[address])
    except BaseException:
        give_up(fresh.values())
        raise
    for address, listener in fresh.items():
        # The name by which all processes know it.
        listener.inherited_as = known_everywhere(address)
    return [listener or fresh[address] for address, listener in found], list(fresh.values())


def known_everywhere(address: Address) -> str:
    """An address, as another process may be told of it that is elsewhere."""
    if address.path and not _is_abstract(address.path):
        return f"unix:{os.path.abspath(address.path)}"
    return address.text or f":{address.port}"


def acquire(addresses: t.Mapping[Address, float], inherited: list[Listener]) -> list[Listener]:
    """The listeners of all addresses, or of none: the inherited ones, and the others bound.

    :param addresses: with what `listen` wants to know besides.
    :param inherited: those that nobody asks for any more are closed; what waits in their queues is
        left to the process that they came from.
    :raises ListenError: an address can't be bound. None of them is held then.
    """
    listeners: list[Listener] = []
    try:
        found = matched(list(addresses), inherited)
        for address, listener in found:
            if listener is not None:
                listener.requested = address.text
                listeners.append(listener)
        for i, (address, listener) in enumerate(found):
            if listener is None:
                listeners.insert(i, listen(address, addresses[address]))
    except BaseException:
        give_up(listeners)
        raise
    finally:
        give_up(one for one in inherited if one not in listeners)
    return listeners


def give_up(listeners: t.Iterable[Listener]) -> None:
    """Close listeners that were never served. An inherited one's file is not ours to remove."""
    for listener in listeners:
        listener.close(unlink=not listener.inherited_as)


def matched(
    addresses: list[Address], inherited: list[Listener]
) -> list[tuple[Address, Listener | None]]:
    """Each address with the inherited listener that it means; each listener at most once."""
    left = list(inherited)
    found: dict[str, Listener] = {}
    for means in (_is_named, _is_at):
        for address in addresses:
            listener = next((one for one in left if means(one, address)), None)
            if listener is not None and address.text not in found:
                found[address.text] = listener
                left.remove(listener)
    return [(address, found.get(address.text)) for address in addresses]


def _is_named(listener: Listener, address: Address) -> bool:
    return listener.inherited_as == address.text


def _is_at(listener: Listener, address: Address) -> bool:
    """Does the listener have this address, however it is written? Port 0 is none (row G8)."""
    if address.name is not None:
        return address.name == "" and listener.inherited_as.startswith("systemd:")
    if address.path:
        there = os.path.abspath(address.path)
        return listener.network == "unix" and os.path.abspath(listener.address) == there
    if listener.network != "tcp" or not address.port or address.port != listener.port:
        return False
    if address.host in _WILDCARDS and listener.host in _WILDCARDS:
        return True
    try:
        known = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        return False
    return any(entry[4][0] == listener.host for entry in known)


_WILDCARDS = ("", "0.0.0.0", "::")


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets round an IPv6 host, as Go's net.JoinHostPort."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plain_host(host: str) -> str:
    """An IPv4 address of a dual-stack socket, as IPv4."""
    return host[7:] if host.startswith("::ffff:") else host


def peer_name(peer: t.Any) -> str:
    """What `accept` says about a client, for logs; `@` for one of a Unix socket, as in Go."""
    return join_host_port(plain_host(peer[0]), peer[1]) if isinstance(peer, tuple) else "@"


def _bind_tcp(address: Address) -> socket.socket:
    if not address.host and socket.has_dualstack_ipv6():
        return _bound(socket.AF_INET6, ("::", address.port), dual_stack=True)
    try:
        flags = socket.AI_PASSIVE
        found = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no host name"
        raise OSError(None, f"host {address.host!r} is unknown ({reason})") from error
    # IPv4 first, as Go does for a name that has both.
    family, _, _, _, sockaddr = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return _bound(family, sockaddr)


def _bound(family: int, sockaddr: t.Any, dual_stack: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != getattr(socket, "AF_UNIX", None) and os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual_stack:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(path: str) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "Unix sockets are not supported on this system")
    if _is_abstract(path):
        return _bound(socket.AF_UNIX, "\0" + path[1:])
    remove_stale(path)
    return _bound(socket.AF_UNIX, path)


def _is_abstract(path: str) -> bool:
    """Is it a name that only the kernel knows (unix(7))? As Go writes them."""
    return path.startswith("@") and sys.platform == "linux"


def _drop_new_handshakes(sock: socket.socket) -> None:
    """Have the kernel drop what begins a connection (SYN without ACK), as if it had got lost;
    handshakes that have begun go on. The filter is that of socket(7), SO_ATTACH_FILTER."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _NO_SYN)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(_NO_SYN), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
# Classic BPF: load the TCP flags, keep SYN and ACK; SYN alone: nothing of the packet, else all.
_NO_SYN = [
    (0x30, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
]


def _backlog() -> int:
    """What the kernel allows, as Go asks for."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return socket.SOMAXCONN
