"""The broker reads slowly from an environment that makes it work too much; nothing is lost, and others don't wait."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from support.checkout import ROOT
from support.links.link_world import World
from support.waiting import until

from netspace.environment.audit import services
from netspace.link.broker import budget, plugin
from netspace.spec.types import Link

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="audit", target="orders")
LINKS = (ASK, TELL)
CONSPIRE = tuple(Link(source=f"foe-{number}", target="orders") for number in range(6))
SLOW = 3_000
"""Reductions that an account may use in a millisecond, for each of two processors: any machine has so many."""
PATIENCE = 60.0
ANSWER = 50_000
"""Milliseconds: on a busy machine, the module waits in a look until each process that it asks has run."""

# Random sequences of milliseconds and of what was spent in them, from a seed; an error is a badmatch.
PROPERTIES = """
B = netspace_guard_budget,
Rate = B:rate(4),
true = Rate =:= 2 * B:rate(1) andalso B:rate(1) =:= B:rate(2),
{Most, Least} = {Rate * @BURST@, -Rate * @DEBT@},
rand:seed(exsss, @SEED@),
Ran = fun() -> rand:uniform(200) end,
%% Whatever is spent: the balance has its bounds, and a debt is paid off in the time of the largest one.
lists:foldl(fun(_, Before) ->
    After = B:balance(Before, Rate * Ran(), rand:uniform(Rate * 400) - Rate * 20, Rate),
    true = After =< Most andalso After >= Least,
    true = B:balance(After, Rate * @DEBT@, 0, Rate) >= 0,
    After
end, Most, lists:seq(1, 5000)),
%% Who spends no more than the rate never waits, however it is spread.
lists:foldl(fun(_, Before) ->
    Passed = Ran(),
    After = B:balance(Before, Rate * Passed, rand:uniform(Rate * Passed), Rate),
    true = After >= 0,
    After
end, Most, lists:seq(1, 5000)),
%% Who always spends all that he may has the rate in the end, and once what he may save up.
{Time, Spent, _} = lists:foldl(fun(_, {Sum, All, Before}) ->
    Passed = Ran(),
    Used = case Before >= 0 of true -> rand:uniform(Rate * 100); false -> 0 end,
    {Sum + Passed, All + Used, B:balance(Before, Rate * Passed, Used, Rate)}
end, {0, 0, Most}, lists:seq(1, 5000)),
true = Spent =< Rate * (Time + @BURST@ + 100),
%% Shares: nobody gets more than he needs, all together no more than there is, and whoever lacks some has the most.
lists:foreach(fun(_) ->
    Needs = [rand:uniform(1000) || _ <- lists:seq(1, rand:uniform(20))],
    Total = rand:uniform(10000),
    Level = B:level(Needs, Total),
    Given = [min(Need, Level) || Need <- Needs],
    Short = [Need || Need <- Needs, Need > Level],
    true = lists:sum(Given) =< Total,
    true = Short =:= [] orelse Total - lists:sum(Given) < length(Short)
end, lists:seq(1, 5000)),
unlimited = B:level([], 1),
Pauses = [B:pause(Times) || Times <- lists:seq(1, 100)],
[1000, 2000, 4000 | _] = Pauses,
true = lists:sort(Pauses) =:= Pauses andalso lists:max(Pauses) =:= 1000 * @LONGEST@,
true = B:price(message) < 0,
io:format("kept"),
init:stop().
"""


def test_budget_is_bounded_and_never_slows_who_keeps_it(tmp_path: Path) -> None:
    (tmp_path / f"{budget.MODULE}.erl").write_text(budget.source())
    subprocess.run([str(plugin.COMPILER), f"{budget.MODULE}.erl"], cwd=tmp_path, check=True)
    program = PROPERTIES
    values = {"BURST": budget.BURST, "DEBT": budget.DEBT, "LONGEST": budget.LONGEST, "SEED": 1}
    for name, value in values.items():
        program = program.replace(f"@{name}@", str(value))
    program = re.sub(r"%%.*", "", program)
    done = subprocess.run(
        ["erl", "-noshell", "-pa", str(tmp_path), "-eval", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "kept", done.stdout + done.stderr


@pytest.fixture(scope="module")
def linked(standing):
    standing.environment("web", "orders", "audit")
    standing.apply(*LINKS)
    return standing


@pytest.fixture(scope="module")
def cards(linked, tmp_path_factory) -> str:
    return linked.write_cards("web", tmp_path_factory.mktemp("cards") / "web")


@pytest.fixture
def host(linked) -> Iterator[World]:
    """Yield the host. Afterwards the guard forgets what accounts have used, so that no other test is slowed."""
    yield linked
    linked.forgive()
    linked.no_mail()


@contextlib.contextmanager
def worst(host, cards: str, way: str, output: Path = Path(os.devnull)) -> Iterator[subprocess.Popen[bytes]]:
    """Run one attack (*way*) of the audit's program in the environment with these cards."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "_utils")}
    command = [*host.place(Path(cards).name, cards), sys.executable, services.__file__, "worst", way]
    with output.open("wb") as stream, subprocess.Popen(command, env=variables, stdout=stream) as process:
        try:
            yield process
        finally:
            process.terminate()


