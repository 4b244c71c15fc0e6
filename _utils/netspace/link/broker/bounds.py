"""Module of the broker's plugin that checks values of AMQP 1.0 against bounds before RabbitMQ decodes them.

RabbitMQ 4.0 believes the number of elements that an array claims to have. Elements of some types take no bytes, so one
frame of 31 bytes, sent before any login, made RabbitMQ build a list of four billion elements. It also decodes any
number of nested values, and values in types that no message needs.

The module walks over the bytes of a value and builds nothing. It admits a value that is well-formed, and whose nested
levels and parts are no more than the bounds. The sizes and counts that a value claims must match its bytes.

https://docs.oasis-open.org/amqp/core/v1.0/os/amqp-core-types-v1.0-os.html
"""

from __future__ import annotations

MODULE = "netspace_guard_bounds"

SOURCE = r"""%% Written by netspace: walks over encoded values of AMQP 1.0, before RabbitMQ builds anything from them.
-module(netspace_guard_bounds).
-export([value/3, values/3]).

%% The bytes behind the first value. Throws {unbounded, Why} if that has more levels or parts than it may have.
value(Bytes, Levels, Parts) ->
    {Rest, _} = one(Bytes, Levels, Parts),
    Rest.

%% Likewise, for as many values as there are bytes.
values(<<>>, _, _) -> ok;
values(Bytes, Levels, Parts) ->
    {Rest, Left} = one(Bytes, Levels, Parts),
    values(Rest, Levels, Left).

one(_, _, Parts) when Parts =< 0 -> throw({unbounded, "too many values"});
one(<<0, Bytes/binary>>, Levels, Parts) ->
    {Rest, Left} = one(Bytes, inner(Levels), Parts - 1),
    one(Rest, inner(Levels), Left);
one(<<Type, Bytes/binary>>, Levels, Parts) -> data(Type, Bytes, Levels, Parts - 1);
one(<<>>, _, _) -> malformed().

%% What stands behind the type's code.
data(Type, Bytes, Levels, Left) ->
    case Type of
        16#c0 -> compound(sized(8, Bytes), 8, Levels, Left);
        16#c1 -> pairs(sized(8, Bytes), 8, Levels, Left);
        16#d0 -> compound(sized(32, Bytes), 32, Levels, Left);
        16#d1 -> pairs(sized(32, Bytes), 32, Levels, Left);
        16#e0 -> array(sized(8, Bytes), 8, Levels, Left);
        16#f0 -> array(sized(32, Bytes), 32, Levels, Left);
        16#a0 -> skipped(sized(8, Bytes), Left);
        16#a1 -> text(sized(8, Bytes), Left);
        16#a3 -> symbol(sized(8, Bytes), Left);
        16#b0 -> skipped(sized(32, Bytes), Left);
        16#b1 -> text(sized(32, Bytes), Left);
        16#b3 -> symbol(sized(32, Bytes), Left);
        _ -> fixed(width(Type), Bytes, Left)
    end.

width(16#50) -> 1;
width(16#51) -> 1;
width(16#52) -> 1;
width(16#53) -> 1;
width(16#54) -> 1;
width(16#55) -> 1;
width(16#56) -> 1;
width(16#60) -> 2;
width(16#61) -> 2;
width(Type) when Type >= 16#40, Type =< 16#45 -> 0;
width(Type) when Type >= 16#70, Type =< 16#74 -> 4;
width(Type) when Type >= 16#80, Type =< 16#84 -> 8;
width(16#94) -> 16;
width(16#98) -> 16;
width(_) -> throw({unbounded, "an unknown type"}).

fixed(Width, Bytes, Left) ->
    case Bytes of
        <<_:Width/binary, Rest/binary>> -> {Rest, Left};
        _ -> malformed()
    end.

sized(Bits, Bytes) ->
    case Bytes of
        <<Size:Bits, Own:Size/binary, Rest/binary>> -> {Own, Rest};
        _ -> malformed()
    end.

skipped({_, Rest}, Left) -> {Rest, Left}.

text({Own, Rest}, Left) ->
    is_text(Own) orelse no_text(),
    {Rest, Left}.

is_text(Own) -> is_ascii(Own) orelse unicode:characters_to_binary(Own) =:= Own.

no_text() -> throw({unbounded, "a text that is no UTF-8"}).

symbol({Own, Rest}, Left) ->
    is_ascii(Own) orelse throw({unbounded, "a symbol that is no ASCII"}),
    {Rest, Left}.

is_ascii(<<One, Rest/binary>>) when One < 128 -> is_ascii(Rest);
is_ascii(Rest) -> Rest =:= <<>>.

compound({Own, Rest}, Bits, Levels, Parts) ->
    case Own of
        <<Count:Bits, Items/binary>> -> {Rest, items(Items, Count, inner(Levels), Parts)};
        _ -> malformed()
    end.

pairs({Own, _} = All, Bits, Levels, Parts) ->
    case Own of
        <<Count:Bits, _/binary>> when Count rem 2 =:= 0 -> compound(All, Bits, Levels, Parts);
        _ -> malformed()
    end.

%% Plain values first, in one pass that makes no new binaries: almost all of what is said.
items(<<>>, 0, _, Left) -> Left;
items(_, 0, _, _) -> malformed();
items(<<Type, Rest/binary>>, Count, Levels, Parts) when Type >= 16#40, Type =< 16#45, Parts > 0 ->
    items(Rest, Count - 1, Levels, Parts - 1);
items(<<Type, _, Rest/binary>>, Count, Levels, Parts) when Type >= 16#50, Type =< 16#56, Parts > 0 ->
    items(Rest, Count - 1, Levels, Parts - 1);
items(<<16#70, _:32, Rest/binary>>, Count, Levels, Parts) when Parts > 0 ->
    items(Rest, Count - 1, Levels, Parts - 1);
items(<<16#a0, Size, _:Size/binary, Rest/binary>>, Count, Levels, Parts) when Parts > 0 ->
    items(Rest, Count - 1, Levels, Parts - 1);
items(<<16#a1, Size, Text:Size/binary, Rest/binary>>, Count, Levels, Parts) when Parts > 0 ->
    is_text(Text) orelse no_text(),
    items(Rest, Count - 1, Levels, Parts - 1);
items(Bytes, Count, Levels, Parts) ->
    {Rest, Left} = one(Bytes, Levels, Parts),
    items(Rest, Count - 1, Levels, Left).

%% All elements have one type. If that takes no bytes, nothing bounds their number but what the array says itself.
array({Own, Rest}, Bits, Levels, Parts) ->
    case Own of
        <<_:Bits, 0, _/binary>> -> throw({unbounded, "an array of described values"});
        <<_:Bits, Type, _/binary>> when Type >= 16#40, Type =< 16#45 ->
            throw({unbounded, "an array of values without bytes"});
        <<Count:Bits, Type, Items/binary>> -> {Rest, elements(Items, Count, Type, inner(Levels), Parts)};
        _ -> malformed()
    end.

elements(<<>>, 0, _, _, Left) -> Left;
elements(_, 0, _, _, _) -> malformed();
elements(_, _, _, _, Parts) when Parts =< 0 -> throw({unbounded, "too many values"});
elements(Bytes, Count, Type, Levels, Parts) ->
    {Rest, Left} = data(Type, Bytes, Levels, Parts - 1),
    elements(Rest, Count - 1, Type, Levels, Left).

inner(0) -> throw({unbounded, "values nested too deep"});
inner(Levels) -> Levels - 1.

malformed() -> throw({unbounded, "a value that is malformed"}).
"""
