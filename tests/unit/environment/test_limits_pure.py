"""Limits without a kernel: settings of cgroups of both versions, changes, and refused sizes."""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.environment import plan as compare
from netspace.environment.comparison import steps
from netspace.environment.container import cgroups, oci_config
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.environment.record import Record
from netspace.environment.storage import disk_sizes, disks, mounts
from netspace.environment.storage.disks import Disk
from netspace.environment.user_ids import FIRST
from netspace.errors import NetspaceError, SpecError
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.types import Io, Limits, Size
from netspace.supervision.service import Status

MIB = 1024**2
DISK = (254, 0)


def desired(**keys):
    return DesiredEnvironment(parse.environment("web", {"image": "tar:/x.tar", "command": ["/x"], **keys}))


def seen(want, **found):
    record = Record(want.spec, "running", FIRST, Image("d" * 64, "i", Defaults()), "c", "r", {})
    return ObservedEnvironment(record, Status("running", 1), True, {}, **found)


def plan(before, after, **found):
    grows = found.pop("grows", True)
    return compare.plan({"web": after}, Observed({"web": seen(before, **found)}, {}, "r", grows=grows))


def values(limits, unified, devices=(DISK,)):
    return {
        one.file + (":" + one.value.split()[0] if one.key == "io" else ""): one.value
        for one in cgroups.settings(limits, devices, unified)
    }


LIMITS = Limits(memory=Size(64 * MIB), cpus=0.25, pids=9, io=Io(read=Size(MIB), write_ops=20))


def test_version_1_is_told_all_of_them():
    assert values(LIMITS, unified=False) == {
        "memory.limit_in_bytes": str(64 * MIB),
        "memory.memsw.limit_in_bytes": str(64 * MIB),
        "memory.kmem.tcp.limit_in_bytes": str(64 * MIB),
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "25000",
        "pids.max": "9",
        "blkio.throttle.read_bps_device:254:0": f"254:0 {MIB}",
        # Nought lifts what was there before.
        "blkio.throttle.write_bps_device:254:0": "254:0 0",
        "blkio.throttle.read_iops_device:254:0": "254:0 0",
        "blkio.throttle.write_iops_device:254:0": "254:0 20",
    }


def test_version_2_is_told_all_of_them():
    assert values(LIMITS, unified=True) == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "cpu.max": "25000 100000",
        "pids.max": "9",
        "io.max:254:0": f"254:0 rbps={MIB} wbps=max riops=max wiops=20",
    }


def render(limits, **options):
    spec = parse.environment("web", {"image": "tar:/x", "command": ["/x"], "limits": limits})
    return oci_config.config("web", spec, layout=Layout(), base=FIRST, cgroup="/x", **options)["linux"]["resources"]


def test_a_start_has_the_same_limits_as_a_change_in_place():
    limits = {"memory": "64M", "cpus": 0.25, "pids": 9, "io": {"read": "1M", "write_ops": 20}}
    found = render(limits, disks=[DISK])
    assert found["memory"] == {"limit": 64 * MIB, "swap": 64 * MIB}
    assert found["cpu"] == {"quota": 25000, "period": 100000}
    assert found["pids"] == {"limit": 9}
    assert found["blockIO"] == {
        "throttleReadBpsDevice": [{"major": 254, "minor": 0, "rate": MIB}],
        "throttleWriteIOPSDevice": [{"major": 254, "minor": 0, "rate": 20}],
    }
    assert "unified" not in found


def test_what_sockets_hold_is_bounded_where_it_is_counted_apart():
    assert "kernelTCP" not in render({"memory": "64M"})["memory"]
    apart = {*cgroups.CONTROLLERS.values(), cgroups.SOCKETS}
    assert render({"memory": "64M"}, controllers=apart)["memory"]["kernelTCP"] == 64 * MIB


def test_version_2_ends_an_environment_without_memory_as_a_whole():
    assert render({}, unified=True)["unified"] == {"memory.oom.group": "1"}
    assert "unified" not in render({}, unified=True, controllers={"cpu"})


@pytest.mark.parametrize("options", [{}, {"disks": [DISK], "controllers": {"memory", "cpu", "pids"}}])
def test_rates_are_left_out_where_nothing_keeps_them(options):
    assert "blockIO" not in render({"io": {"read": "1M"}}, **options)


def test_what_version_1_calls_blkio_keeps_io():
    assert cgroups.limits({"blkio", "memory", "devices", "freezer"}) == {"io", "memory"}