def held(host) -> int:
    """Return the number of processes in the broker that the guard has suspended."""
    state = f"#{{held := Held}} = sys:get_state({budget.MODULE}, {ANSWER})"
    suspended = "length([One || One <- maps:keys(Held), {status, suspended} =:= process_info(One, status)])"
    return int(host.evaluate(f"{state}, {suspended}."))


def account(host, name: str, what: str) -> str:
    """Return a value (*what*) that the guard's module keeps about an environment's account; ``none`` without one."""
    user = host.card(name)["broker"]["username"]
    find = f'maps:get({what}, maps:get(<<"{user}">>, Accounts, #{{{what} => none}}))'
    return host.evaluate(f"#{{accounts := Accounts}} = sys:get_state({budget.MODULE}, {ANSWER}), {find}.")


def waiting_for_others(host) -> int:
    """Return how many accounts wait only because all of them together have used too much."""
    known = f"#{{accounts := Accounts}} = sys:get_state({budget.MODULE}, {ANSWER})"
    waits = "#{balance := Balance, least := Least} <- maps:values(Accounts), Balance >= 0, Balance < Least"
    return int(host.evaluate(f"{known}, length([1 || {waits}])."))


def slowed(host, name: str) -> bool:
    """Return whether the guard has slowed an account. It keeps nothing about an account that has caused no work."""
    return account(host, name, "told") not in ("0", "none")


@pytest.mark.root
@pytest.mark.exhaustion
@pytest.mark.parametrize("way", ["consumers", "channels", "brief", "frames", "sessions"])
def test_flood_is_read_slowly_and_nobody_else_waits(host, cards, way):
    with worst(host, cards, way):
        until(lambda: held(host) > 0, f"{way}: nobody is slowed", patience=PATIENCE)
        with host.client("audit") as channel:
            for _ in range(20):
                channel.basic_publish(host.n("link.audit.orders"), "", b"well", mandatory=True)
        assert not slowed(host, "audit"), "the neighbour was slowed"
        assert slowed(host, "web"), "the log names who is slowed"
    until(lambda: held(host) == 0, "who does nothing more waits no longer", patience=PATIENCE)
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), "", b"well", mandatory=True)


@pytest.fixture
def conspirators(host, tmp_path) -> Iterator[list[str]]:
    """Run programs of several accounts, each of which causes the broker as much work as it may.

    The broker's budgets are made small for this. Yield the programs' outputs.
    """
    names = [link.source for link in CONSPIRE]
    host.environment(*names)
    host.apply(*LINKS, *CONSPIRE)
    host.evaluate(f"application:set_env({plugin.NAME}, rate, {SLOW}).")
    host.forgive()
    try:
        with contextlib.ExitStack() as stack:
            for name in names:
                path = host.write_cards(name, tmp_path / name)
                stack.enter_context(worst(host, path, "channels", tmp_path / f"{name}.out"))
            yield [str(tmp_path / f"{name}.out") for name in names]
    finally:
        host.evaluate(f"application:unset_env({plugin.NAME}, rate), application:unset_env({plugin.NAME}, all).")
        host.apply(*LINKS)


