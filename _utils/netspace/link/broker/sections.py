"""Module of the broker's plugin that checks messages of AMQP 1.0 before RabbitMQ decodes and stores them.

RabbitMQ stores a message as its sender encoded it, and converts it when a client of the other AMQP version reads it. A
message that can't be converted ends the channel of each reader, and returns to the queue. So the module refuses such a
message when it is sent: a message with a value of a type that AMQP 0-9-1 lacks, with a text too long for AMQP 0-9-1, or
with a repeated key.

It also checks the bounds of all sections before the body, which RabbitMQ decodes at once, and the number of the body's
sections.

https://docs.oasis-open.org/amqp/core/v1.0/os/amqp-core-messaging-v1.0-os.html#section-message-format
"""

from __future__ import annotations

MODULE = "netspace_guard_sections"
HEAD = 65536
"""Bytes of a message before its body; half of the largest frame in which AMQP 0-9-1 can carry them."""

SOURCE = r"""%% Written by netspace: what a message of AMQP 1.0 may have in it.
-module(netspace_guard_sections).
-export([bounded/1, carried/1, is_body/1]).

-define(HEAD, @HEAD@).     % bytes before the body
-define(PARTS, 4096).      % values before the body
-define(BODIES, 64).       % sections of the body
-define(VALUES, 65536).    % values of a section of the body
-define(LEVELS, @DEPTH@).  % of values within values
-define(SHORT, 255).       % bytes of a short text of AMQP 0-9-1

-define(DATA, 16#75).
-define(SEQUENCE, 16#76).
-define(VALUE, 16#77).
-define(FOOTER, 16#78).

%% -- bounds, of the bytes ------------------------------------------------------------
%% Each section at most once and in the one order, whose descriptor is a number; a body must be there.
bounded(Bytes) ->
    Body = head(Bytes, 16#6f),
    byte_size(Bytes) - byte_size(Body) =< ?HEAD orelse refuse("more than @HEAD@ bytes before its body"),
    body(Body, none, ?BODIES).

%% Whether they are the body of a message, within bounds: what stands in one of AMQP 0-9-1 after its conversion.
is_body(Bytes) -> try body(Bytes, none, ?BODIES) of _ -> true catch _:_ -> false end.

head(Bytes, Last) ->
    case section(Bytes) of
        {Code, Value} when Code > Last, Code < ?DATA -> head(behind(Value, ?PARTS), Code);
        {Code, _} when Code >= ?DATA -> Bytes;
        _ -> refuse("sections in a wrong order")
    end.

body(_, _, 0) -> refuse("a body of too many sections");
body(Bytes, Last, Left) ->
    case section(Bytes) of
        {?DATA, Value} when Last =:= none; Last =:= ?DATA -> body(behind(Value, 1), ?DATA, Left - 1);
        {?SEQUENCE, Value} when Last =:= none; Last =:= ?SEQUENCE ->
            body(behind(Value, ?VALUES), ?SEQUENCE, Left - 1);
        {?VALUE, Value} when Last =:= none -> body(behind(Value, ?VALUES), ?VALUE, Left - 1);
        {?FOOTER, Value} when Last =/= none -> last(behind(Value, ?PARTS), Value);
        none when Last =/= none -> ok;
        _ -> refuse("no body, or one of several kinds")
    end.

%% RabbitMQ decodes it only when a client of the other version reads it.
last(<<>>, Value) ->
    {Footer, _} = netspace_guard_parser:parse(Value),
    annotations(Footer);
last(_, _) -> refuse("something behind its footer").

section(<<0, 16#53, Code, Value/binary>>) -> {Code, Value};
section(<<0, 16#80, Code:64, Value/binary>>) -> {Code, Value};
section(<<>>) -> none;
section(_) -> refuse("sections that no number describes").

behind(Value, Parts) ->
    try netspace_guard_bounds:value(Value, ?LEVELS, Parts)
    catch throw:{unbounded, "values nested too deep"} -> refuse("annotations nested more than @DEPTH@ deep");
          throw:{unbounded, Why} -> refuse(Why)
    end.

%% -- what the other version can carry, of the decoded sections -------------------------
carried(Sections) -> lists:foreach(fun one/1, Sections).

one({{pos, _}, Section}) -> one(Section);
one({body, _}) -> ok;
one({described, {ulong, 16#70}, {list, Fields}}) ->
    are(Fields, [boolean, ubyte, uint, boolean, uint], "header");
one({described, {ulong, 16#73}, {list, Fields}}) ->
    are(Fields, [id, binary, address, utf8, answer, id, short, short, timestamp, timestamp, utf8, uint, utf8],
        "properties");
one({described, {ulong, 16#74}, {map, Items}}) ->
    unique(Items),
    lists:foreach(fun({{utf8, Key}, Value}) when byte_size(Key) =< ?SHORT ->
                          carried(Value, whole) orelse uncarried(Key);
                     (_) -> refuse("an application property whose name is no short text")
                  end, Items);
one({described, {ulong, Code}, Annotations}) when Code =:= 16#71; Code =:= 16#72 -> annotations(Annotations);
one(_) -> refuse("a section of a wrong type").

annotations({map, Items}) ->
    unique(Items),
    lists:foreach(fun({{symbol, <<"x-", _/binary>> = Key}, Value}) when byte_size(Key) =< ?SHORT ->
                          (annotated(Key, Value) andalso carried(Value, whole)) orelse uncarried(Key);
                     (_) -> refuse("an annotation whose name isn't x-...")
                  end, Items);
annotations(_) -> refuse("annotations that are no map").

%% What RabbitMQ itself understands: it makes properties of the other version from these, of whatever type they are.
annotated(<<"x-basic-type">>, {utf8, Type}) -> byte_size(Type) =< ?SHORT andalso Type =/= <<"amqp-1.0">>;
annotated(<<"x-basic-", _/binary>>, _) -> false;
annotated(<<"x-cc">>, _) -> false;
annotated(<<"x-opt-deaths">>, _) -> false;
annotated(<<"x-exchange">>, {Type, _}) -> Type =:= utf8;
annotated(<<"x-routing-key">>, {Type, _}) -> Type =:= utf8;
annotated(<<"x-opt-rabbitmq-received-time">>, {Type, _}) -> Type =:= timestamp;
annotated(_, _) -> true.

%% An element of a list or an array has fewer types than a value with a name.
carried({list, Items}, _) -> lists:all(fun(Item) -> carried(Item, element) end, Items);
carried({array, _, Items}, whole) -> lists:all(fun(Item) -> carried(Item, element) end, Items);
carried({map, Items}, _) ->
    unique(Items),
    lists:all(fun({{Type, Key}, Value}) when Type =:= utf8; Type =:= symbol ->
                      byte_size(Key) =< ?SHORT andalso carried(Value, whole);
                 (_) -> false
              end, Items);
carried({ulong, _}, element) -> false;
carried(Value, _) -> simple(Value).

simple(true) -> true;
simple(false) -> true;
simple(null) -> true;
simple({ulong, Value}) -> Value < 1 bsl 63;
simple({timestamp, Value}) -> Value >= 0;
simple({utf8, _}) -> true;
simple({binary, _}) -> true;
simple({symbol, _}) -> true;
simple({boolean, _}) -> true;
simple({byte, _}) -> true;
simple({ubyte, _}) -> true;
simple({short, _}) -> true;
simple({ushort, _}) -> true;
simple({int, _}) -> true;
simple({uint, _}) -> true;
simple({long, _}) -> true;
simple({float, _}) -> true;
simple({double, _}) -> true;
simple(_) -> false.

are([], _, _) -> ok;
are([Field | Fields], [Type | Types], Where) ->
    is(Type, Field) orelse refuse(["a wrong type among its ", Where]),
    are(Fields, Types, Where);
are(_, [], Where) -> refuse(["too many ", Where]).

is(_, null) -> true;
is(boolean, Field) -> is_boolean(Field);
is(id, {utf8, _}) -> true;
is(id, {Type, _}) -> lists:member(Type, [ulong, uuid, binary]);
is(address, {utf8, Address}) -> byte_size(Address) =< ?SHORT;
is(answer, {utf8, <<"amq.rabbitmq.reply-to", _/binary>>}) -> false;
is(answer, {Type, _}) -> Type =:= utf8;
is(short, {symbol, Text}) -> byte_size(Text) =< ?SHORT;
is(timestamp, {timestamp, Value}) -> Value >= 0;
is(Type, {Type, _}) -> true;
is(_, _) -> false.

%% RabbitMQ writes the true exchange over the first of several, and a reader may believe the last.
unique([]) -> ok;
unique([_]) -> ok;
unique(Items) ->
    length(lists:usort([Key || {{_, Key}, _} <- Items])) =:= length(Items) orelse refuse("a key that is there twice").

%% -- refusals ------------------------------------------------------------------------
uncarried(Key) ->
    refuse(["a value of ", netspace_guard_admission:shown(Key), " that AMQP 0-9-1 can't carry"]).

refuse(Why) -> netspace_guard_frames:refuse(<<"amqp:precondition-failed">>, ["a message with ", Why]).
"""


def source(depth: int) -> str:
    """Return the module's source in Erlang.

    :param depth: how many levels of nested values a section may have.
    """
    return SOURCE.replace("@HEAD@", str(HEAD)).replace("@DEPTH@", str(depth))
