"""The plan: the step for each difference. Pure."""

from __future__ import annotations

import hashlib
import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace import files
from netspace.environment import claims, images, user_ids
from netspace.environment import record as records
from netspace.environment.container import apparmor
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.environment.reconciler import Environments
from netspace.environment.record import Record
from netspace.environment.runtimes import USUAL
from netspace.environment.storage import injected_files
from netspace.environment.update import rollout
from netspace.errors import StateError
from netspace.layout import Layout
from netspace.spec import parse
from netspace.supervision.service import Status

FILES = {"environment.json": b"{}", "password": b"hidden"}
RUNNING = Status("running", pid=7)


def spec(**keys):
    return parse.environment("web", {"image": "tar:/x.tar", "command": ["/x"], **keys})


def desired(state="running", handed=FILES, summary=None, **keys):
    return DesiredEnvironment(spec(**keys), handed, {"links": []} if summary is None else summary, state)


def seen(want=None, **changes):
    """Return the state that is observed after one apply of *want*."""
    want = want or desired()
    record = Record(
        want.spec, want.state, user_ids.FIRST, Image("d" * 64, "i", Defaults()), "c", "r", want.files_summary
    )
    status = RUNNING if want.state == "running" else Status("stopped")
    found = ObservedEnvironment(record, status, True, injected_files.digests(want.files))
    return msgspec.structs.replace(found, **changes)


def plan(want, found=None, sources=None, revision="r", remove=()):
    there = {} if found is None else {"web": found}
    observed = Observed(there, sources or {"tar:/x.tar": images.Seen("i")}, revision)
    return Environments.plan({} if want is None else {"web": want}, observed, remove)


def only(result):
    (step,) = result.steps
    return step


KEYS = st.fixed_dictionaries(
    {},
    optional={
        "user": st.integers(1, 65535),
        "working_dir": st.sampled_from(["/", "/etc"]),
        "read_only": st.booleans(),
        "restart": st.sampled_from(["always", "on-failure", "never"]),
        "stop_timeout": st.sampled_from([1.0, 10.0]),
        "limits": st.fixed_dictionaries(
            {}, optional={"memory": st.sampled_from(["8M", "9M"]), "pids": st.integers(1, 9)}
        ),
        "env": st.dictionaries(st.sampled_from(["A", "B"]), st.text("xy", max_size=2)),
        "attestation": st.sampled_from([{"policy": "off"}, {"minimum": "L2"}]),
        "interface": st.sampled_from([{"kind": "none"}, {"kind": "veth"}]),
    },
)
STATES = st.sampled_from(["running", "present", "stopped"])


@given(KEYS, STATES)
def test_what_was_applied_needs_nothing(keys, state):
    want = desired(state, **keys)
    assert plan(want, seen(want)).steps == []
    again = desired(state, **json.loads(json.dumps(keys)))
    assert plan(again, seen(want)).steps == []


@given(KEYS, KEYS, STATES)
def test_a_step_names_exactly_the_keys_that_differ(before, after, state):
    old, new = desired(state, **before), desired(state, **after)
    differences = files.differences(parse.encode(records.own(old.spec)), parse.encode(records.own(new.spec)))
    steps = plan(new, seen(old)).steps
    assert {key for step in steps for key in step.changes} == set(differences)
    live = {"restart", "stop_timeout", "attestation", "limits:memory"}
    if new.spec.limits.pids < old.spec.limits.pids:
        live.add("limits:pids")
    fixed = {key for key in differences if key not in live and key.split(":")[0] not in live}
    if steps:
        assert steps[0].data.stop == (state == "running" and bool(fixed))
        assert steps[0].data.tune == (not fixed and any(key.startswith("limits:") for key in differences))
        if state != "running":
            assert not steps[0].data.start


DUE = {
    "image": ({}, {"sources": {"tar:/x.tar": images.Seen("another")}}),
    "root": ({"assembled": False}, {}),
    "namespace": ({"namespace": False}, {}),
}


def kept(want, state="present"):
    return msgspec.structs.replace(want, state=state, kept=True)


NEVER = desired(restart="never")
ENDED = Status("failed", exit="exit 3")


