"""A declaration is accepted as a whole, or refused with the path of each mistake."""

from __future__ import annotations

import copy
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import SpecError
from netspace.plugin import arguments
from netspace.spec import checks, parse
from netspace.spec.types import Cidr, LocalBroker, Rate, Requirement, Size

SHOP = {
    "attestation": {"policy": "prefer", "minimum": "L3"},
    "broker": {"kind": "local"},
    "environments": {
        "orders": {
            "image": "oci:/srv/images/shop:orders",
            "command": ["/usr/bin/orders"],
            "limits": {"memory": "128M", "cpus": 0.5, "pids": 64},
            "interface": {
                "kind": "veth",
                "allow": [{"direction": "out", "cidr": "198.51.100.0/24", "port": 443}],
            },
            "attestation": {"policy": "require", "minimum": "L4"},
        },
        "web": {"image": "tar:/srv/images/shop.tar", "command": ["/usr/bin/web"]},
    },
    "links": [{"from": "web", "to": "orders", "pattern": "request"}],
}


def changed(path: str, value: object) -> dict:
    """Return SHOP with *value* at *path* (keys joined by ``:``)."""
    data = copy.deepcopy(SHOP)
    *parents, last = path.split(":")
    at = data
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    if isinstance(at, list):
        at.append(value)
    else:
        at[last] = value
    return data


def refusal(data: object) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse.declaration(data)
    return [str(problem) for problem in caught.value.problems]


def test_a_whole_declaration_becomes_values():
    shop = parse.declaration(SHOP)
    orders = shop.environments["orders"]
    assert orders.limits.memory == Size(128 * 1024**2)
    assert orders.limits.cpus == 0.5
    assert orders.interface.allow[0].cidr == Cidr("198.51.100.0/24")
    assert orders.attestation == Requirement(policy="require", minimum="L4")
    assert type(shop.environments["web"].interface).__struct_config__.tag == "none"
    assert shop.broker == LocalBroker()
    assert [link.name for link in shop.links] == ["web.orders"]


