"""Programs get another host's keys for sealed links at once, without a restart."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import IDLE, all_true, changes, python

from netspace import jose
from netspace.layout import Layout
from netspace.link.pki import authority
from netspace.link.pki.root import Root, adopt, request
from netspace.link.seal import bundle, endorser
from netspace.link.seal import keys as seals
from netspace.spec.types import LocalBroker, RemoteHost

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

LINKS = [
    {"from": "web@h1", "to": "vault@h2", "pattern": "request", "seal": True},
    {"from": "web@h1", "to": "log@h2", "via": "buffered", "seal": True},
]
CARD = """
import json
names = ("environment.json", "seal.json")
print(json.dumps([json.load(open("/run/netspace/" + name)) for name in names]))
"""


class Other:
    """The other host, h2, of which only the keys exist here."""

    def __init__(self, folder: Path) -> None:
        root = Root(folder / "root")
        root.make("root")
        for name in ("h1", "h2"):
            adopt(folder / name, root.certify(request(folder / name), f"{name}.example.org"))
        (folder / "names.key").write_text(secrets.token_hex(32))
        (folder / "names.key").chmod(0o600)
        self.folder = folder
        self.layout = Layout(root=folder / "state")
        self.known = authority.ensure(self.layout, self.broker, time.time())
        self.own = endorser.ensure(self.layout, self.known, time.time())
        seals.ensure(self.layout, ["vault", "log"], time.time(), {})

    @property
    def broker(self) -> LocalBroker:
        return LocalBroker(
            host="h2",
            listen="198.51.100.2:5671",
            trust_domain="h2.example.org",
            authority=str(self.folder / "h2"),
            names_key=str(self.folder / "names.key"),
            hosts={"h1": RemoteHost(trust_domain="h1.example.org")},
        )

    def heard(self, text: str) -> bundle.Bundle:
        """Return the key bundle of h1 that h2 accepts from *text*."""
        name, found = bundle.opened(text, self.broker, self.known, time.time())
        assert name == "h1"
        return found

    def says(self, knows: str) -> str:
        now = time.time()
        keys = {name: seals.promised(each, now) for name, each in seals.read_all(self.layout).items()}
        return bundle.make(self.own, "spiffe://h1.example.org/host/h1", knows, keys, now)


def declared(folder: Path, image: Path) -> dict[str, Any]:
    broker = {
        "kind": "local",
        "host": "h1",
        "trust_domain": "h1.example.org",
        "authority": str(folder / "h1"),
        "names_key": str(folder / "names.key"),
        "hosts": {"h2": {"trust_domain": "h2.example.org", "address": "198.51.100.2:5671"}},
    }
    web = {"image": f"tar:{image}", "command": python(IDLE), "stop_timeout": 2}
    return {"broker": broker, "environments": {"web": web}, "links": LINKS}


def test_what_is_heard_of_another_hosts_keys_is_told_to_running_programs(salt, image, tmp_path):
    h2 = Other(tmp_path)
    everything = declared(tmp_path, image)
    first = salt.apply(everything)
    all_true(first)
    assert "h2: nothing is known of its keys for sealed links" in first["netspace links"]["comment"]
    pid = salt("netspace_environment.list")["web"]["pid"]

    def card() -> tuple[dict[str, Any], dict[str, Any]]:
        shown = salt.exec("web", ["/usr/bin/python3", "-c", CARD])
        assert shown["retcode"] == 0, shown
        content, own = json.loads(shown["stdout"])
        return {peer["to"]: peer["seal"] for peer in content["peers"]}, own

    told, own = card()
    assert {to: (one["keys"], one["endorser"]["keys"]) for to, one in told.items()} == {
        "vault@h2": ([], []),
        "log@h2": ([], []),
    }
    (endorsement,) = [key["endorsement"] for key in own["keys"] if key["use"] == "sig"]
    assert jose.unchecked(endorsement)[1]["sub"] == "spiffe://h1.example.org/host/h1/env/web"

    # Each says what it knows; then each knows what the other said.
    said = salt("netspace_link.seal_bundles")
    assert (said["host"], set(said["bundles"])) == ("h1", {"h2"})
    heard = h2.heard(said["bundles"]["h2"])
    assert set(heard.keys) == {"web"}  # for the answers
    (tmp_path / "from-h2.json").write_text(h2.says(heard.endorser["kid"]))
    assert salt("netspace_link.seal_adopt", str(tmp_path / "from-h2.json")) == {"h2": True}
    assert salt("netspace_link.seal_adopt", str(tmp_path / "from-h2.json")) == {"h2": False}
    told, _ = card()
    assert told["vault@h2"]["keys"] == list(seals.promised(seals.read_all(h2.layout)["vault"], time.time()))
    assert told["log@h2"]["endorser"]["keys"][0]["kid"] == h2.own.kid
    assert h2.heard(salt("netspace_link.seal_bundles")["bundles"]["h2"]).knows == h2.own.kid
    again = salt.apply(everything)
    assert changes(again) == {}
    assert salt("netspace.drift")["differences"] == []
    assert "nothing is known" not in again["netspace links"]["comment"]

    # What is no bundle of h2's is an error, and changes nothing.
    (tmp_path / "other.json").write_text(Other(tmp_path / "fleet").says("x"))
    refused = salt.run("netspace_link.seal_adopt", str(tmp_path / "other.json"))
    assert refused.returncode != 0
    assert "a root that the links of this host don't trust" in refused.stdout + refused.stderr
    assert card()[0] == told

    # An endorsement that runs out is renewed by the hourly service, and shown; the key stays.
    path = Path("/var/lib/netspace/seals/web.json")
    record = json.loads(path.read_text())
    mine = endorser.read(Layout())
    for key in record["keys"]:
        if key["use"] == "sig":
            key["endorsement"] = mine.endorse(key, "web", time.time() - 6 * endorser.DAY)
    path.write_text(json.dumps(record))
    assert salt("netspace_link.renew") == []
    _, renewed = card()
    assert [key["kid"] for key in renewed["keys"]] == [key["kid"] for key in own["keys"]]
    (token,) = [key["endorsement"] for key in renewed["keys"] if key["use"] == "sig"]
    assert jose.unchecked(token)[1]["exp"] > time.time() + endorser.LIFE - 600
    assert changes(salt.apply(everything)) == {}

    # Who distrusts the authority is another to h2: nothing is sealed for it before it knows.
    salt("netspace_link.renew", "authority=True", "distrust=True")
    told, changed = card()
    assert told["vault@h2"]["keys"] == []
    assert {key["kid"] for key in changed["keys"]} > {key["kid"] for key in own["keys"]}
    assert h2.heard(salt("netspace_link.seal_bundles")["bundles"]["h2"]).endorser["kid"] != heard.endorser["kid"]
    assert "hasn't confirmed that it knows" in str(salt("netspace_link.health")["problems"])
    assert salt("netspace_environment.list")["web"]["pid"] == pid

    # Without the link nothing of it is left but what h2 may still seal for.
    all_true(salt.apply({**everything, "links": []}))
    assert path.exists()