@pytest.mark.parametrize(
    ("file", "wanted", "now", "same"),
    [
        ("memory.max", "4096", "4096\n", True),
        ("memory.max", "5000", "4096\n", True),
        ("memory.max", "4096", "max\n", False),
        ("memory.limit_in_bytes", "4096", "8192\n", False),
    ],
)
def test_memory_is_compared_in_pages(file, wanted, now, same):
    assert cgroups._same(cgroups.Setting("memory", file, wanted), now) == same


@pytest.mark.parametrize(
    ("wanted", "now", "same"),
    [
        ("254:0 100", "254:0 100\n7:0 5\n", True),
        ("254:0 100", "7:0 100\n", False),
        ("254:0 0", "", True),
        ("254:0 0", "254:0 7\n", False),
        ("254:0 rbps=1 wbps=max riops=max wiops=max", "254:0 rbps=1 wbps=max riops=max wiops=max\n", True),
        ("254:0 rbps=max wbps=max riops=max wiops=max", "", True),
        ("254:0 rbps=max wbps=max riops=max wiops=max", "254:0 rbps=1 wbps=max riops=max wiops=max", False),
    ],
)
def test_rates_are_compared_by_disk(wanted, now, same):
    assert cgroups._same(cgroups.Setting("io", "io.max", wanted), now) == same


def hierarchy(tmp_path, monkeypatch, unified):
    """Return a cgroup made of plain files, in version 1 or 2."""
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    root = str(tmp_path)
    if unified:
        mounted = {root: mounts.Mount(root, "cgroup2", "cgroup2")}
    else:
        mounted = {
            f"{root}/{own}": mounts.Mount(f"{root}/{own}", "cgroup", "cgroup")
            for own in ("memory", "cpu,cpuacct", "pids", "blkio")
        }
    own = cgroups.Group("/web", cgroups.Hierarchies(mounted, set(cgroups.CONTROLLERS.values())))
    if unified:
        (tmp_path / "web").mkdir()
        (tmp_path / "web/memory.current").write_text("4096")
    for one in cgroups.settings(Limits(), (DISK,), unified):
        path = Path(own._file(one.file))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0")
    return own


@pytest.mark.parametrize("unified", [False, True])
def test_a_running_one_is_changed_in_its_files(tmp_path, monkeypatch, unified):
    own = hierarchy(tmp_path, monkeypatch, unified)
    assert set(own.differing(LIMITS, ())) == {"memory", "cpus", "pids"}
    own.change(LIMITS, ())
    assert own.differing(LIMITS, ()) == ()
    assert own.differing(dataclasses_replace(LIMITS, pids=10), ()) == ("pids",)


def dataclasses_replace(value, **changes):
    import msgspec

    return msgspec.structs.replace(value, **changes)


@pytest.mark.parametrize("unified", [False, True])
def test_one_that_doesn_t_run_has_no_files_and_no_error(tmp_path, monkeypatch, unified):
    own = hierarchy(tmp_path, monkeypatch, unified)
    other = copy.copy(own)
    other._path = "/stopped"
    assert other.differing(LIMITS, (DISK,)) == ()
    other.change(LIMITS, (DISK,))


def test_version_2_does_not_kill_for_a_smaller_limit(tmp_path, monkeypatch):
    own = hierarchy(tmp_path, monkeypatch, True)
    (tmp_path / "web/memory.current").write_text(str(65 * MIB))
    (tmp_path / "web/memory.reclaim").write_text("")
    with pytest.raises(NetspaceError, match="limits:memory: it uses more than that now"):
        own.change(LIMITS, ())
    assert (tmp_path / "web/memory.reclaim").read_text() == str(MIB)
    assert (tmp_path / "web/memory.max").read_text() == "0"
    assert (tmp_path / "web/pids.max").read_text() == "9"


@pytest.mark.parametrize("unified", [False, True])
def test_a_unit_above_is_changed_as_well(tmp_path, monkeypatch, unified):
    above = hierarchy(tmp_path, monkeypatch, unified)
    for path in [Path(above._file(one.file)) for one in cgroups.settings(Limits(), (DISK,), unified)]:
        (path.parent / "payload").mkdir(exist_ok=True)
        (path.parent / "payload" / path.name).write_text("0")
    if unified:
        (tmp_path / "web/payload/memory.current").write_text("4096")
    hierarchies = cgroups.Hierarchies({}, set(cgroups.CONTROLLERS.values()))
    hierarchies.unified, hierarchies.folders = unified, above._folders
    own = cgroups.Group("/web/payload", hierarchies, unit=True)
    sockets = tmp_path / "memory/web/memory.kmem.tcp.limit_in_bytes"
    sockets.unlink(missing_ok=True)
    own.change(LIMITS, (DISK,))
    assert above.differing(LIMITS, ()) == own.differing(LIMITS, ()) == ()
    assert not sockets.exists()  # systemd has no bound of that for a unit, and would be found to differ each time
    Path(above._file("pids.max")).write_text("8")
    Path(above._file("cpu.max" if unified else "cpu.cfs_quota_us")).write_text("8")
    assert own.differing(LIMITS, ()) == ("pids",)