def done(outputs: list[str]) -> int:
    """Return how many channels the attacking programs have opened and closed so far, by their outputs."""
    told = [re.findall(r"taken (\d+)\n", Path(output).read_text()) for output in outputs]
    return sum(int(numbers[-1]) if numbers else 0 for numbers in told)


def a_while(host, outputs: list[str], seconds: float = 4.0) -> tuple[float, float]:
    """Measure for some *seconds*: channels that the attackers open per second, and a neighbour's waiting time.

    The waiting time is the 99th percentile, in milliseconds.
    """
    times: list[float] = []
    before, began = done(outputs), time.monotonic()
    with contextlib.closing(host.connect("audit")) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        while time.monotonic() - began < seconds:
            sent = time.monotonic()
            channel.basic_publish(host.n("link.audit.orders"), "", b"well", mandatory=True)
            times.append(1000 * (time.monotonic() - sent))
            time.sleep(0.005)
    many = (done(outputs) - before) / (time.monotonic() - began)
    return many, sorted(times)[int(len(times) * 0.99)]


@pytest.mark.root
@pytest.mark.exhaustion
def test_accounts_that_conspire_get_no_more_than_three_do(host, conspirators, record_property):
    """Six accounts together cause no more work than the common budget of three; without it, twice as much."""
    until(lambda: held(host) > 0, "nobody is slowed", patience=PATIENCE)
    until(lambda: waiting_for_others(host) > 0, "nobody waits because of the others", patience=PATIENCE)
    time.sleep(budget.BURST / 1000)  # what they may have saved up is used up
    bound = 1.2 * budget.ALL * 2 * SLOW * 1000 / budget.PRICES["channel"]
    together, answer = a_while(host, conspirators)
    assert together < bound
    assert not slowed(host, "audit"), "the neighbour was slowed"
    host.evaluate(f"application:set_env({plugin.NAME}, all, {len(conspirators)}).")
    found: list[tuple[float, float]] = []

    def more() -> bool:
        found.append(a_while(host, conspirators))
        return found[-1][0] > bound

    until(more, "the bound is kept without the check, too", patience=2 * PATIENCE)
    assert waiting_for_others(host) == 0
    apart, slower = found[-1]
    told = f"{together:.0f} channels a second, answer {answer:.1f} ms; apart {apart:.0f}, {slower:.1f} ms"
    record_property("conspirators", told)
    print(told)


def log(host) -> str:
    return (host.layout.broker / "log/broker.log").read_text(errors="replace")


@pytest.mark.root
@pytest.mark.exhaustion
def test_flood_before_a_login_ends_its_connection(host, cards):
    """A connection that floods the broker before its login is ended, because it has no account to be slowed."""
    ended = "a connection is ended: it has the broker do too much before its login"
    with worst(host, cards, "strangers"):
        until(lambda: ended in log(host), "nobody is ended", patience=PATIENCE)
        with host.client("audit") as channel:
            channel.basic_publish(host.n("link.audit.orders"), "", b"well", mandatory=True)
    with contextlib.closing(host.connect("web")) as one, contextlib.closing(host.connect("audit")) as other:
        # All that each connection has used, with its own processes and those of TLS.
        tops = "{_, Reader, _} <- netspace_guard:connections(), [Top | _] <- [netspace_guard:ancestors(Reader)]"
        spent = f"[Used || {tops}, {{_, Used}} <- {budget.MODULE}:stranger(Top)]"
        used = [int(number) for number in re.findall(r"\d+", host.evaluate(f"{spent}."))]
        for connection in (one, other):
            connection.process_data_events(0.5)
            assert connection.is_open, "who logs in is not ended"
    assert len(used) >= 2 and 0 < min(used) < budget.LOGIN / 2, f"of {used}, one has just logged in"


