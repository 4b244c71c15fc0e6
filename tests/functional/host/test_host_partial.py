"""A failure on a host doesn't stop other steps: the rest is applied, and the next apply needs no manual step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import ASK, IDLE, Salt, all_true, changes, python, shop

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def answer(salt: Salt) -> str:
    """Return the answer that 'web' gets from 'orders' along the link."""
    done = salt.exec("web", ["/usr/bin/python3", "-c", ASK, "orders", "two"], timeout=50)
    assert done["retcode"] == 0, done
    return str(done["stdout"]).strip()


def test_interface_without_parent_stops_only_its_own(salt: Salt, image: Path) -> None:
    declared = shop(image)
    declared["environments"]["stranger"]["interface"] = {
        "kind": "macvlan", "parent": "absent0", "ipv4": "198.51.100.7/24",
    }  # fmt: skip
    states = salt.apply(declared)
    assert states["netspace interfaces"]["result"] is False
    assert "absent0" in states["netspace interfaces"]["comment"]
    assert states["netspace links"]["result"] is True, states["netspace links"]
    assert states["netspace environments"]["result"] is False
    assert "stranger" in states["netspace environments"]["comment"]
    listed = salt("netspace_environment.list")
    assert {name: one["state"] for name, one in listed.items() if name != "stranger"} == {
        "orders": "running", "web": "running",
    }  # fmt: skip
    assert answer(salt) == "orders to web: two"

    # The parent is declared right: the next apply makes what is missing and touches nothing else.
    since = {name: listed[name]["since"] for name in ("orders", "web")}
    all_true(salt.apply(shop(image)))
    listed = salt("netspace_environment.list")
    assert listed["stranger"]["state"] == "running"
    assert {name: listed[name]["since"] for name in ("orders", "web")} == since
    assert changes(salt.apply(shop(image))) == {}


def test_environment_moves_to_another_host_in_one_apply(salt: Salt, image: Path) -> None:
    """An environment moves to another host. The first host drops it and applies its new links in one apply."""
    declared = shop(image)
    all_true(salt.apply(declared))
    del declared["environments"]["orders"]
    declared["environments"]["clerk"] = {**declared["environments"]["web"], "command": python(IDLE)}
    declared["links"] = [{"from": "web", "to": "clerk", "pattern": "send"}]
    declared["broker"] = {"kind": "local", "host": "h1", "port": 5691}
    all_true(salt.apply(declared))
    assert changes(salt.apply(declared)) == {}
    assert set(salt("netspace_environment.list")) == {"web", "stranger", "clerk"}


def test_check_and_dry_run_see_what_the_apply_would(salt: Salt, image: Path) -> None:
    declared = shop(image)
    declared["environments"]["web"]["image"] = "tar:/srv/absent.tar"
    declared["environments"]["orders"]["command"] = ["/usr/bin/pyton3", "/demo/orders.py"]
    declared["environments"]["stranger"]["interface"] = {
        "kind": "macvlan", "parent": "absent0", "ipv4": "198.51.100.7/24",
    }  # fmt: skip
    salt.declare(declared)
    done = salt.run("netspace.check")
    assert done.returncode == 1, done.stdout
    problems = {one["path"]: one["message"] for one in json.loads(done.stdout)["local"]["problems"]}
    assert "/srv/absent.tar" in problems["netspace:environments:web"], problems
    assert "absent0" in problems["netspace:environments:stranger:interface"], problems
    (lacking,) = [message for message in problems.values() if "pyton3" in message]
    assert lacking.endswith(f"image tar:{image} has no /usr/bin/pyton3; name a program that it has"), lacking
    assert salt("netspace.overview")["not_made"] == ["orders", "stranger", "web"]
    tested = salt.apply(declared, "test=True")
    assert tested["netspace environments"]["result"] is False
    assert "/srv/absent.tar" in tested["netspace environments"]["comment"]
    assert "has no /usr/bin/pyton3" in tested["netspace environments"]["comment"]
    # Salt is not told to look for targets: what it takes is said, and nothing fails.
    declared = shop(image)
    declared["environments"]["web"]["target"] = True
    states = salt.apply(declared, "test=True")
    assert "add 'resources: {netspace: {}}'" in states["netspace environments"]["comment"]
    (problem,) = json.loads(salt.run("netspace.check", "host=False").stdout)["local"]["problems"]
    assert problem["path"] == "netspace:environments:web:target"
    del declared["environments"]["web"]["target"]
    salt.declare(declared)
    only = salt.run("netspace.check", "host=False")
    assert (only.returncode, json.loads(only.stdout)["local"]["valid"]) == (0, True)

    salt.declare(shop(image))
    assert salt("netspace.check") == {"valid": True, "problems": []}


def test_dry_run_sees_that_an_image_lacks_a_program(salt: Salt, tmp_path: Path) -> None:
    """A dry run reports that an image lacks the declared program; the running program continues.

    First the declared program is changed, then the content of the image's source.
    """
    source = tmp_path / "root"
    (source / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", source / "bin/busybox")
    web = {"image": f"dir:{source}", "command": ["/bin/busybox", "sleep", "1000"], "stop_timeout": 1}
    declared: dict[str, Any] = {"environments": {"web": web}}
    all_true(salt.apply(declared))
    before = salt("netspace_environment.list")["web"]["pid"]
    declared["environments"]["web"]["command"] = ["/bin/wrk"]
    for arguments in (["test=True"], []):
        states = salt.apply(declared, *arguments)
        assert states["netspace environments"]["result"] is False
        assert f"image dir:{source} has no /bin/wrk" in states["netspace environments"]["comment"], states
    assert salt("netspace_environment.list")["web"]["pid"] == before
    declared["environments"]["web"]["command"] = ["/bin/busybox", "sleep", "1000"]
    (source / "bin/busybox").rename(source / "bin/box")
    states = salt.apply(declared, "test=True")
    assert "has no /bin/busybox" in states["netspace environments"]["comment"], states


def test_exec_takes_words_text_or_list(salt: Salt, image: Path) -> None:
    all_true(salt.apply(shop(image)))
    for words in (
        ["ls", "/demo"],
        ["ls /demo"],
        [json.dumps(["ls", "/demo"])],
        ["command=" + json.dumps(["ls", "/demo"])],
    ):
        done = salt("netspace_environment.exec", "web", *words)
        assert (done["retcode"], "web.py" in done["stdout"]) == (0, True), (words, done)
    assert salt("netspace_environment.exec", "web", "echo", "1", "2.5")["stdout"] == "1 2.5\n"
    # A list is taken as it is, also a list of one: here a program that isn't there, by the whole of its name.
    for words in (json.dumps(["ls /demo"]), "command=" + json.dumps(["ls /demo"])):
        with pytest.raises(AssertionError, match="`/ls /demo` not found"):
            salt("netspace_environment.exec", "web", words)