def test_what_is_encoded_parses_to_the_same():
    shop = parse.declaration(SHOP)
    assert parse.declaration(parse.encode(shop)) == shop


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "environments:web:limits:memroy",
            "1M",
            "netspace:environments:web:limits:memroy: unknown; did you mean memory?",
        ),
        ("environmnets", {}, "netspace:environmnets: unknown; did you mean environments?"),
        ("environments:web:limits:memory", "12X", "netspace:environments:web:limits:memory: expected a size"),
        (
            "environments:orders:interface:rate",
            "10 miles",
            "netspace:environments:orders:interface:rate: expected bits per second such as 10M",
        ),
        ("environments:orders:interface:rate", "1K", "netspace:environments:orders:interface:rate: 1K is out of 8K.."),
        (
            "environments:orders:interface:connections",
            0,
            "netspace:environments:orders:interface:connections: 0 is out of",
        ),
        ("environments:web:limits:memory", 1, "netspace:environments:web:limits:memory: 1 is out of 4M..1024T"),
        ("environments:web:limits:cpus", float("nan"), "netspace:environments:web:limits:cpus: nan is out of"),
        ("environments:web:interface", {"kind": "vteh"}, "netspace:environments:web:interface:kind: 'vteh'"),
        ("environments:web:image", "shop", "netspace:environments:web:image: 'shop': write <source>:<location>"),
        ("environments:web:image", "tar:shop.tar", "netspace:environments:web:image: 'tar:shop.tar': the location"),
        ("environments:web:user", 0, "netspace:environments:web:user: 0 is out of"),
        ("environments:web:env", {"A": 1}, "netspace:environments:web:env: expected a text, got a whole number"),
        (
            "environments:web:command",
            "/bin/sh -e /run",
            "netspace:environments:web:command: expected a list, got a text; write [/bin/sh, -e, /run]",
        ),
        ("environments:web:publish", ["80:80"], "netspace:environments:web:publish: unknown; it is a key of interface"),
        ("environments:web:memory", "64M", "netspace:environments:web:memory: unknown; it is a key of limits"),
        (
            "environments:web:limits:memory",
            64,
            "netspace:environments:web:limits:memory: 64 is out of 4M..1024T; a number alone is bytes: write 64M",
        ),
        ("environments:Web", {"image": "tar:/x"}, "netspace:environments:Web: 'Web' can't be an environment's name"),
        (
            "environments:web:state",
            "paused",
            "netspace:environments:web:state: 'paused' is not accepted here; choose from running, stopped",
        ),
        ("environments:web:seccomp", "none", "netspace:environments:web:seccomp: 'none' is not a profile"),
        (
            "environments:web:attestation",
            {"policy": "maybe"},
            "netspace:environments:web:attestation:policy: 'maybe' is not accepted here; choose from off",
        ),
        ("links:0", {"from": "web", "to": "nobody"}, "netspace:links:1:to: there is no environment nobody"),
        ("links:0", {"from": "web", "to": "orders"}, "netspace:links:1: the same link as netspace:links:0"),
        ("links:0", {"from": "web", "to": "web"}, "netspace:links:1: web can't be linked to itself"),
        ("broker:port", 0, "netspace:broker:port: 0 is out of 1..65535"),
        ("environments:web:image", "tar:/srv/x\0y", "netspace:environments:web:image: a NUL character"),
        ("environments:web:command", ["\ud800"], "netspace:environments:web:command:0: a NUL character"),
        (
            "environments:web:interface",
            {"kind": "veth", "ipv6": "fd6e:6574:7370::5%eth0"},
            "netspace:environments:web:interface:ipv6: expected an address",
        ),
        (
            "environments:web:volumes",
            [{"source": "/srv/a", "target": "/data/in"}, {"source": "/srv/b", "target": "/data"}],
            "netspace:environments:web:volumes:1:target: /data would cover /data/in",
        ),
        ("attestation:pcrs", [24], "netspace:attestation:pcrs:0: 24 is not a PCR"),
        ("network", {"ipv4": "fd00::/64"}, "netspace:network:ipv4: fd00::/64 is not an IPv4 network"),
    ],
)
def test_what_is_wrong_is_named_with_its_path_and_remedy(path, value, message):
    found = refusal(changed(path, value))
    assert len(found) == 1, found
    assert found[0].startswith(message), found


@pytest.mark.parametrize(
    "url",
    ["amqp://h:99999", "amqp://h:x", "amqp://[::1", "amqp://", "amqp://a b", "http://h", "amqp://h?x=1", "h:5672", ""],
)
def test_a_broker_must_be_an_address_that_can_be_connected_to(url):
    broker = {"kind": "cluster", "url": url, "management": "https://h:15671", "credentials": "/etc/netspace/broker"}
    assert refusal(changed("broker", broker))[0].startswith("netspace:broker:url: expected amqp://HOST:PORT")


CLUSTER = {
    "kind": "cluster",
    "url": "amqps://h",
    "management": "https://h",
    "credentials": "/etc/b",
    "ca": "/etc/ca.pem",
    "names_key": "/etc/key",
}
CONTROLS = ["\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028", "\u202e", "\x00"]


@pytest.mark.parametrize("character", [*CONTROLS, " ", "\u00a0", '"', "'", "\\", "$", "#"])
@pytest.mark.parametrize("key", ["credentials", "ca", "names_key"])
def test_a_path_of_the_broker_is_no_line_of_a_configuration(key, character):
    parse.declaration(changed("broker", CLUSTER))
    refused = refusal(changed("broker", {**CLUSTER, key: f"/etc/x{character}y"}))
    assert [one.partition(": ")[0] for one in refused] == [f"netspace:broker:{key}"]


@pytest.mark.parametrize("character", CONTROLS)
@pytest.mark.parametrize("key", ["working_dir", "volumes:source", "volumes:target"])
def test_no_path_has_a_control_character(key, character):
    path = f"/srv/x{character}y"
    whole = {"source": "/srv/my data", "target": "/my data"}  # a blank is none
    parse.declaration(changed("environments:web:volumes", [whole]))
    key, _, end = key.partition(":")
    refused = refusal(changed(f"environments:web:{key}", [{**whole, end: path}] if end else path))
    assert len(refused) == 1 and f"environments:web:{key}" in refused[0]


