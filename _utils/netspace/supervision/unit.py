"""A service as a systemd unit file (systemd.unit(5), systemd.service(5), systemd.exec(5)). Pure.

systemd confines an ordinary program. It can't confine a container runtime (``delegate``,
``pid_file``), which makes namespaces and mounts, and confines its payload itself: the runtime
gets a cgroup subtree that is bounded as a whole.
"""

from __future__ import annotations

from pathlib import Path

from netspace.layout import Layout
from netspace.supervision import Service

# Everything that is ours starts with this line; what doesn't is never touched.
HEADER = "# Written by netspace; changes are lost."

RESTART = {"always": "always", "on-failure": "on-failure", "never": "no"}

# What a service that makes no namespaces of its own can do without. Not here:
# RestrictNamespaces (the forwarder enters environments' network namespaces) and
# MemoryDenyWriteExecute (the broker's virtual machine compiles as it runs).
CONFINEMENT = """\
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
"""

# systemd supervises a detached program only if it is its own child when the PID file is
# read (else it takes it for somebody else's, and neither waits for its end nor ends it
# gracefully). A runtime's helper that stands between may live a little longer than the
# runtime itself (seen with crun: 1 start in 10), so the launcher is not done before that
# helper is gone. The shell exits before the program is supervised: nothing stays.
#
# Its standard input is a pipe without a writer, not systemd's /dev/null: a runtime makes the
# program's user the owner of its standard streams, and then a program could change the mode
# of the whole host's /dev/null.
HOLD = (
    ': | "$@" || exit; read -r pid <"$0"; [ -n "$pid" ] || exit 1; '
    'while read -r line 2>/dev/null <"/proc/$pid/stat"; do '
    'set -- ${line##*) }; [ "$2" = 1 ] && exit 0; done; exit 0'
)


# Before that: whatever it comes after must be there. The shell waits, and so does systemd.
GATE = 'while [ "$1" != -- ]; do until [ -e "$1" ]; do sleep 0.2; done; shift; done; shift; '
WAITS = "TimeoutStartSec=infinity"
BOOTED = "multi-user.target"

# The first release that lets the delay between restarts grow: 254. Before that it is always the same.
GROWING = 254


# The end of an init whose program ended by SIGTERM: to systemd as good an end as that without an init. Else each unit
# that was stopped would have failed, and the system be degraded.
TERMINATED = "SuccessExitStatus=143"

# systemd forgets how a service ended once it is started again, and never counts.
NOTE = (
    'mkdir -p "${0%/*}" && echo "$SERVICE_RESULT $EXIT_CODE $EXIT_STATUS" >"$0"; '
    '[ "$SERVICE_RESULT" != oom-kill ] || echo >>"$0.oom"'
)


def ended(layout: Layout, service: str) -> Path:
    """Return the path of the note of a detached service's last end."""
    return layout.run / "ended" / service


def kills(layout: Layout, service: str) -> Path:
    """Return the path of a file with one byte per end of the service for want of memory since it was asked to start."""
    return layout.run / "ended" / f"{service}.oom"


def quote(text: str, variables: bool = False) -> str:
    """Return *text* as one word of a unit file, with all escaped that systemd takes for quoting or specifiers.

    :param variables: also escape ``$``, which has a meaning in ``Exec...=`` only.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if variables:
        escaped = escaped.replace("$", "$$")
    for char, name in (("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        escaped = escaped.replace(char, name)
    return '"' + "".join(char if char.isprintable() else _octets(char) for char in escaped) + '"'


def _octets(char: str) -> str:
    return "".join(f"\\x{octet:02x}" for octet in char.encode("utf-8", "surrogateescape"))


def line(argv: tuple[str, ...]) -> str:
    """Return an argument vector as the value of ``Exec...=``."""
    return " ".join(quote(part, variables=True) for part in argv)


def name(layout: Layout, service: str) -> str:
    """Return the name of *service*'s unit."""
    return f"{layout.service(service)}.service"


