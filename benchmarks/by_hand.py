"""The peers of the benchmarks: the same objects as netspace makes, made directly with the least possible work.

This code keeps no record, makes no plan and no packet filter, doesn't check what exists already, and syncs nothing to
disk. It uses hand-packed netlink (the *floor*), system calls for namespaces and mounts, and one ``crun run``.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from netspace.environment.storage import mounts
from netspace.environment.user_ids import COUNT

BATCH = 100
_NEWNET = 0x40000000


# -- netlink ---------------------------------------------------------------------------
def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 1 | flags, 0, 0) + body


def up(index: int) -> bytes:
    return message(16, 0, struct.pack("=BxHiII", 0, 0, index, 1, 1))


def pair(name: str, host: int) -> bytes:
    peer = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0")
    peer += attribute(28, struct.pack("=I", host))
    information = attribute(1, b"veth") + attribute(2, attribute(1, peer))
    body = struct.pack("=BxHiII", 0, 0, 2, 0, 0) + attribute(3, b"eth0\0") + attribute(18, information)
    return message(16, 0x600, body)


def packed(address: str) -> tuple[int, int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    return family, 8 * len(raw), raw


def address(index: int, text: str) -> bytes:
    family, bits, raw = packed(text)
    body = struct.pack("=BBBBI", family, bits, 0, 0, index) + attribute(2, raw) + attribute(1, raw)
    return message(20, 0x400, body + attribute(8, struct.pack("=I", 0x202 if family == socket.AF_INET6 else 0x200)))


def route(index: int, to: str, via: str) -> bytes:
    family, bits, raw = packed(to or via)
    head = struct.pack("=BBBBBBBBI", family, bits if to else 0, 0, 0, 254, 4, 0 if via else 253, 1, 4 if via else 0)
    body = head + (attribute(1, raw) if to else b"") + attribute(4, struct.pack("=I", index))
    return message(24, 0x400, body + (attribute(5, packed(via)[2]) if via else b""))


def send(where: socket.socket, messages: list[bytes]) -> None:
    for start in range(0, len(messages), BATCH):
        part = messages[start : start + BATCH]
        last = bytearray(part[-1])
        struct.pack_into("=H", last, 6, struct.unpack_from("=H", last, 6)[0] | 4)
        where.send(b"".join(part[:-1]) + last)
        answer = where.recv(1 << 16)
        code = struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(-code, os.strerror(-code))


def plain(number: int) -> tuple[str, str]:
    return f"10.99.{number >> 8}.{number & 255}", f"fd99::1:{number:x}"


def inner(number: int, host: int) -> list[bytes]:
    """Return the netlink messages sent inside the namespace: the veth pair, addresses, routes."""
    v4, v6 = plain(number)
    return [
        *(pair(f"fl{number}", host), address(2, v4), address(2, v6), up(2)),
        *(route(2, "", "10.98.0.1"), route(2, "", "fd98::1")),
    ]


def outer(number: int) -> list[bytes]:
    """Return the netlink messages sent in the host's namespace."""
    index = socket.if_nametoindex(f"fl{number}")
    v4, v6 = plain(number)
    return [
        *(up(index), address(index, "10.98.0.1"), address(index, "fd98::1")),
        *(route(index, v4, ""), route(index, v6, "")),
    ]


def remove_link(index: int) -> bytes:
    return message(17, 0, struct.pack("=BxHiII", 0, 0, index, 0, 0))


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


