"""Architecture of the library: permitted imports, pure modules, and the size of modules.

Lazy imports and imports for type checking count, since they connect modules as others do.
"""

from __future__ import annotations

import ast
import graphlib

import pytest
from support import library_modules

FILES = library_modules.modules()
IMPORTS = library_modules.imports(FILES)

KINDS = ("environment", "interface", "link", "attestation")
# From below to above: a part imports from its own and from those before it. Kinds never import each other.
LAYERS = (
    ("netlink",),
    ("nftables",),
    ("bpf",),
    ("spec",),
    ("supervision",),
    ("ledger",),
    KINDS,
    ("fleet",),
    ("plugin",),
    ("host",),
    ("__main__",),
)
PARTS = {part: rank for rank, parts in enumerate(LAYERS, 1) for part in parts}
# The one module that finds what extends a declaration: interface kinds, runtimes, image sources.
UPWARDS = {"spec.extensions"}

# Modules that do nothing but compute: no file, process, socket or clock is within reach of what they import.
PURE = {
    "attestation.base64_fields",
    "attestation.clocks",
    "attestation.endorsement.der",
    "attestation.endorsement.ek_certificates",
    "attestation.endorsement.path_rules",
    "attestation.endorsement.revocation",
    "attestation.evidence",
    "attestation.fleet.calls",
    "attestation.fleet.challenge",
    "attestation.fleet.groups",
    "attestation.fleet.host_state",
    "attestation.fleet.lanes",
    "attestation.ledger_proof",
    "attestation.fleet.origin",
    "attestation.fleet.result_fields",
    "attestation.identity",
    "attestation.learning.boot",
    "attestation.learning.ima",
    "attestation.learning.policy",
    "attestation.logs.boot_entries",
    "attestation.logs.eventlog",
    "attestation.logs.events",
    "attestation.logs.ima",
    "attestation.logs.measured",
    "attestation.logs.systemd",
    "attestation.policy.boot",
    "attestation.policy.environments",
    "attestation.policy.policy",
    "attestation.policy.tcb",
    "attestation.policy_reading",
    "attestation.refusals",
    "attestation.registrar.enrolment",
    "attestation.registrar.host_record",
    "attestation.tcb.report",
    "attestation.tcb.smbios",
    "attestation.tee.report",
    "attestation.tee.rules",
    "attestation.tpm.credential",
    "attestation.tpm.structures",
    "attestation.tpm.tcti",
    "attestation.verifier.ak_certificate",
    "attestation.verifier.appraisal",
    "attestation.verifier.attestation_keys",
    "attestation.verifier.boot_rules",
    "attestation.verifier.extensions",
    "attestation.verifier.ima_rules",
    "attestation.verifier.ledger_rules",
    "attestation.verifier.platform_rules",
    "attestation.verifier.quote_checks",
    "attestation.verifier.references",
    "attestation.verifier.tcb_rules",
    "attestation.verifier.verifier",
    "bpf.instructions",
    "environment.container.seccomp_arguments",
    "environment.health.alarms",
    "environment.health.state",
    "environment.images.users",
    "environment.moments",
    "environment.storage.disk_sizes",
    "environment.user_ids",
    "errors",
    "fleet.never",
    "fleet.place",
    "fleet.policy",
    "fleet.public_keys",
    "fleet.reach",
    "fleet.rollout.order",
    "fleet.seen",
    "fleet.targets",
    "fleet.trust",
    "fleet.types",
    "interface.names.answers",
    "ledger.entries",
    "ledger.nv_public",
    "link.problems",
    "link.topology.spiffe",
    "patterns",
    "plan",
    "spec.hosts",
    "spec.minion_terms",
    "spec.never",
    "spec.paths",
    "spec.peer",
    "spec.publish",
    "spec.reach",
    "spec.regex_work",
    "spec.renames",
    "spec.secrets",
    "spec.tenancy.names",
    "spec.tenancy.quota",
    "spec.tenancy.separation",
    "spec.trust",
    "spec.types",
    "spec.values",
    "strict_json",
    "text",
    "x509_helpers",
}
# What reaches beyond a process, and the clock.
IMPURE = {
    *("ctypes", "fcntl", "glob", "http", "multiprocessing", "os", "pty", "select", "shutil", "signal", "socket"),
    *("subprocess", "tempfile", "threading", "time"),
}
LINES = 450
# A model that is read as one; a table of codes. The checks of a declaration wait for their seams to be split.
LONG = {
    "attestation.refusals",
    "spec.checks",
    "spec.types",
}
FULL = {"environment.images", "environment.images.sources", "environment.runtimes", "interface.kinds", "supervision"}


def part(module: str) -> str:
    return module.partition(".")[0]


def rank(module: str) -> int:
    return PARTS.get(part(module), 0)


def package(module: str) -> str:
    """Return the package of a module. A module at the top of a layer counts as its own package.

    The reason is that such modules import each other, in one direction only.
    """
    folder = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    folder = folder.replace("images.sources", "images")  # each calls the other: a source builds a tree, a tree a source
    return folder if folder.count(".") or (folder == module and folder in PARTS) else module


def test_each_module_is_in_a_layer_or_below_all():
    folders = {name for name, path in FILES.items() if path.name == "__init__.py" and "." not in name}
    assert folders <= {*PARTS, "netspace"}


@pytest.mark.parametrize("module", sorted(set(IMPORTS) - UPWARDS))
def test_imports_point_downwards(module):
    wrong = [
        other
        for other in IMPORTS[module]
        if rank(other) > rank(module) or (rank(other) == rank(module) and part(other) != part(module) and rank(module))
    ]
    assert not wrong, f"{module} imports {', '.join(wrong)}: move what both need below, or hand it in"


def test_packages_have_an_order():
    graph = {package(module): set() for module in IMPORTS}
    for module in set(IMPORTS) - UPWARDS:
        graph[package(module)] |= {package(other) for other in IMPORTS[module]} - {package(module)}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_import_pure_ones(module):
    assert module in FILES, f"{module} is gone: strike it from the table"
    assert IMPORTS[module] - PURE == set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        assert not IMPURE & {name.partition(".")[0] for name in names}, module


def test_large_modules_are_the_named_ones():
    large = {name for name, path in FILES.items() if len(path.read_text().splitlines()) > LINES}
    assert large == LONG, "split what has grown; strike what has shrunk from the table"


def test_packages_hold_only_a_docstring():
    own = {
        name for name, path in FILES.items() if path.name == "__init__.py" and len(ast.parse(path.read_text()).body) > 1
    }
    assert own - {"netspace", "host.weaknesses"} == FULL


def test_contributing_tells_each_package():
    assert library_modules.table() in library_modules.PAGE.read_text(), (
        "python tests/support/library_modules.py writes it"
    )