def render(layout: Layout, service: Service, version: int = GROWING) -> str:
    """Return the unit file of *service*.

    :param version: of systemd.
    """
    after = [name(layout, other) for other in service.after]
    unit = [
        HEADER,
        "[Unit]",
        f"Description={(service.description or f'{layout.instance} {service.name}').replace('%', '%%')}",
        # What may wait for long must not keep the host itself from being up.
        f"After={' '.join([name(layout, 'restore'), 'network.target', *after, *([BOOTED] if service.until else [])])}",
        *([f"Wants={' '.join(after)}"] if after else []),
        # Never give up: the delay between restarts is bounded, not their number.
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        f"Slice={layout.instance}.slice",
        f"SyslogIdentifier={layout.service(service.name)}",
        # Else a program's line that begins with "<0>" would be an emergency, which is shown on every terminal.
        *(["SyslogLevelPrefix=no"] if service.pid_file is not None else []),
        f"WorkingDirectory={_path(service.working_dir)}",
        "UMask=0077",
        *(f"Environment={quote(f'{key}={value}')}" for key, value in sorted(service.variables.items())),
    ]
    gates = (*map(str, service.until), "--") if service.until else ()
    if service.pid_file is None:
        if gates:
            unit.append(f"ExecStartPre={line(('/bin/sh', '-c', f'{GATE}exit 0', 'sh', *gates))}")
        unit += ["Type=exec", f"ExecStart={line(service.command)}"]
    else:
        launcher = ("/bin/sh", "-c", (GATE if gates else "") + HOLD, str(service.pid_file), *gates, *service.command)
        unit += ["Type=forking", f"PIDFile={_path(str(service.pid_file))}", f"ExecStart={line(launcher)}"]
    if service.reload:
        unit.append(f"ExecReload={line(service.reload).replace('{pid}', '$MAINPID')}")
    # First, for of these commands the first that takes longer than a stop may is the last.
    if service.pid_file is not None:
        unit.append(f"ExecStopPost=-{line(('/bin/sh', '-c', NOTE, str(ended(layout, service.name))))}")
    unit += [f"ExecStopPost=-{line(argv)}" for argv in service.cleanup]
    unit += [
        f"Restart={RESTART[service.restart]}",
        *(
            ("RestartSec=100ms", "RestartSteps=8", "RestartMaxDelaySec=30s")
            if version >= GROWING
            else ("RestartSec=5s",)
        ),
        *([WAITS] if gates else []),
        *([TERMINATED] if service.init else []),
        # Nothing would be no limit at all.
        f"TimeoutStopSec={max(1, round(service.stop_timeout * 1000))}ms",
        "KillMode=mixed",
        "OOMPolicy=kill",
        *_limits(service),
    ]
    text = "\n".join(unit) + "\n"
    if service.user:
        text += f"User={service.user}\nCapabilityBoundingSet=\n"
    if service.delegate or service.pid_file is not None:
        text += "Delegate=yes\nDelegateSubgroup=supervisor\n"
    else:
        text += _confinement(service)
    return text + "\n[Install]\nWantedBy=multi-user.target\n"


def _confinement(service: Service) -> str:
    """Return the hardening of a confined service; with a /tmp of its own, unless its program lies in the host's."""
    if any(part.startswith(("/tmp/", "/var/tmp/")) for part in service.command):  # noqa: S108 (a checkout's venv)
        return CONFINEMENT.replace("PrivateTmp=yes\n", "")
    return CONFINEMENT


def render_restore(layout: Layout, command: tuple[str, ...]) -> str:
    """Return the unit that rebuilds, at boot and before any service, all that does not survive a reboot.

    It comes after services that may flush the host's packet filter, which would remove our table again.
    """
    return f"""{HEADER}
[Unit]
Description={layout.instance}: restore namespaces, interfaces, packet filter and images
After=nftables.service firewalld.service ufw.service systemd-modules-load.service systemd-sysctl.service
RequiresMountsFor={_path(str(layout.state))}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={line(command)}
TimeoutStartSec=10min

[Install]
WantedBy=multi-user.target
"""


def _path(path: str) -> str:
    return path.replace("%", "%%")


def _limits(service: Service) -> list[str]:
    limits = service.limits
    lines = []
    if "memory" in limits:
        lines += [f"MemoryMax={int(limits['memory'])}", "MemorySwapMax=0"]
    if "cpus" in limits:
        lines.append(f"CPUQuota={max(1, round(limits['cpus'] * 100))}%")
    if "pids" in limits:
        lines.append(f"TasksMax={int(limits['pids'])}")
    return lines
