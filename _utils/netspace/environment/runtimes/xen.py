"""``xen``: Xen's toolstack, which makes a domain of a kernel that boots as PVH or PV. Only on Xen's dom0.

crun doesn't run the toolstack: who may talk to Xen can read all memory of the machine. The supervisor runs it, with
root's rights, and the hypervisor isolates the kernel. A small shell (:data:`_WATCH`) stays as long as the domain. It
starts ``xl`` in the foreground, joins the domain's device with the environment's interface, copies the console to the
log, and ends with a status that tells how the domain ended. The domain has no disk: the kernel finds its files in its
ramdisk.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Literal

from netspace import paths
from netspace.environment import runtimes
from netspace.layout import DOMAIN_PEER

if TYPE_CHECKING:
    from netspace.environment.runtimes import Domain, Watched

PROGRAM = "xl"
PACKAGE = ""  # it changes what the host boots, so netspace.packages doesn't install it
REMEDY = "install Xen (apt-get install xen-system-amd64) and boot it, or choose the runtime qemu"
RUNS = "kernels"
OWN_KERNEL = True
OUTSIDE = True
STOPS = True
WRITES = False
RESERVE = 0
ONE_LINE = True
LONGEST = 1023  # MAX_GUEST_CMDLINE of xen/include/public/xen.h; a PV kernel would get a longer line cut off
LACKS = ("apparmor",)
FIXED_NAMES = False
ENTRIES = ()

_NEEDED = {"xenstore-read": "xenstore-utils", "xenstore-write": "xenstore-utils", "ip": "iproute2", "tc": "iproute2"}
_DOM0 = "/sys/hypervisor/start_flags/initdomain"
_CONTROL = "/dev/xen/privcmd"

_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})
_KEYS = ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset")

# Enters the environment's network namespace, in which the watch stays, and keeps the host's as descriptor 3.
_ENTER = 'exec 3</proc/self/ns/net || exit; own=$1; shift; exec nsenter --net="$own" -- /bin/sh -c "$@"'

# $0: xl. $1: the domain. $2: its configuration. $3: the file for the reason why a start failed. $4: the file for the
# watch's PID, once the kernel runs. $5: the link that leads to the interface, or nothing. $6: its MTU.
# xl writes "Waiting for domain" when the domain is complete (and still paused), and later why the domain ended; its own
# exit status is 0 after each of these ends.
_WATCH = r"""
name=$1 configuration=$2 refusal=$3 begun=$4 peer=$5 mtu=$6 said=$2.said asked=
rm -f "$begun"
run() { "$0" "$@" 3<&- >/dev/null 2>&1; }
finish() { run destroy "$name"; exit "$1"; }
refuse() {
  { kill $xl; wait $xl; } 2>/dev/null
  [ -z "$asked" ] || finish 0
  printf '%s\n' "$1" >"$refusal"
  finish 125
}
# A kernel that says that it obeys a request to power off is asked to; any other is ended.
halt() {
  asked=1
  id=$("$0" domid "$name" 3<&- 2>/dev/null) || return 0
  case $(xenstore-read "/local/domain/$id/control/feature-poweroff" 2>/dev/null) in
    1) run shutdown "$name" ;;
    *) run destroy "$name" ;;
  esac
}
lead() {
  tc qdisc replace dev "$1" clsact &&
  tc filter replace dev "$1" ingress protocol all prio 1 handle 1 \
    bpf bytecode '1,6 0 0 4294967295' action mirred egress redirect dev "$2"
}
plug() {
  nsenter --net=/proc/self/fd/3 -- ip link set dev "vif$id.0" netns $$ &&
  lead "vif$id.0" "$peer" && lead "$peer" "vif$id.0" &&
  ip link set dev "vif$id.0" arp off mtu "$mtu" up &&
  xenstore-write "/local/domain/0/backend/vif/$id/0/hotplug-status" connected
}
trap halt TERM
run destroy "$name"
: >"$said"
"$0" create -F -p "$configuration" 3<&- </dev/null >"$said" 2>&1 &
xl=$!
until grep -q '^Waiting for domain ' "$said"; do
  kill -0 $xl 2>/dev/null && [ -z "$asked" ] || refuse "$(grep -m 1 -i error "$said" || tail -n 1 "$said")"
  sleep 0.1
done
id=$("$0" domid "$name" 3<&- 2>/dev/null) || refuse 'the domain ended before it began'
if [ -n "$peer" ]; then
  plug 2>"$said.plug" || refuse "its interface can't be joined with the domain: $(tail -n 1 "$said.plug")"
