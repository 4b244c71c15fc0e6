"""A day of an operator who knows Salt and not netspace, typed in a terminal of 80 columns: from install to removal.

He has the documentation, ``--help`` and ``sys.doc``. Every line is typed in a terminal of a fresh Debian 13. Nothing
that he reads there is wider than the terminal, or has a number that needs a calculator. ``.cache/exercise.log`` has all
that he typed and read.

The tests are parts of one day, in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import checkout, pages
from support.hosts import debian_salt, fresh_host
from support.hosts.systemd_host import SystemdHost
from support.hosts.terminal import Read, Terminal, troubles
from support.waiting import until

from netspace import __version__

pytestmark = [pytest.mark.systemd, pytest.mark.root]

LOG = checkout.ROOT / ".cache/exercise.log"
PILLAR = "/srv/pillar/shop.sls"
SHOP = fresh_host.DECLARATION
TILL = """\
    till:
      image: tar:/srv/demo.tar
      command: [/usr/bin/python3, /demo/tills.py]
  links:
"""
CONFIGURATION = {
    "/etc/salt/minion.d/netspace.conf": "file_roots:\n  base: [/srv/salt, /usr/share/netspace/file_root]\n",
    "/etc/salt/minion.d/masterless.conf": "file_client: local\n",
    "/srv/pillar/top.sls": "base:\n  '*': [shop]\n",
    PILLAR: SHOP,
}
TEXTFILE = "/var/lib/prometheus/node-exporter/netspace.prom"


class Operator:
    """An operator at a terminal, who reads each answer."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def type(self, line: str, *wanted: str, status: int = 0, of_others: bool = False) -> Read:
        """Type a line; check its status, that *wanted* is shown, and that all lines can be read.

        :param wanted: lines in the form of :func:`pages.lacking`.
        :param of_others: whether other programs than netspace show the lines, which may be wide.
        """
        read = self.terminal.type(line)
        assert read.status == status, f"{line}: exit {read.status}\n{read.text}"
        lacking = pages.lacking("\n".join(wanted), read.text)
        assert lacking is None, f"{line}: no line {lacking!r} in\n{read.text}"
        if not of_others:
            found = list(troubles(read))
            assert not found, f"{line}:\n" + "\n".join(found)
        return read

    def salt(self, call: str, *wanted: str, status: int = 0) -> Read:
        return self.type(f"salt-call {call}", *wanted, status=status)

    def wait(self, call: str, *wanted: str) -> None:
        """Repeat a call that only reads until it shows *wanted*."""
        shown: list[str] = []

        def complete() -> bool:
            shown[:] = self.salt(call).shown
            return pages.lacking("\n".join(wanted), "\n".join(shown)) is None

        until(complete, f"{call}: no {wanted} in time", patience=300, pause=1)

    def edit(self, old: str, new: str) -> None:
        """Replace a part of the declaration, once."""
        place = self.terminal.host.path(PILLAR)
        text = place.read_text()
        assert old in text, text
        self.terminal.write(PILLAR, text.replace(old, new, 1))


@pytest.fixture(scope="module")
def host(boot: Callable[[], SystemdHost], packages: list[Path], former: list[Path]) -> Iterator[SystemdHost]:
    with boot() as machine:
        for source in (fresh_host.IMAGE, *packages, *former):
            fresh_host.put(machine, source, f"/srv/{source.name}")
        LOG.unlink(missing_ok=True)
        yield machine


@pytest.fixture(scope="module")
def operator(host: SystemdHost) -> Operator:
    return Operator(Terminal(host, LOG))


def names(packages: list[Path]) -> str:
    return " ".join(f"./{package.name}" for package in packages)


def test_former_version_is_installed_and_applied(host: SystemdHost, operator: Operator, former: list[Path]) -> None:
    mask, *_ = fresh_host.installation()
    operator.type(mask, of_others=True)
    operator.type(f"cd /srv; apt-get -y install --no-install-recommends {names(former)}", of_others=True)
    debian_salt.place(host, "3008.*")
    for path, text in CONFIGURATION.items():
        operator.terminal.write(path, text)
    # The former version's answers are those of its time.
    for call in ("saltutil.sync_all", "netspace.check", "state.apply netspace"):
        operator.type(f"salt-call {call}", of_others=True)
    until(lambda: "thank you" in fresh_host.told(host, "web"), patience=300)