def test_one_that_ended_badly_is_run_once_more_only_where_that_is_not_the_end_of_it():
    """An apply doesn't run a job with ``restart: never`` again that has failed. It does run a job that never began."""
    result = plan(NEVER, seen(NEVER, status=ENDED, problem="it ended (exit 3)"))
    assert result.steps == []
    (refusal,) = result.refusals
    assert refusal.message == (
        "it does not run: it ended (exit 3); with restart: never it is run again only by netspace_environment.start, "
        "or by a change that needs a restart"
    )
    # Not where it could not even be begun, was stopped by us, has changed, or need not run.
    assert only(plan(NEVER, seen(NEVER, status=ENDED, begun=False))).action == "start"
    assert only(plan(NEVER, seen(NEVER, status=ENDED, halted=True))).action == "start"
    assert only(plan(desired(restart="never", user=7), seen(NEVER, status=ENDED))).action == "start"
    present = desired("present", restart="never")
    result = plan(present, seen(present, status=ENDED, problem="it ended (exit 3)"))
    assert (result.steps, result.refusals) == ([], [])
    # With another policy a supervisor has lost it.
    assert only(plan(desired(), seen(status=ENDED))).action == "start"


WAITS = "waits for db, which is starting"


@pytest.mark.parametrize(
    ("status", "found", "message"),
    [
        (
            Status("starting", restarts=3, exit="exit 3", since=1.0),
            {"problem": "it ended (exit 3)"},
            "it does not run: it ended (exit 3); it is started again and again (3 times by now)",
        ),
        (Status("starting"), {"problem": WAITS}, f"it does not run: {WAITS}"),
        (Status("starting", restarts=1, exit="exit 3"), {"problem": "it ended (exit 3)"}, None),
        (Status("starting"), {}, None),
        (Status("running", pid=7, restarts=3, exit="exit 3"), {}, None),
    ],
)
def test_one_that_shall_run_and_does_not_is_not_as_declared(status, found, message):
    result = plan(desired(), seen(status=status, **found))
    assert result.steps == []
    assert [refusal.message for refusal in result.refusals] == ([message] if message else [])
    present = desired("present")
    assert plan(present, seen(present, status=status, **found)).refusals == []


def test_one_that_could_not_be_started_is_tried_again_at_once():
    status = Status("starting", restarts=1, exit="exit 1")
    found = {"status": status, "begun": False, "problem": "can't be started: `/nope` not found"}
    step = only(plan(desired(), seen(**found)))
    assert (step.action, step.reason) == (
        "start",
        "its last start failed, and is tried again: can't be started: `/nope` not found",
    )
    assert step.data.start and not step.data.stop
    assert only(plan(desired("present"), seen(desired("present"), **found))).action == "start"
    assert only(plan(desired(user=7), seen(**found))).action == "restart"


@pytest.mark.parametrize("due", DUE)
def test_what_is_kept_gets_its_card_and_is_neither_stopped_nor_made_anew(due):
    found, around = DUE[due]
    was = seen(desired("present"), status=RUNNING, **found)
    assert only(plan(desired("present"), was, **around)).action == "restart"
    result = plan(kept(desired()), was, **around)
    assert result.steps == []
    assert "its restart waits until the host has the required trust" in result.notes[0] and due in result.notes[0]
    step = only(plan(kept(desired(handed={"environment.json": b"new"}, attestation={"minimum": "L2"})), was, **around))
    work = step.data
    assert (step.action, set(step.changes)) == ("update", {"files:environment.json", "files:password", "attestation"})
    assert not (work.build or work.assemble or work.stop or work.start or work.tune or work.rolling)


def test_flapping_is_noted_unless_the_program_is_started_anew() -> None:
    flaps = Status("running", pid=7, since=time.time(), restarts=9, exit="exit 2")
    (note,) = plan(desired(), seen(status=flaps)).notes
    assert "flapping" in note
    changed = plan(desired(command=["/y"]), seen(status=flaps))
    assert (only(changed).action, changed.notes) == ("restart", [])


def test_running_program_that_is_noted_as_stopped_says_so() -> None:
    step = only(plan(desired(), seen(halted=True)))
    assert (step.action, step.reason) == ("update", "it runs, but its record says that it is stopped")


def test_creation_shows_no_empty_values() -> None:
    step = only(plan(desired(attestation={})))
    assert [key for key, change in step.changes.items() if change["new"] in ({}, [], (), None, "")] == []