def test_a_cluster_has_a_list_of_nodes():
    broker = {"kind": "cluster", "management": ["https://n1:15671", "https://n2:15671"], "credentials": "/etc/b"}
    parsed = parse.declaration(changed("broker", {**broker, "url": ["amqps://n1", "amqps://n2"]}))
    assert parsed.broker.urls == ("amqps://n1", "amqps://n2")
    assert parsed.broker.managements == ("https://n1:15671", "https://n2:15671")
    assert refusal(changed("broker", {**broker, "url": []})) == ["netspace:broker:url: names no node of the cluster"]
    (problem,) = refusal(changed("broker", {**broker, "url": ["amqps://n1", "http://n2"]}))
    assert problem.startswith("netspace:broker:url:1: expected amqp://HOST:PORT")


@pytest.mark.parametrize("host", ["n1", "192.0.2.1", "[2001:db8::1]", "localhost.example", "0.0.0.0"])
def test_no_password_crosses_a_network_in_clear(host):
    secure = {"kind": "cluster", "url": f"amqps://{host}", "management": f"https://{host}", "credentials": "/etc/b"}
    parse.declaration(changed("broker", secure))
    for key, url in (("url", f"amqp://{host}:5672"), ("management", f"http://{host}:15672")):
        for value, where in ((url, key), ([secure[key], url], f"{key}:1")):
            (problem,) = refusal(changed("broker", {**secure, key: value}))
            assert problem.startswith(
                f"netspace:broker:{where}: {url.partition('://')[0]}:// to another host sends passwords"
            )
            assert "; use " in problem


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_a_broker_on_this_host_needs_no_tls(host):
    broker = {"kind": "cluster", "url": f"amqp://{host}", "management": f"http://{host}", "credentials": "/etc/b"}
    assert parse.declaration(changed("broker", broker)).broker.urls == (f"amqp://{host}",)


def test_a_password_for_nobody_is_refused():
    section = changed("broker", {"kind": "local", "passwords": ["nobody"]})
    assert refusal(section) == ["netspace:broker:passwords:0: there is no environment nobody"]
    only = {"broker": section["broker"]}  # where each environment is a state of its own
    assert parse.declaration(only).broker.passwords == ("nobody",)


def test_a_password_in_a_url_is_refused_and_not_repeated():
    broker = {"kind": "cluster", "url": "amqps://u:sekret@h", "management": "https://h", "credentials": "/etc/b"}
    (problem,) = refusal(changed("broker", broker))
    assert "credentials" in problem and "sekret" not in problem


def test_every_mistake_of_one_environment_is_reported() -> None:
    typed = {
        "image": 3,
        "comand": ["/x"],
        "limits": {"memroy": "64M", "cpus": "half", "memory": "64M"},
        "env": {"A": 1, "B": 2},
        "interface": {"kind": "veth", "pubish": [], "mtu": "large"},
    }
    assert sorted(refusal({"environments": {"web": typed}})) == [
        "netspace:environments:web:comand: unknown; did you mean command?",
        "netspace:environments:web:env: expected a text, got a whole number",
        "netspace:environments:web:image: expected a text, got a whole number",
        "netspace:environments:web:interface:mtu: expected a whole number, got a text",
        "netspace:environments:web:interface:pubish: unknown; did you mean publish?",
        "netspace:environments:web:limits:cpus: expected a number, got a text",
        "netspace:environments:web:limits:memroy: unknown; did you mean memory?",
    ]


def test_every_problem_is_reported_at_once():
    data = changed("environments:web:limits:memroy", "1M")
    data["environments"]["orders"]["user"] = 0
    data["links"].append({"from": "web", "to": "nobody"})
    assert len(refusal(data)) == 3