fi
tries=0
until console=$(xenstore-read "/local/domain/$id/console/tty" 2>/dev/null); do
  tries=$((tries + 1))
  [ $tries -lt 100 ] && [ -z "$asked" ] || refuse 'the domain has no console; is xenconsoled running?'
  sleep 0.1
done
# Xen lets no domain write this path. If one could, it would choose what is copied to its log.
case $console in
  /dev/pts/ | /dev/pts/*[!0-9]*) refuse "its console is no terminal: $console" ;;
  /dev/pts/*) ;;
  *) refuse "its console is no terminal: $console" ;;
esac
cat "$console" 3<&- 2>/dev/null &
copy=$!
run unpause "$name" || refuse "the domain can't be started: $(tail -n 1 "$said")"
echo $$ >"$begun"
while kill -0 $xl 2>/dev/null; do wait $xl; done
tries=0
while kill -0 $copy 2>/dev/null && [ $tries -lt 20 ]; do tries=$((tries + 1)); sleep 0.1; done
kill $copy 2>/dev/null
[ -z "$asked" ] || finish 0
case $(sed -n 's/^Domain [0-9]* has shut down, reason code \([0-9]*\) .*/\1/p' "$said" | tail -n 1) in
  0 | 1) finish 0 ;;
  2) finish 2 ;;
  3) finish 3 ;;
  4) finish 4 ;;
  *) tail -n 1 "$said"; finish 125 ;;
esac
"""


class Settings(runtimes.Settings, frozen=True):
    """The settings of xen.

    :param type: how the kernel is entered. ``pvh`` needs a processor with virtualization (SVM or VT-x); ``pv`` doesn't.
    """

    type: Literal["pvh", "pv"] = "pvh"


def problem(settings: Settings) -> str:
    try:
        with open(_DOM0, encoding="ascii") as stream:
            first = stream.read(2).strip() == "1"
    except (OSError, ValueError):
        first = False
    if not first:
        return f"this host is not Xen's dom0; {REMEDY}"
    if not os.path.exists(_CONTROL):
        return f"{_CONTROL} is missing; load the kernel's module xen-privcmd"
    for program, package in _NEEDED.items():
        if paths.program(program, runtimes.SEARCHED) is None:
            return f"the program {program} is missing; apt-get install {package}"
    return ""


def configuration(settings: Settings, domain: Domain) -> str:
    """Return the domain's configuration (xl.cfg(5)). Each key stands on one line, whatever the values hold."""
    whole = math.ceil(domain.cpus)
    lines = {
        "name": quoted(domain.name),
        "type": quoted(settings.type),
        "kernel": quoted(domain.kernel),
        "ramdisk": quoted(domain.ramdisk),
        "extra": quoted(" ".join(domain.arguments)),
        "memory": str(domain.memory // 1024**2),
        "maxmem": str(domain.memory // 1024**2),
        "vcpus": str(whole),
        # In percent of one processor. The number of vcpus bounds a whole number of processors.
        **({"cap": str(max(1, round(domain.cpus * 100)))} if whole != domain.cpus else {}),
        **dict.fromkeys(_KEYS, quoted("destroy")),
    }
    if domain.mac:
        # libxl runs this program when the device is there. The watch joins the device, so there is nothing to do.
        lines["vif"] = f"[ {quoted(f'mac={domain.mac},type=vif,mtu={domain.mtu},script=/bin/true')} ]"
    return "".join(f"{key} = {value}\n" for key, value in lines.items())


def quoted(text: str) -> str:
    """Return *text* as a string of xl's configuration.

    xl refuses numbers after a backslash (libxlu_cfg.c), so only these characters are escaped. A string ends at a quote,
    and a string with a bare newline is an error.

    :raises ValueError: when it has a NUL character, where xl would take its end.
    """
    if "\0" in text:
        raise ValueError(f"{text!r} has a NUL character")
    return '"' + text.translate(_ESCAPED) + '"'


def watch(program: str, watched: Watched) -> tuple[str, ...]:
    """Return the command that makes the domain and stays until it ends."""
    return (
        *("/bin/sh", "-c", _ENTER, "sh", watched.namespace, _WATCH, program, watched.name, watched.configuration),
        *(watched.refusal, watched.pid_file, DOMAIN_PEER if watched.mtu else "", str(watched.mtu)),
    )


def cleanup(program: str, name: str) -> tuple[tuple[str, ...], ...]:
    """Return the commands that end the domain, if there is one."""
    # What xl says if there is none doesn't belong into the kernel's log.
    return (("/bin/sh", "-c", 'exec "$0" destroy "$1" >/dev/null 2>&1', program, name),)