# -- namespaces ------------------------------------------------------------------------
_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def in_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as err:
            failed.append(err)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def enter(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        _call(_libc.setns(fd, _NEWNET))
    finally:
        os.close(fd)


def new_namespace(path: Path) -> None:
    """Make a network namespace for the calling thread, and keep the namespace at *path*."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0))
    _call(_libc.unshare(_NEWNET))
    mounts.mount("/proc/thread-self/ns/net", path, "none", mounts.BIND)


def drop_namespace(path: Path) -> None:
    mounts.unmount(path)
    path.unlink()


# -- many interfaces -------------------------------------------------------------------
def floor(paths: list[Path]) -> None:
    """Make interfaces in existing namespaces, with the least possible netlink."""
    host = os.open("/proc/self/ns/net", os.O_RDONLY)

    def inside() -> None:
        for number, path in enumerate(paths):
            enter(path)
            with _netlink() as own:
                send(own, inner(number, host))

    in_thread(inside)
    os.close(host)
    with _netlink() as own:
        send(own, [one for number in range(len(paths)) for one in outer(number)])


def ip_batch(paths: list[Path]) -> None:
    """Make the same interfaces by ``ip -batch``: one process for each namespace, two for the host."""
    _ip([], [f"link add fl{number} type veth peer name eth0 netns {path.name}" for number, path in enumerate(paths)])
    todo: list[str] = []
    for number, path in enumerate(paths):
        v4, v6 = plain(number)
        inside = [f"addr add {v4}/32 dev eth0", f"addr add {v6}/128 dev eth0 nodad", "link set eth0 up"]
        inside += [f"route add default via {gateway} dev eth0 onlink" for gateway in ("10.98.0.1", "fd98::1")]
        _ip(["-n", path.name], inside)
        todo += [f"link set fl{number} up", f"addr add 10.98.0.1/32 dev fl{number}"]
        todo += [f"addr add fd98::1/128 dev fl{number} nodad noprefixroute"]
        todo += [f"route add {v4} dev fl{number}", f"route add {v6} dev fl{number}"]
    _ip([], todo)


def remove_by_ip(count: int) -> None:
    _ip([], [f"link del fl{number}" for number in range(count)])


def _ip(options: list[str], lines: list[str]) -> None:
    subprocess.run(["ip", *options, "-batch", "-"], input="\n".join(lines).encode(), check=True)


# -- one environment -------------------------------------------------------------------
class Environment:
    """One environment made without netspace: namespace, veth pair, addresses, idmapped overlay, bundle.

    :param image: where the image is mounted.
    :param config: the ``config.json`` that netspace renders, with other paths and names.
    :param base: the host's id for the environment's id 0.
    """

    def __init__(self, folder: Path, number: int, image: Path, config: bytes, base: int) -> None:
        self.number = number
        self.image, self.config, self.base = image, config, base
        self.bundle = folder / f"hand{number}"
        self.layer = folder / f"layer{number}"
        self.namespace = Path("/run/netns") / f"hand{number}"

    def network(self) -> None:
        """Make the environment's namespace, pair, addresses and routes, and nothing else."""
        host = os.open("/proc/self/ns/net", os.O_RDONLY)

        def inside() -> None:
            new_namespace(self.namespace)
            with _netlink() as own:
                send(own, [up(1), *inner(self.number, host)])

        in_thread(inside)
        os.close(host)
        with _netlink() as own:
            send(own, outer(self.number))

    def make(self) -> None:
        self.network()
        lower, root = self.bundle / "lower", self.bundle / "rootfs"
        upper, work = self.layer / "upper", self.layer / "work"
        for folder in (lower, root, upper, work, self.bundle / "inside"):
            folder.mkdir(parents=True)
        for folder in (self.bundle, upper):
            folder.chmod(0o755)
        os.chown(upper, self.base, self.base)
        mounts.keep_user_namespace(self.bundle / "users", self.base, COUNT)
        with mounts.opened(self.bundle / "users") as ids:
            mounts.idmapped(self.image, lower, ids)
        mounts.overlay([lower], upper, work, root, mounts.NOSUID | mounts.NODEV)
        mounts.unmount(lower)
        (self.bundle / "config.json").write_bytes(self.config)

    def crun(self, *arguments: str) -> int:
        read, write = os.pipe()
        os.close(write)
        with subprocess.Popen(
            ["/usr/bin/crun", "--root", str(self.bundle.parent / "crun"), *arguments],
            stdin=read,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            close_fds=False,
        ) as running:
            os.close(read)
            assert running.stdout is not None
            # The container's program inherits the pipe, and may go on running: wait only until crun itself has ended.
            code = running.wait()
            if code:
                raise RuntimeError(f"crun {arguments[0]}: {running.stdout.read().decode()}")
        return code

    def run(self) -> None:
        """Run the program, from its start to its exit."""
        self.crun("run", "--bundle", str(self.bundle), self.bundle.name)

    def start(self) -> None:
        self.crun("run", "--detach", "--bundle", str(self.bundle), self.bundle.name)

    def kill(self) -> None:
        self.crun("delete", "--force", self.bundle.name)

    def drop_network(self) -> None:
        with _netlink() as own:
            send(own, [remove_link(socket.if_nametoindex(f"fl{self.number}"))])
        drop_namespace(self.namespace)

    def drop(self) -> None:
        self.drop_network()
        for mounted in ("rootfs", "users"):
            mounts.unmount(self.bundle / mounted)
        shutil.rmtree(self.bundle)
        shutil.rmtree(self.layer)