def test_a_kernel_that_is_kept_gets_its_card_when_it_may_start_anew():
    spec = parse.environment("web", {"kernel": "/srv/web.elf", "limits": {"memory": "128M"}})
    want = DesiredEnvironment(spec, FILES, {"links": []}, "present")
    was = seen(want, status=RUNNING)
    other = msgspec.structs.replace(want, files={"environment.json": b"new"})
    assert only(plan(other, was)).action == "restart"
    result = plan(kept(other), was)
    assert (
        result.steps == []
        and "its restart waits until the host has the required trust (files:environment.json" in result.notes[0]
    )


def test_limits_that_nothing_keeps_are_told_also_where_nothing_changes():
    observed = Observed({"web": seen()}, {"tar:/x.tar": images.Seen("i")}, "r", ("memory", "pids"))
    told = Environments.plan({"web": desired()}, observed)
    assert told.steps == []
    assert "memory, pids" in told.notes[0]
    assert not Environments.plan({}, observed).notes
    assert not plan(desired(), seen()).notes


def test_create_shows_every_key_but_no_value_of_a_variable():
    step = only(plan(desired(env={"TOKEN": "hush"})))
    assert step.action == "create"
    assert step.changes["command"] == {"old": None, "new": ("/x",)}
    assert step.changes["env"] == {"old": None, "new": {"TOKEN": "(not shown)"}}
    assert "hush" not in repr(step.changes)
    assert "hidden" not in repr(step.changes)
    assert step.data.start
    assert not only(plan(desired("stopped"))).data.start
    assert not only(plan(desired("present"))).data.start


def volume(source, state="running"):
    return desired(state, volumes=[{"source": source, "target": "/data"}])


@pytest.mark.parametrize("source", ["/srv/x/a", "/srv/x/a/below", "/srv/x"])
def test_a_folder_of_a_recorded_environment_is_not_given_to_another(source):
    observed = Observed({"owner": seen(volume("/srv/x/a"))}, {}, "r")
    wanted = {"thief": volume(source)}
    told = Environments.plan(wanted, observed)
    assert told.steps == []
    (refusal,) = told.refusals
    assert (refusal.kind, refusal.name) == ("environment", "thief")
    assert "owner" in refusal.message
    assert [step.name for step in Environments.plan(wanted, observed, ["owner"]).steps] == ["owner", "thief"]
    given_up = Environments.plan({**wanted, "owner": volume("/srv/b")}, observed)
    assert not given_up.refusals
    # An existing one isn't changed either; and one that is refused keeps what it has.
    both = Observed({"owner": seen(volume("/srv/x/a")), "thief": seen(volume("/opt/t"))}, {}, "r")
    chain = Environments.plan({"thief": volume(source), "third": volume("/opt/t")}, both)
    assert (chain.steps, sorted(each.name for each in chain.refusals)) == ([], ["thief", "third"])
    assert not Environments.plan({"thief": volume("/srv/x/ab")}, observed).refusals
    # The same of what is only noted of the owner.
    (noted,) = Environments.plan(wanted, Observed({}, {}, "r", others=observed.claims)).refusals
    assert noted == refusal


@given(changes=KEYS)
def test_claims_are_the_same_after_they_were_noted(changes):
    its = claims.of(seen(desired(**changes)).record)
    assert msgspec.json.decode(msgspec.json.encode(its), type=claims.Claims) == its