def test_upgrade_restarts_nothing(host: SystemdHost, operator: Operator, packages: list[Path]) -> None:
    """The lines of docs/day-2/upgrade.md for the package, and the state that Salt's upgrade needs."""
    before = environments(host)
    operator.type(f"cd /srv; apt-get -y install --no-install-recommends {names(packages)}", of_others=True)
    operator.type("rm -rf /var/cache/salt/minion/file_lists")
    operator.type("salt-call saltutil.sync_all", of_others=True)  # Salt's own list of hundreds of modules
    operator.salt("netspace.version", __version__)
    operator.salt("state.apply netspace test=True", "Failed: ... 0")
    operator.salt("state.apply netspace", "Failed: ... 0")
    operator.salt("state.apply netspace.packages,netspace", "Failed: ... 0")
    operator.wait("netspace.overview", "orders       running ...", "web   orders  request  active        0        1")
    assert environments(host) == before


def environments(host: SystemdHost) -> dict[str, str]:
    found = fresh_host.units(host)
    return {name: at for name, at in found.items() if name.startswith("netspace-environment-")}


def test_help_leads_on(operator: Operator) -> None:
    for line in ("netspace --help", "netspace apply --help", "netspace list"):
        operator.type(line)
    operator.type("netspace", status=1)
    for function in ("netspace.explain", "netspace.can", "netspace_image", "netspace.metrics"):
        operator.salt(f"sys.doc {function}")
    operator.salt("sys.list_functions netspace", "- netspace.explain", "- netspace.overview")


def test_third_that_does_not_start_is_explained(operator: Operator) -> None:
    operator.edit("  links:\n", TILL)
    operator.salt("netspace.check", "no problem was found")
    operator.salt("netspace.diff", "environment  till  create")
    operator.salt("state.apply netspace test=True", "Comment: would create environment till")
    operator.salt("state.apply netspace")
    operator.wait("netspace.explain till", "till does not run: ...", "log ...", "netspace_environment.logs till")
    operator.salt("netspace.overview", "till ...")
    # A program's own lines are shown as they are.
    operator.type("salt-call netspace_environment.logs till", "...can't open file '/demo/tills.py'...", of_others=True)
    operator.edit("tills.py", "till.py")
    operator.salt("netspace.diff", "environment  till  restart")
    operator.salt("state.apply netspace", "Comment: restart environment till (command)", "Failed: ... 0")
    operator.salt("netspace.explain till", "till runs")


def test_who_may_reach_whom_is_told(operator: Operator) -> None:
    operator.salt("netspace.can web orders", "web can reach orders", "netspace:links:web.orders...")
    operator.salt("netspace.can till orders", "till cannot reach orders", "no link leads from till to orders")
    operator.salt("netspace.can orders web", "orders can only answer web")
    operator.salt("netspace.can web nobody", status=1)
    operator.salt("netspace.paths_to orders", "1 path leads to orders")
    operator.salt("netspace.graph", "flowchart LR")


def test_image_is_rolled_out_and_taken_back(operator: Operator) -> None:
    operator.type("cp /srv/demo.tar /srv/demo-2.tar; tar -rf /srv/demo-2.tar -C / etc/debian_version")
    operator.edit("demo.tar", "demo-2.tar")
    operator.salt("state.apply netspace test=True", "Comment: would restart environment orders (image)")
    operator.salt("state.apply netspace", "Comment: restart environment orders (image)")
    operator.salt("netspace_image.list", "... orders ... tar:/srv/demo-2.tar")
    operator.edit("demo-2.tar", "demo.tar")
    operator.salt("state.apply netspace", "Comment: restart environment orders (image)", "Failed: ... 0")
    operator.salt("netspace_image.prune")


def test_mistake_is_told_with_its_remedy(operator: Operator) -> None:
    operator.edit("image:", "imag:")
    for call, status in (("netspace.check", 1), ("state.apply netspace", 2)):
        read = operator.salt(call, status=status)
        assert "netspace:environments:orders:imag" in read.text and "image" in read.text
    operator.edit("imag:", "image:")
    operator.salt("netspace.check", "no problem was found")


def test_metrics_are_watched(operator: Operator) -> None:
    operator.salt("netspace.metrics", "environment_up ... orders ... 1", "broker_up ... 1")
    operator.type(f"mkdir -p {Path(TEXTFILE).parent}")
    operator.salt(f"netspace.metrics file={TEXTFILE}")
    operator.salt("netspace.drift", "the host is as it was applied last")
    operator.salt("netspace_link.list")
    operator.salt("netspace_environment.stop web")
    operator.salt("netspace.explain web", "web ...")
    operator.salt("netspace_environment.start web")


def test_removal_leaves_nothing(host: SystemdHost, operator: Operator) -> None:
    operator.salt("netspace.teardown")
    operator.salt("netspace.overview", "no environments: ...")
    operator.type("apt-get -y purge netspace python3-netspace", of_others=True)
    operator.type("salt-call saltutil.sync_all", of_others=True)
    assert fresh_host.units(host) == {}
    left = host.run("find", "/usr", "/etc/systemd", "/run/systemd", "-name", "*netspace*")
    assert left.stdout == ""
