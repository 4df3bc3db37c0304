"""Clients at a distance, and a server that is told to stop while they come in. A program.

    python distance.py SECONDS COMMAND...

In a network of its own (a namespace of Linux) it starts the command with `--bind`, and plays the
clients beyond a TUN device, packet by packet. They answer the server's half of the handshake as
many seconds after the stop as the argument says, and ask at once. Printed is how each one fared.
Exit status 77: the system does not let it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import typing as t

NOT_ALLOWED = 77
CLIENTS = 10
DEADLINE = 20.0
HERE, THERE = "10.9.0.1", "10.9.0.2"
REQUEST = b"GET /?far HTTP/1.1\r\nHost: a\r\n\r\n"

# unshare(2), netdevice(7), and tuntap.txt of the kernel's documentation.
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
IFF_UP, IFF_TUN, IFF_NO_PI, TUNSETIFF = 1, 1, 0x1000, 0x400454CA
SYN, RST, PSH, ACK = 2, 4, 8, 16


class Packet(t.NamedTuple):
    """What the server has sent to one of the clients, who differ by their ports."""

    server: int
    port: int
    sequence: int
    flags: int
    data: bytes


class Tunnel:
    """The far side's end of a new network.

    :raises OSError: the system does not let this process have one.
    """

    def __init__(self) -> None:
        flags = CLONE_NEWNET | (CLONE_NEWUSER if os.getuid() else 0)
        if ctypes.CDLL(None, use_errno=True).unshare(flags):
            raise OSError(ctypes.get_errno(), "unshare")
        self.fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", b"far", IFF_TUN | IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, address in ((SIOCSIFADDR, HERE), (SIOCSIFNETMASK, "255.255.255.0")):
                name = struct.pack(
                    "16sHH4s8x", b"far", socket.AF_INET, 0, socket.inet_aton(address)
                )
                fcntl.ioctl(control, request, name)
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"far", IFF_UP))

    def send(
        self, port: int, to: int, sequence: int, answers: int, flags: int, data: bytes
    ) -> None:
        ends = socket.inet_aton(THERE) + socket.inet_aton(HERE)
        tcp = struct.pack("!HHIIBBHHH", port, to, sequence, answers, 5 << 4, flags, 65000, 0, 0)
        sum_ = checksum(ends + struct.pack("!HH", 6, len(tcp) + len(data)) + tcp + data)
        tcp = tcp[:16] + struct.pack("!H", sum_) + tcp[18:] + data
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + ends
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        os.write(self.fd, ip + tcp)

    def packets(self, until: float) -> t.Iterator[Packet]:
        """What arrives by then."""
        while (left := until - time.monotonic()) > 0:
            if not select.select([self.fd], [], [], left)[0]:
                return
            packet = os.read(self.fd, 4096)
            # IPv4, TCP; other programs of the system say hello here too.
            if packet[0] != 0x45 or packet[9] != 6:
                continue
            tcp = packet[20:]
            server, port, sequence, _, offset, flags = struct.unpack("!HHIIBB", tcp[:14])
            yield Packet(server, port, sequence, flags, tcp[(offset >> 4) * 4 :])


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def main(distance: float, command: list[str]) -> None:
    try:
        tunnel = Tunnel()
    except OSError as error:
        print(error)
        sys.exit(NOT_ALLOWED)
    with subprocess.Popen(
        [*command, "--bind", f"{HERE}:0"], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            print(*fates(tunnel, server, distance))
            print("exit status", server.wait(DEADLINE))
        finally:
            server.kill()


def fates(tunnel: Tunnel, server: subprocess.Popen[str], distance: float) -> list[str]:
    """Whom the server has answered, and whom it has reset."""
    assert server.stderr is not None
    match = re.search(r"Serving HTTP on .*:(\d+)", server.stderr.readline())
    assert match
    to, until = int(match[1]), time.monotonic() + DEADLINE
    for port in range(1, CLIENTS + 1):
        tunnel.send(port, to, 0, 0, SYN, b"")
    answers: dict[int, int] = {}
    for packet in tunnel.packets(until):
        if packet.flags == SYN | ACK:
            answers[packet.port] = packet.sequence + 1
        if len(answers) == CLIENTS:
            break
    server.send_signal(signal.SIGTERM)
    time.sleep(distance)
    for port, answer in answers.items():
        tunnel.send(port, to, 1, answer, ACK, b"")
        tunnel.send(port, to, 1, answer, ACK | PSH, REQUEST)
    fate: dict[int, str] = {}
    for packet in tunnel.packets(until):
        if packet.flags & RST or packet.data:
            fate.setdefault(packet.port, "reset" if packet.flags & RST else "answered")
        if len(fate) == CLIENTS:
            break
    return list(fate.values())


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