def test_memory_in_use_is_a_clear_error(tmp_path, monkeypatch):
    own = hierarchy(tmp_path, monkeypatch, False)

    def busy(file, value):
        if "memory" in file:
            raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(cgroups, "_write", busy)
    with pytest.raises(NetspaceError, match="limits:memory: it uses more than that now"):
        own.change(LIMITS, ())


# -- what changes how -----------------------------------------------------------------

TUNED = [
    ({"memory": "64M"}, {"memory": "1G"}),
    ({"memory": "1G"}, {"memory": "64M"}),
    ({"cpus": 1}, {"cpus": 3}),
    ({"pids": 9}, {"pids": 8}),
    ({"io": {"read": "1M"}}, {"io": {"write": "1M"}}),
    ({"io": {"read": "1M"}}, {}),
    ({"disk": "16M"}, {"disk": "17M"}),
]
FIXED = [
    ({"pids": 8}, {"pids": 9}),
    ({"files": 64}, {"files": 65}),
    ({"shm": 0}, {"shm": 4096}),
    ({"tmp": 0}, {"tmp": 4096}),
    ({"disk": "17M"}, {"disk": "16M"}),
    ({}, {"disk": "16M"}),
    ({"disk": "16M"}, {}),
]


@pytest.mark.parametrize(("before", "after"), TUNED)
def test_these_change_in_place(before, after):
    (step,) = plan(desired(limits=before), desired(limits=after)).steps
    assert (step.action, step.data.tune, step.data.stop) == ("update", True, False)


@pytest.mark.parametrize(("before", "after"), FIXED)
def test_these_need_a_restart_and_say_why(before, after):
    (step,) = plan(desired(limits=before), desired(limits=after)).steps
    assert (step.action, step.data.tune) == ("restart", False)
    assert step.reason in steps._FIXED.values()


def volumes(size, **more):
    return desired(volumes=[{"target": "/data", "size": size, **more}])


def test_a_volume_grows_in_place_and_changes_otherwise_by_a_restart():
    for before, after, grows, action in (
        (volumes("16M"), volumes("17M"), True, "update"),
        (volumes("16M"), volumes("17M"), False, "restart"),
        (volumes("17M"), volumes("16M"), True, "restart"),
        (volumes("16M"), volumes("17M", read_only=True), True, "restart"),
        (volumes("16M"), desired(), True, "restart"),
        (desired(), volumes("16M"), True, "restart"),
    ):
        (step,) = plan(before, after, grows=grows).steps
        assert step.action == action, (before.spec.volumes, after.spec.volumes)


def test_what_is_not_as_recorded_is_repaired_in_place():
    want = desired(limits={"disk": "64M"})
    (step,) = plan(want, want, differing=("memory",), disks={disk_sizes.LAYER: Disk(32 * MIB, 0)}).steps
    assert (step.action, step.data.tune, step.reason) == (
        "update",
        True,
        "these limits differ from the declaration: memory, layer",
    )
    assert plan(want, want, disks={disk_sizes.LAYER: Disk(64 * MIB, 0)}).steps == []


def test_no_size_is_below_what_is_held():
    found = {disk_sizes.LAYER: Disk(64 * MIB, 30 * MIB), "/data": Disk(64 * MIB, 30 * MIB)}
    told = plan(desired(limits={"disk": "64M"}), desired(limits={"disk": "32M"}), disks=found)
    assert told.steps == []
    assert told.refusals[0].message == "limits:disk: it holds 30.0 MiB already, 32 MiB are too small for that"
    told = plan(volumes("64M"), volumes("32M"), disks=found)
    assert "volume /data: its size: it holds" in told.refusals[0].message
    assert plan(volumes("64M"), volumes("48M"), disks=found).steps[0].action == "restart"


