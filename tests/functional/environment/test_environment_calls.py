"""System calls, made inside an environment: the kernel refuses exactly the calls that netspace's tables refuse."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os

import pytest
from support.sampling import todays

from netspace.environment.container import seccomp
from netspace.environment.container.seccomp_arguments import NARROWED

pytestmark = pytest.mark.root

PYTHON = "/usr/bin/python3"
LAST = 520  # above the last system call that there is
NONE = 2**64 - 1  # an argument that is invalid for nearly everything: no descriptor, address, size or flag

# x86's uretprobe and uprobe: the kernel answers them before any filter, and only itself can use them.
UNFILTERED = (335, 336)

STEPS = (-1, 0, 1)

# Errors that no kernel gives: so the filter's own answers can be told from the kernel's.
DENIED, ABSENT = 1001, 1002

# Makes each call of standard input by its number, each in a child, and prints what came of it.
CALL = """
import ctypes, json, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
answers = []
for number, arguments in json.load(sys.stdin):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(2)
        own = os.getpid()
        result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in arguments))
        error = ctypes.get_errno() if result == -1 else 0
        if os.getpid() == own:  # a fork's child says nothing
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    said = os.read(reader, 9)
    os.close(reader)
    answers.append(int(said) if said else os.waitstatus_to_exitcode(status))
json.dump(answers, sys.stdout)
"""


def resolve(name: str) -> int:
    """Return the number of a system call on this machine, from crun's own library; negative if there is none."""
    library = ctypes.CDLL("libseccomp.so.2")
    return int(library.seccomp_syscall_resolve_name(name.encode()))


def name_of(number: int) -> str:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    library.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
    found = library.seccomp_syscall_resolve_num_arch(0, number)  # 0: SCMP_ARCH_NATIVE
    return found.decode() if found else ""


def call(host, name, calls, script=CALL):
    done = host.operations.exec(name, [PYTHON, "-c", script], stdin=json.dumps(calls), timeout=300)
    assert done["retcode"] == 0, done
    return json.loads(done["stdout"])


def edges():
    """Yield calls that pass only with some arguments, with values at, beside and outside of the permitted ranges."""
    for name, narrow in NARROWED.items():
        values = {
            *narrow.refused.values(),
            *(bound + step for ends in narrow.passes for bound in ends for step in STEPS),
        }
        for value in values - {-1}:
            for upper in (0, 1 << 32):  # the kernel doesn't look at these bits
                arguments = [NONE] * 6
                arguments[narrow.place] = upper | value
                yield name, arguments


