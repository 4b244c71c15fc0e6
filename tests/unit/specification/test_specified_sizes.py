"""SPECIFICATION.md: the largest inputs. An input of the largest size is accepted, a larger input refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml
from support.fleet import pictures
from support.fleet.fleets import published, written
from support.specification import bound, hold, largest

from netspace import files
from netspace.attestation.logs import eventlog, ima
from netspace.errors import NetspaceError
from netspace.fleet import parse as fleet_parse
from netspace.fleet.published import Register
from netspace.plugin import fleet_picture
from netspace.plugin.picture import page
from netspace.plugin.picture.model import Graph
from netspace.spec import parse
from netspace.supervision import process
from netspace.supervision.daemon import protocol


def test_page_of_a_fleet_is_small() -> None:
    fleet = pictures.compiled(pictures.large())
    hold("page.bytes", len(fleet_picture.picture("html", fleet, pictures.seen(fleet)).encode()))
    hold("page.empty-bytes", len(page.page(Graph([], [])).encode()))


def declared(environment: dict[str, Any], name: str = "web") -> str:
    """Return the reason why a declaration of one environment is refused; empty if it is accepted."""
    try:
        parse.declaration({"environments": {name: {"image": "tar:/x.tar", "command": ["/x"], **environment}}})
    except NetspaceError as err:
        return str(err)
    return ""


def test_largest_name_of_an_environment() -> None:
    largest("largest.name", lambda size: declared({}, "a" * size))


def test_largest_number_of_arguments() -> None:
    largest("largest.arguments", lambda size: declared({"command": ["/x"] * size}))


def test_largest_argument() -> None:
    largest("largest.argument-bytes", lambda size: declared({"command": ["/x", "a" * size]}))


def test_largest_number_of_variables() -> None:
    largest("largest.variables", lambda size: declared({"env": {f"A{number}": "" for number in range(size)}}))


def test_largest_number_of_published_ports() -> None:
    def refusal(size: int) -> str:
        ports = [f"{port}:{port}" for port in range(1, size + 1)]
        return declared({"interface": {"kind": "veth", "publish": ports}})

    largest("largest.published", refusal)


def test_largest_settle() -> None:
    largest("largest.settle", lambda seconds: declared({"settle": seconds}))


def test_largest_record(tmp_path: Path) -> None:
    def refusal(size: int) -> str:
        path = tmp_path / "record.json"
        path.write_text(json.dumps({"a": "b" * (size - len('{"a": ""}'))}))
        assert path.stat().st_size == size
        try:
            files.read_json(path)
        except NetspaceError as err:
            assert "remove the file and apply again" in str(err)
            return str(err)
        return ""

    largest("largest.record-bytes", refusal)


def test_largest_number_of_services_in_one_request() -> None:
    def refusal(size: int) -> str:
        raw = protocol.render(protocol.Request("start", tuple(f"s{number}" for number in range(size))))
        try:
            protocol.parse_request(raw)
        except ValueError as err:
            return str(err)
        return ""

    largest("largest.services", refusal)


def test_largest_boot_log() -> None:
    def refusal(size: int) -> str:
        try:
            eventlog.parse(bytes(size))
        except NetspaceError as err:  # zeros are no log: only the size matters here
            return str(err) if "at most" in str(err) else ""
        return ""

    largest("largest.boot-log-bytes", refusal)


def test_largest_list_of_ima() -> None:
    most = bound("largest.ima-list-bytes")
    assert most == ima.MAX_LIST  # a trial would take some hundred megabytes


def test_largest_number_of_threads_whose_sleep_is_looked_at() -> None:
    assert bound("largest.threads") == process.MOST_ASLEEP  # tests/unit/supervision/test_asleep.py tries more


def test_largest_number_of_files_of_a_fleet(tmp_path: Path) -> None:
    def refusal(size: int) -> str:
        names = [f"{number}.yaml" for number in range(size - 1)]
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({"include": names}))
        for name in names:
            (tmp_path / name).write_text("links: []")
            os.utime(tmp_path / name, (1, 1))  # long ago, so that nobody waits for the clock
        return "; ".join(map(str, written(tmp_path).check().problems))

    largest("largest.fleet-files", refusal)


def test_largest_number_of_terms_of_a_fleet() -> None:
    def refusal(size: int) -> str:
        try:
            fleet_parse.fleet({"fleet.yaml": {"environments": {"web": {"on": ["h*"] * size}}}})
        except NetspaceError as err:
            return str(err)
        return ""

    largest("largest.fleet-terms", refusal)


def test_largest_record_of_a_fleets_host(tmp_path: Path) -> None:
    def refusal(size: int) -> str:
        register = Register(tmp_path / "hosts")
        register.write(published(["h1"])["h1"])
        path = register.path("h1")
        path.write_text(path.read_text().ljust(size))
        return "; ".join(register.read_all()[1])

    largest("largest.fleet-record-bytes", refusal)