@pytest.mark.parametrize(("budget", "told"), [(None, False), (100 * MIB, False), (60 * MIB, True)])
def test_promising_more_than_the_disk_has_is_told(budget, told):
    before, after = desired(limits={"disk": "32M"}), volumes("32M")
    observed = Observed({"web": seen(before), "gone": seen(before)}, {}, "r", budget=budget)
    notes = compare.plan({"web": before, "other": after}, observed, ["gone"]).notes
    assert any("more than the disk has for them" in note for note in notes) == told


def test_a_layer_without_a_record_is_told_of():
    observed = Observed({}, {}, "r", unrecorded=frozenset({"web", "old"}))
    told = compare.plan({"web": desired()}, observed)
    assert told.steps[0].reason == "its record was lost; its layer is kept"
    assert told.notes[0].startswith("environment old has a layer, but no record")


@given(st.integers(16 * MIB, 2**44))
def test_a_file_system_has_room_for_less_than_its_size(size):
    assert 0 < disk_sizes.room(size) < disk_sizes.whole(size) <= size


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"target": "/data"}, "volumes:0: give a source (a folder of the host), or a size"),
        (
            {"target": "/data", "source": "/srv/x", "size": "1G"},
            "volumes:0:size: netspace can't limit the size of a host's folder",
        ),
        ({"target": "/data", "size": "1M"}, "volumes:0:size: 1M is out of"),
        ({"target": "/" + "ä" * 40, "size": "1G"}, "volumes:0:target: longer than 200"),
    ],
)
def test_a_volume_is_a_folder_or_has_a_size(volume, message):
    with pytest.raises(SpecError) as caught:
        desired(volumes=[volume])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "limits", [{"disk": "1M"}, {"disk": 0}, {"io": {"read": 1}}, {"io": {"write_ops": 0}}, {"io": {"reads": 1}}]
)
def test_senseless_limits_are_refused(limits):
    with pytest.raises(SpecError):
        desired(limits=limits)


def test_a_folder_in_use_is_measured_in_bytes_and_files(tmp_path):
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d/file").write_bytes(b"x" * MIB)
    (tmp_path / "tree/d/again").hardlink_to(tmp_path / "tree/d/file")
    (tmp_path / "tree/out").symlink_to("/usr")
    found = disks.measure(tmp_path / "tree")
    assert found is not None
    assert MIB <= found[0] < 2 * MIB
    assert found[1] == 4
    assert disks.measure(tmp_path / "absent") is None


def test_the_page_tells_the_defaults():
    table = (Path(__file__).parents[3] / "docs/limits.md").read_text()
    told = dict(re.findall(r"`(\w+)` \(([\d.]+M?)\)", table))
    assert set(told) == {"memory", "cpus", "pids", "files", "tmp", "shm"}
    limits = {key: value if "M" in value else ast.literal_eval(value) for key, value in told.items()}
    assert desired(limits=limits) == desired()
    assert f"The smallest size is {disks.LEAST // MIB}M." in table


# -- one folder under two names --------------------------------------------------------

MOUNTED = mounts.Table(
    "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "2 1 8:1 /srv/a /mnt/alias rw - ext4 /dev/sda1 rw\n"
    "3 1 8:2 / /data rw - ext4 /dev/sda2 rw\n"
)


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("/srv/a/x", ("8:1", "/srv/a/x")),
        ("/mnt/alias", ("8:1", "/srv/a")),
        ("/mnt/alias/x", ("8:1", "/srv/a/x")),
        ("/mnt/aliased", ("8:1", "/mnt/aliased")),
        ("/data", ("8:2", "/")),
        ("/data/x", ("8:2", "/x")),
        ("/", ("8:1", "/")),
    ],
)
def test_a_path_has_one_origin(path, origin):
    assert mounts.origin(path, MOUNTED) == origin


@pytest.mark.parametrize(
    ("one", "other", "refused"),
    [
        ("/srv/a", "/mnt/alias", True),
        ("/srv/a/x", "/mnt/alias", True),
        ("/srv/a", "/mnt/alias/x", True),
        ("/srv/a/x", "/mnt/alias/y", False),
        ("/srv/a", "/data/srv/a", False),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_a_folder_under_another_name_is_not_given_twice(one, other, refused, together):
    first, second = (desired(volumes=[{"source": source, "target": "/v"}]) for source in (one, other))
    observed = Observed({} if together else {"one": seen(first)}, {}, "r", mounted=MOUNTED)
    told = compare.plan({"one": first, "other": second} if together else {"other": second}, observed)
    assert [refusal.name for refusal in told.refusals] == (["other"] if refused else [])
