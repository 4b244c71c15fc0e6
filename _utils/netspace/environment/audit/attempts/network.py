"""Attempts on the network: foreign addresses, forbidden sockets, and the environment's own interface."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from typing import Any

from netspace.environment.audit.attempts.attempt import PATIENCE, Attempt, Refused, attempt, want


def reach(address: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as peer:
        peer.settimeout(PATIENCE)
        peer.connect((address, port))
    return f"connected to {address} port {port}"


def _reach(who: str, protocol: str) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        problems = []
        for address in want(target, who, "addresses"):
            try:
                if protocol == "tcp":
                    return reach(address, want(target, who, "port"))
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                with socket.socket(family, socket.SOCK_DGRAM) as peer:
                    peer.settimeout(PATIENCE)
                    peer.connect((address, want(target, who, "port")))
                    peer.send(b"probe")
                    if peer.recv(16):
                        return f"{address} answered"
            except OSError as err:
                problems.append(f"{address}: {err}")
        raise Refused("; ".join(problems))

    return run


for _who in ("peer", "host", "outside"):
    for _protocol in ("tcp", "udp"):
        attempt("network", f"reach {_who} by {_protocol}")(_reach(_who, _protocol))


def _socket(family: int, kind: int, protocol: int) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        with socket.socket(family, kind, protocol):
            return "opened"

    return run


attempt("network", "open a raw IP socket")(_socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("network", "open a packet socket")(_socket(17, socket.SOCK_RAW, 0x0300))
attempt("network", "open a vsock socket")(_socket(40, socket.SOCK_STREAM, 0))
attempt("network", "open a kernel crypto socket")(_socket(38, socket.SOCK_SEQPACKET, 0))
attempt("network", "open a netfilter netlink socket")(_socket(16, socket.SOCK_RAW, 12))
attempt("network", "open a DCCP socket, named")(_socket(socket.AF_INET, 6, 33))
attempt("network", "open a DCCP socket, by its type alone")(_socket(socket.AF_INET, 6, 0))
attempt("network", "open an SCTP socket")(_socket(socket.AF_INET, socket.SOCK_STREAM, 132))
attempt("network", "open a Bluetooth socket")(_socket(31, socket.SOCK_RAW, 1))


@attempt("network", "take the interface down")
def interface_down(target: dict[str, Any]) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                fcntl.ioctl(end, 0x8914, struct.pack("=16sh14x", name.encode(), 0x42))  # SIOCSIFFLAGS, promiscuous
                return f"changed {name}"
    raise Refused("no interface's flags can be changed")


@attempt("network", "mark packets or pretend to be another address")
def transparent(target: dict[str, Any]) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, 36, 1)  # SO_MARK
            return "SO_MARK"
        end.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
    return "IP_TRANSPARENT"


@attempt("network", "give itself an address")
def own_address(target: dict[str, Any]) -> str:
    # RTM_NEWADDR for lo: nlmsghdr, ifaddrmsg, IFA_LOCAL.
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 1) + struct.pack(
        "=HH4s", 8, 2, socket.inet_aton("198.18.99.99")
    )
    with socket.socket(16, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(1)
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII", 16 + len(body), 20, 0x0605, 1, 0) + body)
        answer = netlink.recv(4096)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise Refused(os.strerror(-code))
    return "added an address"


@attempt("network", "bind a host interface or see one")
def see_interfaces(target: dict[str, Any]) -> str:
    names = {name for _, name in socket.if_nameindex()}
    if names - {"lo", "eth0"}:
        return f"sees {sorted(names)}"
    raise Refused(f"only its own interfaces are visible: {sorted(names)}")