@pytest.mark.root
@pytest.mark.parametrize("refused", [False, True])
def test_channel_that_ends_at_once_is_charged(host, refused):
    """A channel that ends before the guard measures it is still charged for its reductions and its methods."""
    user, times = host.card("web")["broker"]["username"], 50
    with contextlib.closing(host.connect("web")) as connection:
        host.evaluate(f"sys:suspend({budget.MODULE}, {ANSWER}), ets:delete_all_objects({budget.MODULE}).")
        try:
            channel = connection.channel()
            for _ in range(times):
                channel.queue_declare(host.n("mailbox.web"), passive=True)
            if refused:
                with pytest.raises(pika.exceptions.ChannelClosedByBroker):
                    channel.queue_declare("mailbox.nobody", passive=True)
            else:
                channel.close()
            connection.process_data_events(0.5)
            charged = int(host.evaluate(f'ets:lookup_element({budget.MODULE}, <<"{user}">>, 2).'))
        finally:
            host.evaluate(f"sys:resume({budget.MODULE}, {ANSWER}).")
    prices = budget.PRICES["channel"] + (times + refused) * budget.PRICES["method"]
    assert charged > prices + 10_000, "its own reductions too"


@pytest.mark.root
def test_connection_within_the_broker_has_no_account(host):
    """A shovel's connection, whose user is ``none``, doesn't crash the guard's module, which enforces all limits."""
    before = host.evaluate(f"whereis({budget.MODULE}).")
    host.evaluate(f"{budget.MODULE}:charge(none, 1).")
    until(lambda: host.evaluate(f"ets:lookup({budget.MODULE}, none).") == "[]", "nobody looks", patience=PATIENCE)
    account(host, "web", "balance")  # it has done all that it does in a look
    assert host.evaluate(f"whereis({budget.MODULE}).") == before
    assert host.evaluate("netspace_guard:is_environment(none).") == "false"


@pytest.mark.root
def test_fast_sender_is_not_slowed(host):
    """An account that sends 20,000 small messages without a pause is not slowed."""
    with contextlib.closing(host.connect("audit")) as connection:
        channel = connection.channel()
        for _ in range(20_000):
            channel.basic_publish(host.n("link.audit.orders"), "", b"x" * 64)
        connection.process_data_events(0)
        channel.basic_qos(prefetch_count=1)  # answered after the messages
        assert not slowed(host, "audit")


@pytest.mark.root
@pytest.mark.revocation
def test_revocation_reaches_a_sender_that_is_slowed(host, cards):
    user = host.card("web")["broker"]["username"]
    # As long as the longest pause: only a request reaches it meanwhile.
    host.evaluate(f'[{budget.MODULE}:closed(<<"{user}">>, []) || _ <- lists:seq(1, 10)].')
    with contextlib.closing(host.connect("audit")):
        connection = host.connect("web")
        until(lambda: held(host) > 0, patience=PATIENCE)
        host.apply(TELL)
        try:
            with pytest.raises(pika.exceptions.AMQPError):
                while True:
                    connection.process_data_events(1.0)
        finally:
            host.apply(*LINKS)


@pytest.mark.root
def test_who_was_cut_off_waits_longer_each_time(host):
    user = host.card("web")["broker"]["username"]
    waits = []
    for _ in range(3):
        host.evaluate(f'{budget.MODULE}:closed(<<"{user}">>, []).')
        waits.append(int(account(host, "web", "until")) - int(account(host, "web", "cut")))
    assert waits == [1000, 2000, 4000]
    with host.client("web") as channel:  # it waits, and is served
        channel.basic_publish(host.n("link.web.orders"), "", b"well", mandatory=True)


@pytest.mark.root
def test_end_of_the_module_frees_who_is_slowed(host, cards):
    with worst(host, cards, "frames"):
        until(lambda: held(host) > 0, patience=PATIENCE)
        host.forgive()
        until(lambda: held(host) > 0, "a new one goes on", patience=PATIENCE)
