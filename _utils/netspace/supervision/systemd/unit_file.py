"""A service as a systemd unit file (systemd.unit(5), systemd.service(5), systemd.exec(5)). Pure.

systemd confines an ordinary program. It can't confine a container runtime (``delegate``, ``pid_file``): a runtime
creates namespaces and mounts, and confines its payload itself. The runtime gets a cgroup subtree with limits for the
whole subtree.
"""

from __future__ import annotations

from pathlib import Path

from netspace.layout import Layout
from netspace.supervision.service import Service

# Every unit file of netspace starts with this line; other files are never touched.
HEADER = "# Written by netspace; changes are lost."

RESTART = {"always": "always", "on-failure": "on-failure", "never": "no"}

# Hardening of a service that creates no namespaces. Left out:
# RestrictNamespaces (the forwarder enters environments' network namespaces) and
# MemoryDenyWriteExecute (the broker's virtual machine compiles at run time).
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

# A shell script that launches a detached program. systemd supervises the program only if it is
# systemd's own child when systemd reads the PID file (else systemd neither waits for its end nor
# ends it gracefully). A helper of the runtime, the program's parent, may live a little longer than the
# runtime itself (seen with crun: 1 start in 10). So the script waits until that helper is
# gone. The shell then exits, and no additional process stays.
#
# The program's standard input is a pipe without a writer, not systemd's /dev/null: a runtime makes the
# program's user the owner of its standard streams, and then a program could change the mode
# of the whole host's /dev/null.
HOLD = (
    ': | "$@" || exit; read -r pid <"$0"; [ -n "$pid" ] || exit 1; '
    'while read -r line 2>/dev/null <"/proc/$pid/stat"; do '
    'set -- ${line##*) }; [ "$2" = 1 ] && exit 0; done; exit 0'
)


# The start of a script: the shell waits until the files of ``until`` exist, and systemd waits for the shell.
GATE = 'while [ "$1" != -- ]; do until [ -e "$1" ]; do sleep 0.2; done; shift; done; shift; '
WAITS = "TimeoutStartSec=infinity"
BOOTED = "multi-user.target"

# The first release of systemd in which the delay between restarts can grow.
GROWING = 254


# The exit status of an init whose program ended by SIGTERM. Without this line, systemd would take each stopped unit
# for a failed one, and the system's state would be "degraded".
TERMINATED = "SuccessExitStatus=143"

# The least time (seconds) that systemd gives each command of a detached service's cleanup, which starts a runtime.
# TimeoutStopSec bounds these commands, too.
CLEANUP = 10.0

# The script of a timer outside of the unit, for a service whose program has less time to end than its cleanup. systemd
# kills the unit's main process by a descriptor. The timer may end after the unit was started again, so the script kills
# only the process that was stopped. $0 is that process's PID, $1 the unit. (Before systemd 252, --kill-whom has no m.)
DEADLINE = (
    '[ "$(systemctl show --value --property=MainPID "$1")" != "$0" ] || '
    'exec systemctl --quiet --kill-who=main --signal=KILL kill "$1"'
)

# A script that notes a service's end: systemd forgets the end when it starts the service again, and doesn't count
# OOM kills.
NOTE = (
    'mkdir -p "${0%/*}" && echo "$SERVICE_RESULT $EXIT_CODE $EXIT_STATUS" >"$0"; '
    '[ "$SERVICE_RESULT" != oom-kill ] || echo >>"$0.oom"'
)


def ended(layout: Layout, service: str) -> Path:
    """Return the path of the file that notes how a detached service last ended."""
    return layout.run / "ended" / service


def kills(layout: Layout, service: str) -> Path:
    """Return the path of the file that has one byte for each OOM kill since the service's last requested start."""
    return layout.run / "ended" / f"{service}.oom"


def quote(text: str, variables: bool = False) -> str:
    """Return *text* as one quoted word of a unit file, with systemd's specifiers escaped.

    :param variables: also escape ``$``, which is special in ``Exec...=`` only.
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


def deadline(layout: Layout, service: str, pid: str) -> str:
    """Return the common name, without a type, of a timer and its service, which kills a program that was stopped.

    No service of ours has a colon in its name.

    :param pid: the program's PID, or ``*`` for a pattern that matches the names for all PIDs.
    """
    return f"{layout.service(service)}:deadline:{pid}"


def has_deadline(text: str) -> bool:
    """Return whether the unit file *text* makes such a timer when its service is stopped."""
    return ":deadline:" in text


def render(layout: Layout, service: Service, version: int = GROWING) -> str:
    """Return the unit file of *service*.

    :param version: the version of systemd.
    """
    after = [name(layout, other) for other in service.after]
    unit = [
        HEADER,
        "[Unit]",
        f"Description={(service.description or f'{layout.instance} {service.name}').replace('%', '%%')}",
        # A unit that waits for files must not delay the boot of the host.
        f"After={' '.join([name(layout, 'restore'), 'network.target', *after, *([BOOTED] if service.until else [])])}",
        *([f"Wants={' '.join(after)}"] if after else []),
        # systemd never gives up: the delay between restarts is bounded, their number is not.
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        f"Slice={layout.instance}.slice",
        f"SyslogIdentifier={layout.service(service.name)}",
        # Otherwise journald would show a program's line that begins with "<0>" as an emergency on every terminal.
        *(["SyslogLevelPrefix=no"] if service.pid_file is not None or service.delegate else []),
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
    stop_timeout = service.stop_timeout
    if service.pid_file is not None and stop_timeout < CLEANUP:
        # No process is forked within the unit: a program that has reached its limit of processes would prevent that.
        after_ms = f"--on-active={max(1, round(stop_timeout * 1000))}ms"
        named = f"--unit={deadline(layout, service.name, '{pid}')}"
        timer = ("/usr/bin/systemd-run", "--quiet", "--collect", named, after_ms, "--timer-property=AccuracySec=10ms")
        kill = line((*timer, "/bin/sh", "-c", DEADLINE, "{pid}", name(layout, service.name)))
        unit.append(f"ExecStop=-{kill.replace('{pid}', '${MAINPID}')}")
        stop_timeout = CLEANUP
    # The note comes first: if one of these commands exceeds the stop timeout, systemd skips the rest.
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
        # 0 would mean no limit.
        f"TimeoutStopSec={max(1, round(stop_timeout * 1000))}ms",
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
    """Return the hardening of a confined service. The service has a private /tmp, if its program isn't in /tmp."""
    if any(part.startswith(("/tmp/", "/var/tmp/")) for part in service.command):  # noqa: S108 (a checkout's venv)
        return CONFINEMENT.replace("PrivateTmp=yes\n", "")
    return CONFINEMENT


def render_restore(layout: Layout, command: tuple[str, ...]) -> str:
    """Return the unit that restores, at boot and before any service, all state that does not survive a reboot.

    It starts after the services that may flush the host's packet filter, since a flush would remove netspace's table.
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
