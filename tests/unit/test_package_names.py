"""The SLS with a host's packages, rendered for each family of distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from salt.utils.jinja import SerializerExtension

STATES = Path(__file__).parents[2] / "states"
LISTED = yaml.safe_load((STATES / "netspace/packages.yaml").read_text())


def render(family: str, *runtimes: str) -> dict[str, Any]:
    """Render the SLS as Salt does on a host without packages whose environments name *runtimes*; return its data."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(STATES), extensions=["jinja2.ext.do", SerializerExtension], autoescape=False
    )
    declared = {"environments": {f"e{number}": {"runtime": name} for number, name in enumerate(runtimes)}}
    text = environment.get_template("netspace/packages.sls").render(
        grains={"os_family": family, "init": "systemd", "pythonversion": [3, 13, 5]},
        salt={"pkg.list_pkgs": dict, "pillar.get": lambda *_: declared},
    )
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def packages(rendered: dict[str, Any]) -> list[str]:
    (pkgs, *_) = rendered["netspace packages"]["pkg.installed"]
    found: list[str] = pkgs["pkgs"]
    return found


@pytest.mark.parametrize("family", ["Debian", "Suse", "Arch"])
def test_family_with_debians_names_gets_those(family: str) -> None:
    rendered = render(family)
    assert packages(rendered) == LISTED["host"]
    assert "netspace has no package of" not in rendered


def test_red_hat_gets_its_own_names() -> None:
    named = packages(render("RedHat"))
    assert "nftables" in named and "libnftables1" not in named
    assert len(named) == len(LISTED["host"])


def test_suse_gets_its_own_name_of_qemu() -> None:
    assert packages(render("Suse", "qemu"))[-1:] == ["qemu-x86"]


def test_debian_gets_each_runtime_that_is_named() -> None:
    assert set(packages(render("Debian", "runc", "runsc", "qemu"))) == {*LISTED["host"], *LISTED["runtimes"]}


@pytest.mark.parametrize("family", ["RedHat", "Suse"])
def test_package_that_a_family_lacks_is_named(family: str) -> None:
    rendered = render(family, "runsc", "runc")
    assert "runsc" not in packages(rendered) and "runc" in packages(rendered)
    (text,) = rendered["netspace has no package of"]["test.show_notification"]
    assert text["text"] == f"{family} has no package runsc: install what is in it by other means"


@pytest.mark.parametrize("family", ["Debian", "RedHat", "Suse"])
def test_services_are_masked_before_they_are_installed(family: str) -> None:
    masked = [name for name, state in render(family).items() if "service.masked" in state]
    assert masked == [f"netspace masks {name}" for name in ("rabbitmq-server", "haproxy", "epmd", "epmd.socket")]