@pytest.mark.parametrize(
    ("want", "found", "action"),
    [
        (desired(), seen(status=Status("stopped")), "start"),
        # What is frozen goes on, and nothing is put together anew below a program that is there.
        (desired(), seen(status=Status("frozen", pid=7)), "start"),
        (desired(user=7), seen(status=Status("frozen", pid=7)), "restart"),
        (desired("stopped"), seen(status=Status("frozen", pid=7)), "stop"),
        (desired(), seen(status=Status("failed", exit="exit 1")), "start"),
        (desired(), seen(status=None), "start"),
        (desired(), seen(status=Status("starting", exit="exit 1")), None),
        (desired(), seen(assembled=False), "restart"),
        (desired(), seen(files=None), "update"),
        (desired(), seen(namespace=False), "restart"),
        (desired(), seen(status=Status("stopped"), assembled=False), "start"),
        (desired("stopped"), seen(), "stop"),
        (desired("present"), seen(desired("present")), None),
        (desired("present"), seen(desired("present"), status=RUNNING), None),
        (desired("present", user=7), seen(desired("present")), "change"),
        (desired("present", user=7), seen(desired("present"), status=RUNNING), "restart"),
        (desired("stopped"), seen(desired("stopped"), assembled=False), "change"),
        (desired(handed={"environment.json": b"new"}), seen(), "update"),
        (desired(user=7), seen(), "restart"),
        (desired(user=7), seen(status=Status("stopped")), "start"),
        (desired(restart="always"), seen(), "update"),
        # A success that is not to be repeated was it, unless it was our own stop.
        (desired(), seen(status=Status("stopped", exit="exit 0")), None),
        (desired(), seen(status=Status("stopped", exit="exit 0"), halted=True), "start"),
        (desired(restart="always"), seen(desired(restart="always"), status=Status("stopped", exit="exit 0")), "start"),
        (desired(restart="never"), seen(desired(restart="never"), status=Status("stopped", exit="exit 3")), "start"),
    ],
)
def test_steps(want, found, action):
    assert [step.action for step in plan(want, found).steps] == ([action] if action else [])


def declared(state, **keys):
    """Return an environment with its declared ``state``."""
    want = desired(state, **keys)
    return msgspec.structs.replace(want, spec=msgspec.structs.replace(want.spec, state=state))


def by_hand(found, state, status):
    """Record a manual start or stop."""
    return msgspec.structs.replace(found, record=msgspec.structs.replace(found.record, state=state), status=status)


STOPPED = {"state": {"old": "running", "new": "stopped"}}
STARTED = {"state": {"old": "stopped", "new": "running"}}


@pytest.mark.parametrize(
    ("want", "found", "action", "changes"),
    [
        (declared("stopped"), seen(), "stop", STOPPED),
        (declared("stopped"), seen(status=Status("starting", exit="exit 3")), "stop", STOPPED),
        (declared("stopped"), seen(status=Status("failed", exit="exit 3")), "update", STOPPED),
        (declared("running"), seen(declared("stopped")), "start", STARTED),
        # By hand: what the declaration says is made so again, also where only the record has to be told.
        (declared("stopped"), by_hand(seen(declared("stopped")), "running", RUNNING), "stop", STOPPED),
        (declared("stopped"), by_hand(seen(), "stopped", Status("stopped")), "update", STOPPED),
        (declared("running"), by_hand(seen(declared("stopped")), "running", RUNNING), "update", STARTED),
        # What isn't recorded as run by anybody, and runs.
        (declared("stopped"), seen(declared("stopped"), status=RUNNING), "stop", {}),
    ],
)
def test_a_declared_stop_is_a_difference_like_any_other(want, found, action, changes):
    step = only(plan(want, found))
    assert (step.action, step.changes) == (action, changes)
    assert step.data.start == (action == "start")
    assert step.data.record.spec == found.record.spec


def test_what_is_declared_to_be_stopped_is_made_and_changed_without_a_start():
    new = only(plan(declared("stopped")))
    assert (new.action, new.changes["state"], new.data.start) == ("create", {"old": None, "new": "stopped"}, False)
    there = seen(declared("stopped"))
    assert (plan(declared("stopped"), there).steps, plan(declared("stopped"), there).refusals) == ([], [])
    changed = only(plan(declared("stopped"), there, {"tar:/x.tar": images.Seen("other")}))
    work = changed.data
    assert (changed.action, list(changed.changes)) == ("change", ["image"])
    assert (work.build, work.assemble, work.start, work.rolling, work.previous) == (True, True, False, False, None)
    both = only(plan(declared("stopped"), seen(), {"tar:/x.tar": images.Seen("other")}))
    assert (both.action, set(both.changes), both.data.start) == ("stop", {"image", "state"}, False)


def test_an_update_that_was_taken_back_stays_so_over_a_stop():
    well = {"health": {"exec": ["/check"]}}
    bad = desired(user=7, **well)
    noted = rollout.failed(msgspec.structs.replace(seen(bad).record, previous=None), "it ended (exit 7)")
    was = seen(desired(**well))
    was = msgspec.structs.replace(was, record=msgspec.structs.replace(was.record, failed=noted))
    result = plan(declared("stopped", user=7, **well), was)
    step = only(result)
    assert (step.action, step.changes, step.data.failed) == ("stop", STOPPED, noted)
    assert (step.data.want.spec.user, step.data.want.spec.state) == (was.record.spec.user, "stopped")
    assert "taken back, since it ended (exit 7)" in result.refusals[0].message