def test_one_mistake_of_an_environment_hides_no_other_of_it():
    """An environment with mistakes of form, runtime and the whole declaration: each mistake is reported."""
    kernel = {"kernel": "/srv/k", "command": ["/x"], "env": {"A": "b"}, "health": {"exec": ["/x"]}, "target": True}
    data = {
        "environments": {
            "tiny": {**kernel, "after": ["nobody"], "volumes": [{"source": "/srv/data", "target": "/d"}]},
            "web": {"image": "nonsense", "health": {"mailbox": True}, "after": ["web"]},
            "orders": {"image": "tar:/x", "user": 0, "volumes": [{"source": "/srv/data", "target": "/d"}]},
        }
    }
    told = {problem.partition(": ")[0] for problem in refusal(data)}
    tiny = {"command", "env", "health:exec", "target", "after:0", "volumes"}
    assert told >= {f"netspace:environments:tiny:{key}" for key in tiny}
    assert told >= {f"netspace:environments:web:{key}" for key in ("image", "health:mailbox")}
    assert any(path.startswith("netspace:environments:web:after") for path in told)
    clash = {f"netspace:environments:{name}:volumes:0:source" for name in ("tiny", "orders")}
    assert told & clash and "netspace:environments:orders:user" in told
    with pytest.raises(SpecError) as caught:
        arguments.one_environment("tiny", kernel, {})
    assert {problem.path for problem in caught.value.problems} >= {"tiny:command", "tiny:health:exec", "tiny:target"}


@pytest.mark.parametrize(
    "data", [None, [], "x", 1, {"environments": []}, {"links": {}}, {"environments": {"web": None}}]
)
def test_the_wrong_shape_is_refused_not_crashed_on(data):
    assert refusal(data)


@pytest.mark.parametrize(
    ("first", "second"),
    [("/srv/data", "/srv/data"), ("/srv/data", "/srv/data/deep/er"), ("/srv/data/x", "/srv/data")],
)
def test_a_path_is_never_handed_to_two_environments(first, second):
    data = changed("environments:web:volumes", [{"source": first, "target": "/data"}])
    data["environments"]["orders"]["volumes"] = [{"source": second, "target": "/data"}]
    data["environments"]["orders"]["volumes"].append({"source": "/srv/data-other", "target": "/other"})
    assert any("already" in problem for problem in refusal(data))


def test_two_ports_of_the_broker_are_two():
    assert refusal(changed("broker", {"kind": "local", "port": 15682})) == [
        "netspace:broker:management_port: 15682 is already used as port"
    ]
    # What is ignored is in nobody's way.
    assert parse.declaration(changed("broker", {"kind": "local", "port": 4379})).broker.port == 4379


def test_paths_that_only_look_alike_do_not_clash():
    data = changed("environments:web:volumes", [{"source": "/srv/data", "target": "/data"}])
    data["environments"]["orders"]["volumes"] = [{"source": "/srv/data-other", "target": "/data"}]
    assert parse.declaration(data)


@pytest.mark.parametrize(
    "source",
    [
        "/proc/sys",
        "/run/dbus",
        "/usr/share",
        "/lib64",
        "/var/lib",
        "/home",
        "/dev/shm",
        "/",
        "/etc",
        "srv",
        "/srv/../etc",
        "/srv//x",
        "/srv/",
        "/run",
    ],
)
def test_the_hosts_own_folders_are_never_handed_out(source):
    assert refusal(changed("environments:web:volumes", [{"source": source, "target": "/data"}]))


@pytest.mark.parametrize(
    "target", ["/", "/run", "/proc", "/dev/shm", "/run/netspace", "/run/netspace/x", "data", "/a/../proc"]
)
def test_a_volume_never_covers_what_netspace_mounts(target):
    assert refusal(changed("environments:web:volumes", [{"source": "/srv/data", "target": target}]))