LOWER = """
import ctypes, resource
libc = ctypes.CDLL(None, use_errno=True)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # raises where it is refused
both = (ctypes.c_ulong * 2)(0, 0)
known = (ctypes.c_ulong * 2)(7, 7)
print(libc.prlimit64(0, resource.RLIMIT_CORE, both, known), ctypes.get_errno(), list(known))
print(resource.getrlimit(resource.RLIMIT_CORE))
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("profile", seccomp.PROFILES)
def test_no_program_changes_its_limit_on_core_files(host, debian, profile):
    """A program can't raise its limit on core files, for which the host's crash handler runs as root; it may set 0."""
    host.run("web", image=f"dir:{debian}", seccomp=profile)
    done = host.operations.exec("web", [PYTHON, "-c", LOWER])
    assert done["stdout"].splitlines() == ["-1 1 [7, 7]", "(1, 1)", "(16, 16)"], done


@pytest.mark.parametrize("profile", todays(list(seccomp.PROFILES), 2))
def test_every_call_is_answered_as_the_tables_say(host, debian, tmp_path, profile):
    """Every call is made with several arguments, and refused or passed as the tables say.

    The tables' filter gets error numbers that only a filter returns, so no other error counts as a refusal.
    """
    rules = seccomp.profile(profile)
    rules["defaultErrnoRet"] = DENIED
    for rule in rules["syscalls"]:
        if rule.get("errnoRet"):
            rule["errnoRet"] = ABSENT
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(rules))
    host.run("web", image=f"dir:{debian}", limits={"pids": 64}, seccomp=f"file:{path}")
    # All ones; and all noughts, which other conditions on arguments let through.
    plans = [(number, [value] * 6) for number in range(LAST) for value in (NONE, 0)]
    plans += [(resolve(name), arguments) for name, arguments in edges()]
    skipped = {"vfork", "rt_sigreturn"}  # share this program's memory; end it
    plans = [entry for entry in plans if name_of(entry[0]) not in skipped]
    wrong, refused, passed = [], 0, 0
    for (number, arguments), got in zip(plans, call(host, "web", plans), strict=True):
        expected = seccomp.answer(rules, name_of(number), arguments)
        if expected.passes:
            passed += 1
            right = got not in (DENIED, ABSENT)
        else:
            refused += 1
            right = got == expected.errno
        if not right and number not in UNFILTERED:
            wrong.append((name_of(number) or number, arguments[0], got, expected))
    assert not wrong, wrong
    assert refused > 300
    assert passed > 400


@pytest.mark.parametrize("family", seccomp.NEVER)
@pytest.mark.parametrize("profile", seccomp.PROFILES)
def test_a_refused_family(host_of, family, profile):
    """Each call of *family*, made by its number, gets EPERM, or ENOSYS for a call that programs can do without."""
    names = [name for name in seccomp.NEVER[family].calls.split() if resolve(name) >= 0]
    answers = call(host_of(profile), profile, [(resolve(name), [0] * 6) for name in names])
    told_absent = seccomp.ABSENT.split()
    assert dict(zip(names, answers, strict=True)) == {name: 38 if name in told_absent else 1 for name in names}


@pytest.fixture(scope="module")
def host_of(debian, disk):
    """A function that returns the one environment of a profile, which all tests of the profile share."""
    from support.environments.environment_host import Host

    from netspace.environment.storage import mounts
    from netspace.layout import Layout

    images = Layout().images
    images.mkdir(parents=True, exist_ok=True)
    mounts.mount(disk, images, "none", mounts.BIND)
    hosts = Host(debian)

    def get(profile):
        if profile not in hosts.kind.names():
            hosts.run(profile, limits={"pids": 64}, seccomp=profile)
        return hosts

    yield get
    hosts.clear()
    mounts.unmount(images)


SOCKETS = """
import errno, json, socket, sys
answers = {}
for name, arguments in json.load(sys.stdin).items():
    try:
        socket.socket(*arguments).close()
        answers[name] = "made"
    except OSError as err:
        answers[name] = errno.errorcode[err.errno]