def test_update_that_was_taken_back_leaves_the_card_of_before():
    """A failed update was rolled back; a plan of the same declaration has no step.

    The declared values differ from those in the present card, because they belong to the version that failed.
    """

    def want(version, **keys):
        about = {"to": "host", "verbs": ["whoami"]} if version == 2 else {"to": "host"}
        card = {"peers": [about, {"to": "db"}], "values": {"of": version}}
        return desired(handed={"environment.json": files.encode(card)}, values={"of": version}, **keys)

    bad, was = want(2, user=7), seen(want(1))
    noted = rollout.failed(msgspec.structs.replace(seen(bad).record, previous=None), "it ended (exit 7)")
    was = msgspec.structs.replace(was, record=msgspec.structs.replace(was.record, failed=noted))
    result = plan(bad, was)
    assert not result.steps and "taken back, since it ended (exit 7)" in result.refusals[0].message
    assert only(plan(want(3, user=8), was)).changes["values:of"] == {"old": 1, "new": 3}


def test_a_changed_source_is_a_changed_image_and_a_missing_one_a_note():
    step = only(plan(desired(), seen(), {"tar:/x.tar": images.Seen("other")}))
    assert (step.action, list(step.changes), step.data.build) == ("restart", ["image"], True)
    gone = plan(desired(), seen(), {"tar:/x.tar": images.Seen(error="no such file")})
    assert gone.steps == []
    assert gone.notes == ["environment web keeps its present image: no such file"]


def test_an_init_is_a_planned_restart_and_refused_where_this_host_has_none():
    for old, new in ((False, True), (True, False)):
        step = only(plan(desired(init=new), seen(desired(init=old))))
        assert (step.action, step.changes) == ("restart", {"init": {"old": old, "new": new}})
        assert step.reason == "process 1 is chosen when the environment starts"
    lacking = Observed({}, {"tar:/x.tar": images.Seen("i")}, "r", initless="catatonit is missing")
    found = Environments.plan({"web": desired(init=True), "other": desired()}, lacking)
    assert [step.name for step in found.steps] == ["other"]
    (refusal,) = found.refusals
    assert (refusal.name, refusal.message) == ("web", "netspace:environments:web:init: catatonit is missing")


HARDENED = {"hardening": {"old": "r", "new": "new"}}
DONE = desired(restart="on-failure", target=True)


@pytest.mark.parametrize(
    "found",
    [
        seen(),
        seen(status=Status("starting", exit="exit 1"), problem="x"),
        seen(DONE, status=Status("stopped", exit="exit 0")),
    ],
)
def test_program_with_former_hardening_is_left_alone(found):
    """An upgrade restarts no program: not one that runs, waits for its next start, or has done its work."""
    want = msgspec.structs.replace(desired(), spec=found.record.spec)
    result = plan(want, found, revision="new")
    assert [step for step in result.steps if step.data.assemble or step.data.stop] == []
    (note,) = [note for note in result.notes if "hardening" in note]
    assert note == (
        "environments have the hardening of an earlier version of netspace until they are started again: web; "
        "restart them by netspace_environment.restart when it suits"
    )
    assert not any("hardening" in note for note in plan(want, found).notes)


def test_program_that_could_not_start_is_hardened():
    """An apply starts a program that couldn't start, at once and with the present hardening.

    The apply first stops the program's service, so that the supervisor doesn't start the program in between.
    """
    found = seen(status=Status("starting", exit="exit 1"), problem="x", begun=False)
    step = only(plan(desired(), found, revision="new"))
    assert step.changes == HARDENED
    assert step.data.assemble and step.data.stop and step.data.start


def test_program_restarted_for_another_reason_is_hardened():
    result = plan(desired(user=7), seen(), revision="new")
    step = only(result)
    assert (step.action, step.changes) == ("restart", {"user": {"old": None, "new": 7}, **HARDENED})
    assert step.data.assemble and not any("hardening" in note for note in result.notes)