def test_one_address_is_never_given_twice():
    data = changed("environments:web:interface", {"kind": "veth", "ipv4": "10.203.0.9"})
    data["environments"]["orders"]["interface"] = {"kind": "veth", "ipv4": "10.203.0.9"}
    assert refusal(data) == ["netspace:environments:web:interface:ipv4: 10.203.0.9 already belongs to orders"]
    data["environments"]["orders"]["interface"] = {"kind": "veth", "ipv4": "203.0.113.9"}
    assert "is outside of netspace:network:ipv4" in refusal(data)[0]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "environments",
                        "links",
                        "image",
                        "limits",
                        "memory",
                        "interface",
                        "kind",
                        "from",
                        "to",
                        "web",
                        "broker",
                        "allow",
                    ]
                )
                | st.text(max_size=10),
                inner,
                max_size=5,
            )
        ),
        max_leaves=30,
    )
)
def test_any_document_is_parsed_or_refused(data):
    try:
        parsed = parse.declaration(data)
    except SpecError as err:
        assert err.problems
    else:
        assert parse.declaration(parse.encode(parsed)) == parsed


@given(st.integers(0, 10**15 - 1), st.sampled_from(["", "K", "M", "G", "T", "k", "MB", "MiB"]))
def test_sizes_are_bytes(number, unit):
    factor = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}[unit.upper()[:1]]
    assert Size.parse(f"{number}{unit}") == number * 1024**factor


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["", "K", "M", "G"]), st.sampled_from(["", "bit"]))
def test_rates_are_bits_and_decimal(number, unit, word):
    factor = 1000 ** ["", "K", "M", "G"].index(unit)
    assert Rate.parse(f"{number}{unit}{word}") == number * factor


HEALTH = "environments:web:health"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (HEALTH, {}, "netspace:environments:web:health: give either exec"),
        (HEALTH, {"exec": ["/x"], "mailbox": True}, "netspace:environments:web:health: give either exec"),
        (HEALTH, {"exec": [""]}, "netspace:environments:web:health:exec:0: empty"),
        (HEALTH, {"exec": ["/x"], "interval": 0}, "netspace:environments:web:health:interval: 0.0 is out of"),
        (HEALTH, {"exec": ["/x"], "timeout": float("nan")}, "netspace:environments:web:health:timeout: nan is out"),
        (HEALTH, {"exec": ["/x"], "retries": 0}, "netspace:environments:web:health:retries: 0 is out of"),
        (HEALTH, {"exec": ["/x"], "intervall": 1}, "health:intervall: unknown; did you mean interval?"),
        (HEALTH, {"mailbox": True}, "netspace:environments:web:health:mailbox: web has no mailbox"),
        ("environments:web:after", ["orders", "orders"], "netspace:environments:web:after:1: 'orders' is listed twice"),
        (
            "environments:web:after",
            ["order"],
            "netspace:environments:web:after:0: there is no environment order; did you mean orders?",
        ),
        (
            "environments:web:after",
            ["web"],
            "netspace:environments:web:after:0: these environments would wait for each other",
        ),
        ("environments:web:update", {"deadline": 0}, "netspace:environments:web:update:deadline: 0.0 is out of"),
    ],
)
def test_health_order_and_updates_that_can_not_be(path: str, value: object, message: str) -> None:
    assert any(message in line for line in refusal(changed(path, value))), refusal(changed(path, value))


def test_a_circle_is_told_with_all_that_is_in_it() -> None:
    data = changed("environments:web:after", ["orders"])
    data["environments"]["orders"]["after"] = ["mail"]
    data["environments"]["mail"] = {"image": "tar:/x.tar", "after": ["web"]}
    (line,) = refusal(data)
    assert line.startswith(
        "netspace:environments:orders:after:0: these environments would wait for each other; remove one 'after': "
    )
    assert line.endswith("orders after mail after web after orders")


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefg"), max_size=4, unique=True)))
def test_circles_are_found_wherever_they_are(after: dict[str, list[str]]) -> None:
    found = checks.circle(after)
    if found:
        assert found[0] == found[-1]
        assert all(later in after[name] for name, later in itertools.pairwise(found))
        return
    done: set[str] = set()
    while left := {name for name in after if name not in done}:
        free = {name for name in left if all(other in done or other not in after for other in after[name])}
        assert free, f"{after} can't be started in any order"
        done |= free
