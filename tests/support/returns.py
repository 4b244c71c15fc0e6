"""Sample returns of netspace's functions: one for each kind of return that has a table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

NOW = 1_000_000.0

FAILED: dict[str, Any] = {
    "state": "starting", "pid": 0, "since": NOW - 3, "restarts": 6, "exit": "exit 1", "oom_kills": 0, "flapping": True,
    "image": "tar:/srv/web.tar", "digest": "sha256:" + "c" * 64, "wanted": "running", "declared_stopped": False,
    "runtime": "crun", "health": "", "updating": False, "supervised": True, "problem": "it ended (exit 1)",
}  # fmt: skip
RUNNING = FAILED | {
    "state": "running", "since": NOW - 3600 * 3, "restarts": 0, "flapping": False, "health": "healthy", "problem": "",
}  # fmt: skip
STOPPED = RUNNING | {"state": "stopped", "health": "", "declared_stopped": True}
ENVIRONMENTS = {"audit": STOPPED, "orders": RUNNING, "web": FAILED}
VETH = {
    "kind": "veth",
    "addresses": {"ipv4": "10.203.54.242"},
    "host_end": "ns-web",
    "netns": "/run/netns/netspace-web",
}
INTERFACES = {
    "orders": VETH | {"kind": "none", "addresses": {}, "host_end": "", "state": "present"},
    "web": VETH | {"state": "differs", "differs": ["mtu"], "publish": ["443:8443"]},
}
LINKS = {
    "broker": {"kind": "local", "state": "running", "vhost": "netspace"},
    "links": {
        "orders.web": {"from": "orders", "to": "web", "pattern": "send", "state": "active"},
        "web.orders": {"from": "web", "to": "orders", "pattern": "request", "seal": True, "state": "active"},
        "web.till@h2": {
            "from": "web", "to": "till@h2", "pattern": "send", "via": "buffered", "state": "stalled", "why": "no route",
        },
    },
    "mailboxes": {"web": {"messages": 12, "consumers": 0}, "orders": {"messages": 0, "consumers": 1}},
    "parked": ["gone"], "dead": 2, "late": 0,
}  # fmt: skip
TRUST = {
    "level": "L1", "verifier": "self", "reason": "no TPM is named", "remedy": "name a TPM in attestation:tpm",
    "issued": NOW - 60, "expires": NOW + 7200, "fallback": False, "tpm": {}, "tee": {},
}  # fmt: skip
OVERVIEW = {
    "trust": {key: TRUST[key] for key in ("level", "verifier", "reason")},
    "environments": {name: row | {"interface": INTERFACES.get(name, {})} for name, row in ENVIRONMENTS.items()},
    "links": LINKS,
    "supervised": True,
}
HOST = {
    "state": "trusted", "level": "L3", "reason": "", "code": None, "remedy": "", "group": "default", "minimum": "L2",
    "last_level": "L3", "policy_version": 1, "tee": None, "evidence": NOW - 60, "age": 60, "deadline": NOW + 3600,
}  # fmt: skip
FLEET = {
    "h1": HOST,
    "h2": HOST
    | {"state": "stale", "level": "L0", "reason": "no answer", "remedy": "attest h2", "deadline": NOW - 7200},
}
ENROLLED = {
    "h1": {
        "minion": "h1", "level": "L4", "reason": "no policy for IMA", "ek": "ab" * 32, "template": "EK",
        "tpm": {},
        "pseudonym": "p", "serial": "1", "enrolled": NOW - 86400 * 9, "expires": NOW + 3600 * 20,
    },
    "h2": {
        "minion": "h2", "level": "L4", "reason": "", "ek": "cd" * 32, "template": "EK", "tpm": {},
        "pseudonym": "p", "serial": "1", "enrolled": NOW - 86400 * 9, "expires": NOW - 60,
    },
}  # fmt: skip
IMAGES = {
    f"sha256:{'a' * 64}": {
        "sources": ["tar:/srv/web.tar"], "size": 90 * 2**20, "built": NOW - 86400 * 3, "used_by": ["web"],
        "mounted": True,
    },
}  # fmt: skip
VOLUMES = {
    "orders": {"/data": {"size": 5 * 2**30, "used": 2**20, "file": "/var/lib/netspace/volumes/orders/data.ext4"}}
}
EXPLANATION = {
    "explains": "web", "summary": "web does not run: it was killed for lack of memory; restarted 6 times",
    "state": "starting", "health": "", "since": NOW - 3, "pillar": "declared", "declared_state": "running",
    "restart": "always", "image": "tar:/srv/web.tar", "digest": "sha256:" + "c" * 64,
    "trust": {"level": "L1", "withheld": ""}, "after": {"orders": True}, "last_exit": "oom", "restarts": 6,
    "limits": {
        "memory": {"limit": 64 * 2**20, "used": 60 * 2**20, "hits": 9}, "pids": {"limit": 16, "used": 2, "hits": 0},
        "cpus": {"limit": 1.0, "seconds": 75.5, "throttled": 12.0}, "oom_kills": 6,
    },
    "interface": {"kind": "veth", "state": "present", "addresses": {"ipv4": "10.203.54.242"}},
    "links": [{"from": "web", "to": "orders", "pattern": "request", "state": "active", "waiting": 0, "readers": 1}],
    "findings": [
        {"code": "oom", "severity": "error", "text": "it was killed for lack of memory; restarted 6 times",
         "advice": "raise limits:memory in its declaration, and apply", "command": "state.apply netspace",
         "depends_on": ""},
        {"code": "dead-letters", "severity": "warning", "text": "dead letters of web.orders: 2 rejected", "advice": "a",
         "command": "netspace_link.dead_letters", "depends_on": ""},
    ],
    "log": ["Traceback (most recent call last):", "\x1b[31mMemoryError"],
}  # fmt: skip
EDGE = {
    "by": "messages", "from": "web", "to": "orders", "answers": False, "rule": "netspace:links:web.orders",
    "what": "requests",
}  # fmt: skip
TAKEN = EDGE | {
    "by": "packets", "from": "0.0.0.0/0", "to": "web", "what": "host's 443/tcp to port 8443",
    "rule": "netspace:environments:web:interface:publish:0",
}  # fmt: skip
ANSWER = {
    "summary": "web can reach orders", "from": "web", "to": "orders", "can": True, "answers": False,
    "rules": [EDGE | {"since": NOW - 3600 * 3}],
    "why_not": {"packets": "orders has no interface"}, "through": [],
}  # fmt: skip
INDIRECT = ANSWER | {
    "summary": "0.0.0.0/0 can reach orders only by way of web",
    "can": False,
    "rules": [],
    "through": [TAKEN, EDGE],
}
PATHS = {
    "paths_to": "orders",
    "paths": [
        {"from": "web", "answers": False, "through": [], "rules": [EDGE]},
        {"from": "0.0.0.0/0", "answers": False, "through": ["web"], "rules": [TAKEN, EDGE]},
    ],
}
_WEB = {"kind": "environment", "name": "web", "action": "restart", "reason": "its namespace was replaced"}
DIFFERENCES: dict[str, Any] = {
    "compared_with": "last apply", "compared": "2026-01-02T03:04:05Z", "differs": True,
    "differences": [
        {"kind": "interface", "name": "orders", "action": "change", "key": "routes", "old": ["10.0.0.1"], "new": None,
         "reason": ""},
        _WEB | {"key": "limits:memory", "old": 64, "new": 128},
        _WEB | {"key": "volumes", "old": [{"size": 1}], "new": []},
        {"kind": "link", "name": "web.orders", "action": "create", "key": "from", "old": None, "new": "web",
         "reason": ""},
        {"kind": "link", "name": "web.orders", "action": "create", "key": "to", "old": None, "new": "orders",
         "reason": ""},
    ],
    "refused": [{"kind": "environment", "name": "vault", "message": "needs L3"}], "notes": ["mail is parked"],
}  # fmt: skip
_PLACED = {
    "on": ["h1"], "hosts": ["h1"], "replicas": 1, "reason": "h1 is named", "refused": {"h2": "it lacks memory"},
    "moves": ["web leaves h2"], "missing": [], "problems": ["web: no host is left"],
}  # fmt: skip
FLEET_STATUS = {
    "status_of": "fleet", "asked": NOW, "summary": "1 of 2 hosts needs attention", "notes": ["a plan is old"],
    "hosts": {
        "h1": {
            "state": "attention", "environments": {"well": 1, "expected": 2}, "more": 1,
            "trust": {"level": "L3", "state": "trusted", "mark": "well", "by": "verifier", "evidence": NOW - 60},
            "attention": [{"what": "web", "text": "it ended (exit 1)", "mark": "bad"}],
        }
    },
    "nowhere": {"orders": "no host has the label"},
}  # fmt: skip
FLEET_LIST = {
    "list_of": "fleet", "asked": NOW, "notes": [],
    "environments": [
        {"environment": "web", "host": "h1", "mark": "bad", "state": "failed", "health": "", "restarts": 3,
         "since": NOW - 5, "text": "it ended (exit 1)"},
    ],
}  # fmt: skip
FLEET_EXPLANATION = {
    "explains_in_fleet": "web", "summary": "web runs on h1", "placement": _PLACED,
    "hosts": {"h1": EXPLANATION, "h2": {"error": "no answer within 30 s"}},
}  # fmt: skip
CHECKED = {"valid": False, "problems": [{"path": "netspace:environments:web:image", "message": "no such image"}]}
REFUSED = {
    "refusals_of": "web", "not_recorded": {"files": "the kernel tells nobody"},
    "rows": [{"kind": "packets", "what": "out: tcp to 10.203.54.242, port 443", "count": 12, "first": NOW - 7200,
              "last": NOW - 60, "permitted_now": False, "why": "no rule lets this protocol pass"}],
}  # fmt: skip
_CHANGE = {
    "kind": "environment", "action": "restart", "changes": {"image": {"old": "tar:/srv/web.tar", "new": "web"}},
    "reason": "its image changed", "places": [{"hosts": ["h1", "h2"], "names": ["web", "orders"]}],
}  # fmt: skip
PLAN = {
    "plan": "0123456789ab", "counts": {"change": 2, "hosts": 3, "same": 0, "without_plan": 1, "redeclared": 0},
    "changes": [_CHANGE], "moves": [{"environment": "web", "reason": "h2 is drained"}],
    "withheld": [{"hosts": ["h1"], "kind": "link", "name": "web.orders", "message": "needs L3"}],
    "without_plan": [{"hosts": ["h2"], "reason": "did not answer"}],
}  # fmt: skip
APPLIED = {
    "applied": "0123456789ab", "counts": {"failed": 1, "done": 1, "hosts": 2},
    "failed": [{"hosts": ["h1"], "reason": "no disk"}], "done": [{"hosts": ["h2"], "reason": "web waits for orders"}],
}  # fmt: skip
COMPARED = {
    "plans": ["0123456789ab", "ba9876543210"], "dropped": [_CHANGE], "added": [], "without_plan": ["h1"],
    "with_plan": ["h2"], "redeclared": [],
}  # fmt: skip
DONE = {"name": "netspace_image.prune", "result": True, "changes": {}, "comment": "1 change made:\n- remove image web"}
HEALTH = {"ok": False, "problems": ["the mailbox of web has no reader"], "findings": [], "dead": 2, "late": 1}
TRIED = {
    "comment": "ISOLATION IS BROKEN: 1 refused", "refused": 1,
    "rows": [{"name": "ptrace", "group": "processes", "outcome": "succeeded", "detail": "read the memory of web"}],
}  # fmt: skip
BASES = {
    "tcb_of": {
        "web": {
            "rows": [
                {"part": "management controller", "value": "a BMC, IPMI 2.0", "source": "told by the host",
                 "term": "bmc: absent", "holds": False},
                {"part": "firmware version", "value": "1.2.3", "source": "measured in PCR 0",
                 "term": "", "holds": None},
            ],
            "measured": NOW - 60,
            "note": "",
        },
        "h1": {"rows": [], "measured": None, "note": "nothing is measured: this host has sent no genuine quote"},
    }
}  # fmt: skip
TENANTS = {
    "acme": {
        "environments": ["acme-web", "acme-orders"], "running": 1, "reaches": ["umbra"],
        "quota": {
            "environments": {"declared": 2, "most": 2}, "memory": {"declared": "512M", "most": "2G"},
            "cpus": {"declared": 0.5, "most": 2.0},
        },
    },
    "umbra": {"environments": [], "running": 0, "reaches": [], "quota": {"links": {"declared": 0, "most": 0}}},
}  # fmt: skip
INSPECTED_ENVIRONMENT = {
    "spec": {"image": "tar:/srv/web.tar", "limits": {"memory": 268435456, "disk": None}, "after": ["orders"]},
    "layer": "/var/lib/netspace/layers/web", "netns": "web", "state": "running", "since": NOW - 60,
}  # fmt: skip
INSPECTED_IMAGE = {
    "digest": "sha256:" + "4c" * 32, "file": "/var/lib/netspace/images/sha256-" + "4c" * 32 + ".erofs",
    "sources": {"tar:/srv/web.tar": {"cmd": [], "env": {}, "user": None}}, "used_by": ["orders", "web"],
    "verity": "none", "size": 68829184, "built": NOW - 90, "mounted": True,
}  # fmt: skip
INSPECTED_INTERFACE = {
    "declared": {"kind": "bridge", "addresses": ["10.203.54.242/24"]}, "live": {"mtu": 1500}, "drift": {},
    "netns": "web",
}  # fmt: skip
RETURNS: list[dict[str, Any]] = [
    DIFFERENCES,
    ANSWER,
    INDIRECT,
    PATHS,
    EXPLANATION,
    ENVIRONMENTS,
    INTERFACES,
    LINKS,
    TRUST,
    OVERVIEW,
    FLEET,
    ENROLLED,
    IMAGES,
    VOLUMES,
    FLEET_STATUS,
    FLEET_LIST,
    FLEET_EXPLANATION,
    CHECKED,
    REFUSED,
    PLAN,
    {"drift": "0123456789ab", **{key: value for key, value in PLAN.items() if key != "plan"}},
    APPLIED,
    COMPARED,
    DONE,
    HEALTH,
    TRIED,
    BASES,
    TENANTS,
    INSPECTED_ENVIRONMENT,
    INSPECTED_IMAGE,
    INSPECTED_INTERFACE,
]
"""A return of each form that has a table."""

MACHINES = frozenset(
    {
        *("netspace_attestation.answer", "netspace_attestation.enroll", "netspace_attestation.evidence"),
        *("netspace_attestation.accept", "netspace_attestation.activate", "netspace_fleet.slice"),
        *("netspace_link.signed_answer", "pillar.get", "pillar.items"),
    }
)
"""Functions whose returns only programs read: answers between hosts, and pillars."""
_NEAR = 400 * 86400
"""Seconds around the present in which a number is taken for a time. Few sizes and counts are so near to 1.8 billion."""


def times_without_text(function: str, data: object) -> Iterator[str]:
    """Yield the place of each time in *data*, a return of *function*, that has no readable text beside it."""
    if function.startswith("netspace") and function not in MACHINES:
        yield from _without_text(data, "", time.time())


def _without_text(data: object, place: str, now: float) -> Iterator[str]:
    rows: dict[object, object] = (
        data if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, list) else {}
    )
    for name, value in rows.items():
        at, text = f"{place}:{name}".removeprefix(":"), rows.get(f"{name}_at")
        if isinstance(value, dict) and isinstance(text, dict):  # a time for each name
            value = {key: one for key, one in value.items() if key not in text}
        if isinstance(value, int | float) and abs(value - now) < _NEAR and text is None:
            yield f"{at}: {value}"
        yield from _without_text(value, at, now)