def test_stopped_environment_with_former_hardening_is_made_anew():
    step = only(plan(desired("stopped"), seen(desired("stopped")), revision="new"))
    assert (step.action, step.changes) == ("change", HARDENED)
    assert step.data.assemble and not step.data.start


def test_files_are_shown_by_their_summary_and_never_by_content():
    want = desired(handed={"environment.json": b"1", "password": b"secret"}, summary={"links": ["a.b"]})
    step = only(plan(want, seen()))
    assert step.action == "update"
    assert step.changes["links"] == {"old": [], "new": ["a.b"]}
    assert step.changes["files:password"] == {"old": "(old content)", "new": "(new content)"}


def test_only_what_is_named_is_removed():
    assert plan(None, seen()).steps == []
    assert only(plan(None, seen(), remove=["web", "nobody"])).action == "remove"


def test_a_record_comes_back_as_it_was_written(tmp_path):
    layout = Layout(root=tmp_path)
    want = desired(env={"A": "b"}, volumes=[{"source": "/srv/a", "target": "/a"}], attestation={"minimum": "L3"})
    defaults = Defaults(("/c",), ("x",), (("K", "v"),), "/w", 5, 6, ("note",))
    record = msgspec.structs.replace(seen(want).record, image=Image("d" * 64, "i", defaults))
    assert records.write(layout, "web", record)
    assert not records.write(layout, "web", record)
    read = records.read(layout)["web"]
    assert msgspec.structs.replace(read, spec=records.own(read.spec)) == msgspec.structs.replace(
        record, spec=records.own(record.spec)
    )
    path = records.path(layout, "web")
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(StateError, match="version 99"):
        records.read(layout)


def test_a_demanded_profile_that_the_host_lacks_is_refused():
    lacking = apparmor.State(problem="no AppArmor here")
    want = desired(apparmor="require")
    observed = Observed({}, {"tar:/x.tar": images.Seen("i")}, "r", confining=lacking)
    result = Environments.plan({"web": want}, observed)
    assert result.steps == []
    assert [refusal.message for refusal in result.refusals] == ["netspace:environments:web:apparmor: no AppArmor here"]
    # Without a demand a host that has no AppArmor gets no note at each apply.
    assert Environments.plan({"web": desired()}, observed).notes == []


def test_a_host_that_can_t_load_a_profile_says_so():
    broken = apparmor.State(True, failed="the parser is broken", loaded=frozenset())
    observed = Observed({}, {"tar:/x.tar": images.Seen("i")}, "r", confining=broken)
    assert Environments.plan({"web": desired()}, observed).notes == [
        "environments are made without an AppArmor profile (web): the parser is broken"
    ]
    assert Environments.plan({"web": desired(apparmor="off")}, observed).notes == []


@pytest.mark.parametrize(("state", "action"), [("running", "restart"), ("stopped", "update")])
def test_a_lost_profile_is_loaded_and_what_ran_restarted(state, action):
    want = desired(state)
    step = only(plan(want, seen(want, unconfined="its AppArmor profile is not loaded")))
    assert (step.action, step.changes, step.reason) == (action, {}, "its AppArmor profile is not loaded")


def test_a_record_keeps_its_profile_and_an_older_one_has_none(tmp_path):
    layout = Layout(root=tmp_path)
    record = msgspec.structs.replace(seen().record, confined="netspace-environment-0123456789ab")
    records.write(layout, "web", record)
    assert records.read_one(layout, "web").confined == record.confined
    assert claims.of(record).confined == record.confined
    path = records.path(layout, "web")
    older = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "confined"}
    path.write_text(json.dumps(older))
    assert records.read_one(layout, "web").confined == ""


def test_a_younger_key_s_default_changes_no_fingerprint():
    plain = records.fingerprint(spec(), None, USUAL)
    assert records.fingerprint(spec(apparmor="prefer"), None, USUAL) == plain
    assert records.fingerprint(spec(apparmor="off"), None, USUAL) != plain
    # As netspace computed it before these keys existed.
    since = ("state", "settle", "apparmor", "image_cache", "host", "values", "offers", "spawns")
    since += ("tenant", "delegates", "secrets")
    whole = {key: value for key, value in parse.encode(records.own(spec())).items() if key not in since}
    before = {"spec": whole, "profile": "", "runtime": {"name": "crun", "settings": {}}}
    assert plain == hashlib.sha256(files.encode(before)).hexdigest()
