"""Listening sockets: bind, adopt, name, close.

Owns the sockets that take connections, and the text of their addresses. An address is written
`host:port`, `:port`, `[v6]:port` or `unix:/path`, as users write it; a `Listener` also knows the
address that it really has, in Go's form (`[::]:8000`).

Rules: a listener is matched by the address that was asked for, so a successor that asks for the
same one gets the same socket, its queue included. `:port` takes IPv4 and IPv6 with one socket.
Sockets are non-blocking for life and never inherited by accident.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
import typing as t

_TCP_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:\[\]]*)):([0-9]{1,5}|http|https)?")


class ListenError(OSError):
    """An address can't be listened on; the message names it, and who holds it where known."""

    def __str__(self) -> str:
        return self.strerror or ""


class Address(t.NamedTuple):
    """An address as asked for. `path` is set for Unix sockets, host and port for TCP."""

    text: str
    host: str = ""
    port: int = 0
    path: str = ""


def parse_address(text: str, default_port: int = 80) -> Address:
    """Read an address.

    :raises ValueError: it is in no known form; TypeError: it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"address: expected a string such as ':8000', got {text!r}")
    if text.startswith("unix:"):
        if not text[5:]:
            raise ValueError(f"address {text!r}: expected unix:/path")
        return Address(text, path=text[5:])
    if not text:
        return Address(":", port=default_port)
    match = _TCP_ADDRESS.fullmatch(text)
    port = (match[3] or str(default_port)) if match else ""
    port = {"http": "80", "https": "443"}.get(port, port)
    if match is None or int(port) > 65535:
        raise ValueError(f"address {text!r}: expected host:port, :port, [v6]:port or unix:/path")
    return Address(text, match[1] or match[2] or "", int(port))


def parse_addresses(addr: str | t.Sequence[str]) -> list[Address]:
    """Read one address or several.

    :raises ValueError: there is none, one is in no known form, or one is given twice: a successor
        could not tell the two sockets apart.
    :raises TypeError: one is no text.
    """
    addresses = [parse_address(text) for text in ([addr] if isinstance(addr, str) else addr)]
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
    :param requested: the address as asked for, by which a successor finds it.
    :param is_inherited: another process had it first, and may still serve it.
    """

    def __init__(self, sock: socket.socket, requested: str, is_inherited: bool = False) -> None:
        self.sock = sock
        self.requested = requested
        self.is_inherited = is_inherited
        self.network = "tcp" if sock.family in (socket.AF_INET, socket.AF_INET6) else "unix"
        sock.setblocking(False)
        name = sock.getsockname()
        if self.network == "tcp":
            self.host, self.port = name[0], name[1]
            self.address = join_host_port(self.host, self.port)
            _set_tcp_options(sock)
        else:
            self.host, self.port = name, 0
            self.address = name

    def fileno(self) -> int:
        return self.sock.fileno()

    def accept(self) -> tuple[socket.socket, t.Any]:
        """The next connection, non-blocking.

        :raises BlockingIOError: none is waiting.
        """
        sock, peer = self.sock.accept()
        sock.setblocking(False)
        return sock, peer

    def close(self, unlink: bool = True) -> None:
        """Close the socket; a Unix socket's file goes too, unless a successor goes on with it."""
        if unlink and self.network == "unix" and self.sock.fileno() >= 0:
            _unlink_socket(self.address)
        self.sock.close()

    def __repr__(self) -> str:
        return f"<Listener {self.network} {self.address}>"


def listen(address: Address) -> Listener:
    """Bind a new listening socket.

    :raises ListenError: the system refuses.
    """
    try:
        sock = _bind_unix(address.path) if address.path else _bind_tcp(address)
    except OSError as error:
        network = "unix" if address.path else "tcp"
        where = address.path or address.text
        text = f"listen {network} {where}: bind: {(error.strerror or str(error)).lower()}"
        if error.errno == errno.EADDRINUSE and not address.path:
            text += _holder_text(address.port)
        raise ListenError(error.errno, text) from error
    return Listener(sock, address.text)


def acquire(addresses: t.Iterable[Address], inherited: dict[str, Listener]) -> list[Listener]:
    """The listeners of all addresses, or of none: the inherited ones, and the others bound.

    :param inherited: by the address that was asked for. Those that nobody asks for any more are
        closed; what waits in their queues is left to the process that they came from.
    :raises ListenError: an address can't be bound. None of them is held then.
    """
    listeners: list[Listener] = []
    try:
        for address in addresses:
            if address.text in inherited:
                listeners.append(inherited.pop(address.text))
            else:
                listeners.append(listen(address))
    except BaseException:
        give_up(listeners)
        raise
    finally:
        give_up(inherited.values())
    return listeners


def give_up(listeners: t.Iterable[Listener]) -> None:
    """Close listeners that were never served. An inherited one's file is not ours to remove."""
    for listener in listeners:
        listener.close(unlink=not listener.is_inherited)


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
        sock.listen(_backlog())
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(path: str) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "Unix sockets are not supported on this system")
    _remove_stale(path)
    return _bound(socket.AF_UNIX, path)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a server that is gone; nothing else is ever removed."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def _unlink_socket(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    except OSError:
        # Gone already, or not ours to remove: the listener is closed all the same.
        pass


def _set_tcp_options(sock: socket.socket) -> None:
    """Accepted sockets inherit these (row Y2): no Nagle, keep-alive probes after 15 seconds."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 15)


def _backlog() -> int:
    """What the kernel allows, as Go asks for."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return socket.SOMAXCONN


def _holder_text(port: int) -> str:
    """Who listens on a TCP port, as far as the system tells."""
    inodes = set(_listening_inodes(port))
    if not inodes or not sys.platform.startswith("linux"):
        return ""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _holds_socket(entry, inodes):
            return f" (held by pid {entry}: {_command(entry)})"
    return ""


def _listening_inodes(port: int) -> t.Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        # Local address is the second column, state the fourth (0A is LISTEN), inode the tenth.
        for row in rows:
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{row[9]}]"


def _holds_socket(pid: str, inodes: set[str]) -> bool:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for fd in fds:
        try:
            if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                return True
        except OSError:
            continue
    return False


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return "?"
    return " ".join(" ".join(words).split())[:80] or "?"