json.dump(answers, sys.stdout)
"""


@pytest.mark.parametrize("profile", seccomp.PROFILES)
def test_sockets_of_other_families_and_protocols(host_of, profile):
    wanted = {
        "tcp": (2, 1, 0),
        "udp": (2, 2, 0),
        "unix": (1, 5, 0),
        "route": (16, 3, 0),
        "packet": (17, 3, 768),
        "vsock": (40, 1, 0),
        "alg": (38, 5, 0),
        "bluetooth": (31, 3, 1),
        "can": (29, 3, 1),
        "key": (15, 3, 2),
        "tipc": (30, 2, 0),
        "rds": (21, 5, 0),
        "xdp": (44, 3, 0),
        "dccp": (2, 6, 33),
        "dccp without a protocol": (2, 6, 0),
        "sctp": (2, 1, 132),
        "mptcp": (2, 1, 262),
        "udp-lite": (2, 2, 136),
        "raw": (2, 3, 1),
        "netfilter": (16, 3, 12),
        "audit": (16, 3, 9),
        "uevent": (16, 3, 15),
        "sock_diag": (16, 3, 4),
    }
    answers = call(host_of(profile), profile, wanted, SOCKETS)
    allowed = {"tcp", "udp", "unix", "route"}
    assert answers == {name: "made" if name in allowed else "EPERM" for name in wanted}


OTHER_ABI = """
import ctypes, json, mmap, os
# getpid by int 0x80 (the 32-bit table) and by the x32 table: mov eax, N; int 0x80 / syscall; ret
answers = {}
i386, x32 = b"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3", b"\\xb8\\x27\\0\\0\\x40\\x0f\\x05\\xc3"
for name, code in {"i386": i386, "x32": x32}.items():
    pid = os.fork()
    if pid == 0:
        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(code)
        run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
        os._exit(1 if run() > 0 else 0)
    answers[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
json.dump(answers, __import__("sys").stdout)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other tables of calls are x86's")
def test_no_other_table_of_system_calls(host_of):
    answers = call(host_of("strict"), "strict", {}, OTHER_ABI)
    assert all(code <= 0 for code in answers.values()), answers  # killed, or told that there is none


OWN_SANDBOX = """
import ctypes, errno, os, select, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
done = []
# Threads, an event loop, a file in memory, timers.
thread = threading.Thread(target=done.append, args=("thread",)); thread.start(); thread.join()
poll = select.epoll(); reader, writer = os.pipe(); poll.register(reader, select.EPOLLIN); os.write(writer, b"x")
if poll.poll(1): done.append("epoll")
memory = os.memfd_create("m", os.MFD_ALLOW_SEALING); os.write(memory, b"x"); done.append("memfd")
done.append("pidfd %d" % (os.pidfd_open(os.getpid()) > 0))
# Landlock: from now on this thread may read nothing below / but /usr.
open("/tmp/before", "w").close()
version = syscall(444, None, 0, 1)
ruleset = syscall(444, struct.pack("=Q", 0b1111111111111), 8, 0)
usr = os.open("/usr", os.O_PATH)
syscall(445, ruleset, 1, struct.pack("=Qi", 0b1101, usr), 0)
assert libc.prctl(38, 1, 0, 0, 0) == 0
syscall(446, ruleset, 0)
os.listdir("/usr")
for path, mode in (("/tmp/before", "r"), ("/tmp/after", "w"), ("/etc/ssl/openssl.cnf", "r")):
    try:
        open(path, mode)
        sys.exit("landlock let through " + path)
    except OSError as err:
        assert err.errno == errno.EACCES, err
done.append("landlock")
# A filter of its own, narrower than ours: getppid (110, 173) fails with 95 from now on.
number = 110 if os.uname().machine == "x86_64" else 173
program = b"".join(struct.pack("=HBBI", *line) for line in (
    (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 95), (0x06, 0, 0, 0x7FFF0000)))
buffer = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
assert libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(buffer))), 0, 0) == 0
try:
    syscall(number)
except OSError as err:
    assert err.errno == 95
    done.append("seccomp")
print(",".join(done))
"""


def _landlock() -> bool:
    return ctypes.CDLL(None).syscall(444, None, 0, 1) > 0


def test_a_program_can_narrow_itself(host_of):
    if not _landlock():
        pytest.skip("this host's kernel has no Landlock")
    done = host_of("strict").operations.exec("strict", [PYTHON, "-c", OWN_SANDBOX])
    assert done["stdout"].strip() == "thread,epoll,memfd,pidfd 1,landlock,seccomp", done


ARGUMENTS = """
import ctypes, errno, fcntl, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
answers = {}
def attempt(name, action):
    try:
        result = action()
    except OSError as err:
        answers[name] = errno.errorcode[err.errno]
    else:
        failed = isinstance(result, int) and result < 0
        answers[name] = errno.errorcode[ctypes.get_errno()] if failed else "done"
file = os.open("/tmp/own", os.O_RDWR | os.O_CREAT, 0o600)
os.write(file, b"x" * 8192)
pipe = os.pipe()[1]
attempt("lease", lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK))
attempt("lease, upper bits", lambda: libc.syscall(
    ctypes.c_long(72 if os.uname().machine == "x86_64" else 25), ctypes.c_long(file), ctypes.c_ulong(1 << 32 | 1024),
    ctypes.c_long(1)))
attempt("notify", lambda: fcntl.fcntl(os.open("/tmp", os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_CREATE))
attempt("forget pages", lambda: os.posix_fadvise(os.open("/usr/bin/perl", os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED))
attempt("write all", lambda: libc.syncfs(file))
anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
attempt("huge mapping", lambda: mmap.mmap(-1, 2 << 20, flags=anonymous | 0x40000))
attempt("huge file", lambda: os.memfd_create("x", 4))
attempt("huge segment", lambda: libc.shmget(0, ctypes.c_size_t(2 << 20), 0o4600))
memory = mmap.mmap(-1, 8192, flags=anonymous)
attempt("merge", lambda: memory.madvise(12))
attempt("merge all", lambda: libc.prctl(67, 1, 0, 0, 0))
refused = dict(answers)
answers.clear()
attempt("duplicate", lambda: fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 10))
attempt("lock", lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB))
attempt("size of a pipe", lambda: fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 8192))
sealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
attempt("seals", lambda: fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK))
attempt("read ahead", lambda: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED))
attempt("sync", lambda: os.fsync(file))
attempt("segment", lambda: libc.shmget(0, ctypes.c_size_t(8192), 0o600))
attempt("free", lambda: memory.madvise(mmap.MADV_FREE))
attempt("fork", lambda: memory.madvise(mmap.MADV_DONTFORK))
attempt("name", lambda: libc.prctl(15, b"name", 0, 0, 0))
json.dump([refused, answers], sys.stdout)
"""


@pytest.mark.parametrize("profile", seccomp.PROFILES)
def test_nobody_holds_up_or_spies_on_the_host_by_an_argument(host_of, profile):
    """System calls with arguments for leases, or for huge, merged or cached pages, are refused.

    With other arguments, the same calls succeed.

    A lease delays other processes that open the file. Huge, merged and cached pages belong to the whole host.
    """
    refused, passed = call(host_of(profile), profile, {}, ARGUMENTS)
    assert len(refused) == 10 and set(refused.values()) == {"EPERM"}, refused
    assert len(passed) == 10 and set(passed.values()) == {"done"}, passed


STANDARD = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
context = ctypes.c_ulong(0)
arm = os.uname().machine == "aarch64"
print(call(0 if arm else 206, 8, ctypes.byref(context)), call(186 if arm else 68, 0, 0o1600))
"""


def test_what_standard_adds(host_of):
    def run(profile):
        done = host_of(profile).operations.exec(profile, [PYTHON, "-c", STANDARD])
        return done["stdout"].split()

    assert run("strict") == ["ENOSYS", "EPERM"]
    assert run("standard") == ["done", "done"]


def test_a_file_is_a_profile_and_a_change_of_it_a_restart(host, tmp_path):
    path = tmp_path / "own.json"
    rules = seccomp.profile("strict")
    path.write_text(json.dumps(rules))
    wanted = {"web": host.desired("web", seccomp=f"file:{path}")}
    host.apply(wanted)
    pid = host.pid("web")
    assert host.plan({"web": host.desired("web", seccomp=f"file:{path}")}).steps == []
    assert "can't create" not in host.sh("web", "mkdir /tmp/x")

    rules["syscalls"] = [
        {**rule, "names": [name for name in rule["names"] if name not in ("mkdir", "mkdirat")]}
        for rule in rules["syscalls"]
    ]
    path.write_text(json.dumps(rules))
    wanted = {"web": host.desired("web", seccomp=f"file:{path}")}
    (step,) = host.plan(wanted).steps
    assert (step.action, list(step.changes)) == ("restart", ["seccomp"])
    host.apply(wanted)
    assert host.pid("web") != pid
    assert "not permitted" in host.sh("web", "mkdir /tmp/x")
    # What runs doesn't need the file, nor does what starts again after a reboot.
    path.unlink()
    host.operations.stop(["web"])
    assert host.operations.start(["web"]) == {"web": ""}
    assert "not permitted" in host.sh("web", "mkdir /tmp/x")
    gone = host.plan({"web": host.desired("web", seccomp=f"file:{path}")})
    assert (gone.steps, [refusal.name for refusal in gone.refusals]) == ([], ["web"])
