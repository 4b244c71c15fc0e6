"""Refused requests, which the broker's plugin counts, and which this module reads.

RabbitMQ logs each error that ends a channel of AMQP 0-9-1, with the account. A filter of the log in the plugin sees
these errors, however little of the log is written to the file. It counts them by account and text, so that an operator
sees what was refused to an environment. If a thousand refusals wait to be counted, further ones are not counted. Over
AMQP 1.0, RabbitMQ logs no such errors.

Environments can influence the texts. For each account, at most :data:`MOST` texts are counted separately, and all
others together. The broker keeps the counts on disk until the account is deleted or the broker starts again. Each
second, it writes the counts of a bounded number of accounts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from netspace.text import one_word, printable

MODULE = "netspace_guard_refusals"
MOST = 32
"""The most texts that are counted separately for one account. All others are counted together, as ``OTHERS``."""
OTHERS = "others"

_LONG = 300  # characters of a refusal
_MANY, _LATE = 2**40, 2**37  # a count; seconds since the epoch, of which a calendar has a date

_SAID = re.compile(r"operation ([a-z._]{1,40}) caused a channel exception ([a-z_]{1,40}): (.{0,240})")
# RabbitMQ's words about what the reader knows: the one virtual host, and the account.
_KNOWN = re.compile(r" in vhost '[^']*'| refused for user '[^']*'|^netspace: ")
_EXCHANGE = re.compile(r"(?:no|write access to) exchange '(?P<name>[^']*)' in vhost ")

SOURCE = r"""%% Written by netspace: counts what accounts ask for in vain.
-module(netspace_guard_refusals).
-export([new/0, note/3, forget/2, tell/1, plain/1]).

-define(MOST, 32).    % texts of an account that are counted apart
-define(LONG, 240).   % characters of a text
-define(TOLD, 10).    % accounts that are told of in a second

%% What the broker kept is of its last run.
new() ->
    [catch rabbit_runtime_parameters:clear_global(rabbit_data_coercion:to_atom(Name), <<"netspace_guard">>)
     || Kept <- rabbit_runtime_parameters:list_global(),
        Name = <<"netspace_refused.", _/binary>> <- [rabbit_data_coercion:to_binary(proplists:get_value(name, Kept))]],
    #{counted => #{}, waiting => [], told => erlang:monotonic_time(second)}.

note(User, Text, State = #{counted := Counted, waiting := Waiting}) ->
    Now = erlang:system_time(second),
    Own = maps:get(User, Counted, #{}),
    What = case is_map_key(Text, Own) orelse map_size(Own) < ?MOST of true -> Text; false -> <<"others">> end,
    Before = #{<<"times">> := Times} = maps:get(What, Own, #{<<"times">> => 0, <<"first">> => Now}),
    New = Own#{What => Before#{<<"times">> := Times + 1, <<"last">> => Now}},
    State#{counted := Counted#{User => New}, waiting := [User | lists:delete(User, Waiting)]}.

forget(User, State = #{counted := Counted, waiting := Waiting}) when is_map_key(User, Counted) ->
    catch rabbit_runtime_parameters:clear_global(name(User), <<"netspace_guard">>),
    State#{counted := maps:remove(User, Counted), waiting := lists:delete(User, Waiting)};
forget(_, State) -> State.

%% Others read it where the broker keeps it, which it does on disk.
tell(State = #{waiting := []}) -> State;
tell(State = #{waiting := Waiting, counted := Counted, told := Before}) ->
    case erlang:monotonic_time(second) of
        Before -> State;
        Now ->
            {Later, Next} = lists:split(max(0, length(Waiting) - ?TOLD), Waiting),
            %% What the broker can't keep now is told with the account's next refusal.
            [catch rabbit_runtime_parameters:set_global(name(User), maps:get(User, Counted), <<"netspace_guard">>)
             || User <- Next],
            State#{waiting := Later, told := Now}
    end.

%% An account's name may be longer than a name may be here.
name(User) ->
    binary_to_atom(<<"netspace_refused.", (binary:encode_hex(crypto:hash(sha256, User), lowercase))/binary>>).

plain(Text) ->
    case unicode:characters_to_list(Text) of
        List when is_list(List) ->
            << <<(if One < 32; One > 126 -> $?; true -> One end)>> || One <- lists:sublist(List, ?LONG) >>;
        _ -> <<"?">>
    end.
"""


class Refusal(NamedTuple):
    """A kind of request of an account that the broker refused.

    :param what: the broker's text of the refusal. It is printable, and contains text that the account chose.
    :param exchange: the exchange to which the account may not send, or which doesn't exist; empty for any other
        refusal.
    :param times: the number of such refusals.
    :param first: the time of the first refusal, in seconds since the epoch.
    :param last: the time of the last refusal, in seconds since the epoch.
    """

    what: str
    exchange: str
    times: int
    first: float
    last: float


def parameter(account: str) -> str:
    """Return the name of the broker's global parameter with the refusals of *account*."""
    return f"netspace_refused.{hashlib.sha256(account.encode()).hexdigest()}"


def decoded(value: Any) -> list[Refusal]:
    """Return the refusals in the broker's global parameter; refusals of an unexpected form are left out."""
    kept = value.get("value") if isinstance(value, Mapping) else None
    found = []
    for text, about in kept.items() if isinstance(kept, Mapping) else ():
        if not (isinstance(text, str) and isinstance(about, Mapping)):
            continue
        times, first, last = (about.get(name) for name in ("times", "first", "last"))
        if not (_is_number(times, _MANY) and _is_number(first, _LATE) and _is_number(last, _LATE)):
            continue
        said = _SAID.fullmatch(text)
        if said is None:
            what, exchange = ("others: too many different ones" if text == OTHERS else _quoted(text)), ""
        else:
            what = f"{said[1]}: {_quoted(_KNOWN.sub('', said[3]))} ({said[2]})"
            wanted = _EXCHANGE.match(said[3]) if said[1] == "basic.publish" else None
            exchange = "" if wanted is None else wanted["name"]
        found.append(Refusal(what[:_LONG], printable(exchange), int(times), float(first), float(last)))
    return sorted(found, key=lambda one: (one.first, one.what))


def _quoted(what: str) -> str:
    """Return a text of the broker, with all blanks escaped from its first quoted name on.

    An account chooses these names. Without blanks, a name can't imitate another text of the broker or of netspace.
    """
    own, quote, chosen = what.partition("'")
    return printable(own) + quote + one_word(chosen)


def total(value: Any) -> int:
    """Return the number of refusals in the broker's global parameter, apart from those of an unexpected form."""
    kept = value.get("value") if isinstance(value, Mapping) else None
    times = [one.get("times") for one in kept.values() if isinstance(one, Mapping)] if isinstance(kept, Mapping) else []
    return sum(int(one) for one in times if _is_number(one, _MANY))


def _is_number(value: Any, most: int) -> TypeGuard[float]:
    """Return whether *value* is a number from 0 to *most*; false for NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most
