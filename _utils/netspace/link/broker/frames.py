"""Module of the broker's plugin that admits only those frames of AMQP 1.0 that links need.

RabbitMQ has an interceptor that may refuse a method, but only for AMQP 0-9-1. For AMQP 1.0, the module takes the place
of two of RabbitMQ's own modules: the parser of all frames and messages, and the handler of all requests to
``/management``. RabbitMQ's modules are loaded under other names from the installed files, and called for everything
that was admitted.

RabbitMQ calls the parser first for each frame, even before the log-in. The module checks the frame's bounds
(``bounds``). It checks that a client that sends and receives needs such a frame, and that its fields have the types of
the specification. An *attach* must lead to one of our queues or exchanges. Both versions of AMQP must be able to carry
a message (``sections``). Of the requests to ``/management``, only those are admitted that bind or unbind an
environment's queue for answers.

A refused frame ends its connection with an error of AMQP 1.0; a refused message or request ends its session. The checks
apply to all accounts: netspace itself speaks AMQP 0-9-1.

The broker doesn't start if the modules of its RabbitMQ have other functions than those known here (``STAND_INS``), or
if RabbitMQ lacks a function that a module of the plugin calls. RabbitMQ 4.3's parser has one function more than that of
4.0, and marks a client's message by another option.
"""

from __future__ import annotations

from collections.abc import Mapping

MODULE = "netspace_guard_frames"

SOURCE = r"""%% Written by netspace: lets through the frames of AMQP 1.0 that a card's user needs.
-module(netspace_guard_frames).
-export([start/0, stand_in/0, lacking/1, parse/1, parse_many/2, peek/1, handle_request/5, refuse/2]).

-rabbit_boot_step({?MODULE, [
    {description, "netspace: what may be said over AMQP 1.0"},
    {mfa, {?MODULE, start, []}},
    {requires, rabbit_registry},
    {enables, recovery}]}).

-record('v1_0.error', {condition, description, info}).

-define(BYTES, 8192).      % of a frame's own part, behind which a message may be
-define(PARTS, 512).       % values of it
-define(LEVELS, 8).        % of values within values
-define(NAME, 255).        % bytes of a short text of AMQP 0-9-1

%% -- at the broker's start -------------------------------------------------------------
%% A function that the guard lacks would be missed only when an attack is under way. So the broker doesn't start then.
start() ->
    stand_in(),
    {ok, Modules} = application:get_key(netspace_guard, modules),
    case lacking([beam(Module) || Module <- Modules]) of
        [] -> ok;
        Functions -> exit({netspace_does_not_know_this_rabbitmq, Functions})
    end.

beam(Module) ->
    {Module, Beam, _} = code:get_object_code(Module),
    Beam.

%% The functions of others that modules call, and that aren't there.
lacking(Beams) ->
    [{Module, Function, Arity} || Beam <- Beams, {ok, {_, [{imports, Calls}]}} <- [beam_lib:chunks(Beam, [imports])],
                                  {Module, Function, Arity} <- Calls, not is_there(Module, Function, Arity)].

%% What these two were before was compared by stand_in/0.
is_there(Aside, _, _) when Aside =:= netspace_guard_parser; Aside =:= netspace_guard_management -> true;
is_there(Module, Function, Arity) ->
    _ = code:ensure_loaded(Module),
    erlang:function_exported(Module, Function, Arity) orelse erlang:is_builtin(Module, Function, Arity).

%% -- in the place of RabbitMQ's own modules --------------------------------------------
stand_in() ->
    before(amqp10_binary_parser, netspace_guard_parser, [netspace_guard_as_parser, netspace_guard_as_peeking_parser]),
    before(rabbit_amqp_management, netspace_guard_management, [netspace_guard_as_management]).

%% Module becomes the one of StandIns that has the same functions, which call here; what it was itself is called Aside
%% from now on.
before(Module, Aside, StandIns) ->
    {Itself, Functions, File} = installed(Module),
    Fitting = [{One, Beam} || One <- StandIns, {Beam, Known, _} <- [installed(One)], Known =:= Functions],
    case Fitting of
        [{StandIn, Instead}] ->
            load(Aside, File, renamed(Itself, Module, Aside)),
            load(Module, File, renamed(Instead, StandIn, Module));
        [] -> exit({netspace_does_not_know_this_rabbitmq, Module, Functions})
    end.

installed(Module) ->
    {Module, Beam, File} = code:get_object_code(Module),
    {ok, {Module, [{exports, Exports}]}} = beam_lib:chunks(Beam, [exports]),
    {Beam, lists:sort(Exports), File}.

%% A module's name is the first of its atoms. Writing it there takes no time; compiling the module anew, where Erlang
%% writes atoms in a third way, takes a second of each start.
renamed(Beam, Module, Name) ->
    {ok, Module, Chunks} = beam_lib:all_chunks(Beam),
    {_, <<Number:32/signed, Table/binary>>} = lists:keyfind("AtU8", 1, Chunks),
    Former = counted(Number, atom_to_binary(Module)),
    Size = byte_size(Former),
    case Table of
        <<Former:Size/binary, Others/binary>> ->
            Atoms = <<Number:32, (counted(Number, atom_to_binary(Name)))/binary, Others/binary>>,
            {ok, Made} = beam_lib:build_module(lists:keyreplace("AtU8", 1, Chunks, {"AtU8", Atoms})),
            Made;
        _ -> compiled(Beam, Module, Name)
    end.

%% Since Erlang 28 the number of atoms is written as a negative one, and their sizes take a byte or two.
counted(Number, Atom) when Number > 0 -> <<(byte_size(Atom)), Atom/binary>>;
counted(_, Atom) when byte_size(Atom) < 16 -> <<(byte_size(Atom)):4, 0:4, Atom/binary>>;
counted(_, Atom) -> <<(byte_size(Atom) bsr 8):3, 2#01000:5, (byte_size(Atom)):8, Atom/binary>>.

compiled(Beam, Module, Name) ->
    {ok, {Module, [{abstract_code, {raw_abstract_v1, Forms}}]}} = beam_lib:chunks(Beam, [abstract_code]),
    {value, {attribute, Line, module, Module}, Others} = lists:keytake(module, 3, Forms),
    {ok, Name, Made} = compile:forms([{attribute, Line, module, Name} | Others], [debug_info]),
    Made.

load(Module, File, Beam) ->
    code:purge(Module),
    {module, Module} = code:load_binary(Module, File, Beam),
    ok.

%% -- what RabbitMQ calls ----------------------------------------------------------------
%% A frame of a connection; or properties of a message that is stored.
parse(Bytes) ->
    case described(Bytes) of
        Code when Code =:= 16#73; Code =:= 16#74 ->
            behind(Bytes, @DEPTH@, 4096),
            netspace_guard_parser:parse(Bytes);
        Code ->
            Rest = behind(Bytes, ?LEVELS, ?PARTS),
            byte_size(Bytes) - byte_size(Rest) =< ?BYTES orelse
                refuse(<<"amqp:decode-error">>, "a frame of more than 8192 bytes before its message"),
            Parsed = {{described, _, Value}, _} = netspace_guard_parser:parse(Bytes),
            admitted(Code, Value),
            netspace_guard_budget:add(price(Code)),
            Parsed
    end.

described(<<0, 16#53, Code, _/binary>>) -> Code;
described(<<0, 16#80, Code:64, _/binary>>) -> Code;
described(_) -> refuse(<<"amqp:decode-error">>, "a frame that no number describes").

%% The sections of a message that a client sends, or that is stored, or of a request.
parse_many(Bytes, [server_mode] = Options) -> message(Bytes, Options);
%% Since RabbitMQ 4.2; false means one that is stored, which RabbitMQ itself has looked at before.
parse_many(Bytes, [{server_mode, _}] = Options) -> message(Bytes, Options);
parse_many(Bytes, [] = Options) ->
    %% A value takes a byte at least: their number is bounded by the message's size.
    try netspace_guard_bounds:values(Bytes, @DEPTH@ + 1, byte_size(Bytes))
    catch throw:{unbounded, Why} -> refuse(<<"amqp:decode-error">>, Why)
    end,
    netspace_guard_parser:parse_many(Bytes, Options);
%% Another RabbitMQ may tell a client's message by another option: unchecked, it must not get through.
parse_many(_, _) -> refuse(<<"amqp:internal-error">>, "a message by an option of the parser that the guard lacks").

message(Bytes, Options) ->
    netspace_guard_sections:bounded(Bytes),
    Sections = netspace_guard_parser:parse_many(Bytes, Options),
    netspace_guard_sections:carried(Sections),
    Sections.

%% The sizes of a value, of RabbitMQ 4.3 and newer. Its own modules don't ask for that.
peek(Bytes) ->
    behind(Bytes, @DEPTH@ + 1, byte_size(Bytes)),
    netspace_guard_parser:peek(Bytes).

behind(Bytes, Levels, Parts) ->
    try netspace_guard_bounds:value(Bytes, Levels, Parts)
    catch throw:{unbounded, Why} -> refuse(<<"amqp:decode-error">>, Why)
    end.

handle_request(Request, VHost, User, Connection, Rights) ->
    netspace_guard_budget:add(netspace_guard_budget:price(binding)),
    netspace_guard_sections:bounded(Request),
    requested([{Code, Value} || {described, {ulong, Code}, Value} <- netspace_guard_parser:parse_many(Request, [])]),
    netspace_guard_management:handle_request(Request, VHost, User, Connection, Rights).

%% What a frame costs other processes than the reader.
price(16#11) -> netspace_guard_budget:price(session);
price(16#12) -> netspace_guard_budget:price(binding);
price(16#14) -> netspace_guard_budget:price(message);
price(_) -> 0.

%% -- frames -----------------------------------------------------------------------------
admitted(Code, {list, Fields}) when Code >= 16#10, Code =< 16#18; Code =:= 16#41 ->
    are(Fields, fields(Code)),
    only(Code, Fields);
admitted(_, _) -> refuse(<<"amqp:not-allowed">>, "a frame that no client of ours needs").

%% What each field may be; null is admitted for any.
fields(16#10) -> [utf8, utf8, uint, ushort, uint, symbols, symbols, symbols, symbols, about];           % open
fields(16#11) -> [none, uint, uint, uint, uint, symbols, symbols, about];                               % begin
fields(16#12) -> [name, uint, boolean, ubyte, ubyte, source, target, empty, boolean, uint, ulong, known, known,
                  options];                                                                             % attach
fields(16#13) -> [uint, uint, uint, uint, uint, uint, uint, uint, boolean, boolean, empty];             % flow
fields(16#14) -> [uint, uint, binary, uint, boolean, boolean, ubyte, none, off, off, boolean];          % transfer
fields(16#15) -> [boolean, uint, uint, boolean, outcome, boolean];                                      % disposition
fields(16#16) -> [uint, boolean, error];                                                                % detach
fields(16#17) -> [error];                                                                               % end
fields(16#18) -> [error];                                                                               % close
fields(16#41) -> [symbol, binary, utf8];                                                                % sasl-init
fields(16#28) -> [any_address, uint, symbol, uint, off, empty, symbol, empty, outcome, symbols, known]; % source
fields(16#29) -> [any_address, uint, symbol, uint, off, empty, known];                                  % target
fields(16#1d) -> [symbol, utf8, about];                                                                 % error
fields(16#24) -> [];                                                                                    % accepted
fields(16#25) -> [error];                                                                               % rejected
fields(16#26) -> [];                                                                                    % released
fields(16#27) -> [boolean, boolean, empty].                                                             % modified

are([], _) -> ok;
are([Field | Fields], [Type | Types]) ->
    is(Type, Field) orelse invalid(),
    are(Fields, Types);
are(_, []) -> invalid().

is(_, null) -> true;
is(boolean, Field) -> is_boolean(Field);
is(off, Field) -> Field =:= false;
is(none, _) -> false;
is(name, {utf8, Name}) -> byte_size(Name) =< ?NAME;
is(any_address, {utf8, Address}) -> byte_size(Address) =< 4 * ?NAME;
is(empty, {map, Items}) -> Items =:= [];
is(about, {map, Items}) -> lists:all(fun is_plain/1, Items);
is(symbols, {array, symbol, _}) -> true;
is(symbols, {symbol, _}) -> true;
is(known, {array, symbol, Symbols}) -> lists:all(fun(Symbol) -> is(known, Symbol) end, Symbols);
is(known, {symbol, Symbol}) -> lists:member(Symbol, [<<"queue">>, <<"LINK_PAIR_V1_0">>]);
is(options, {map, Items}) -> lists:all(fun is_option/1, Items);
is(source, Field) -> is_described([16#28], Field);
is(target, Field) -> is_described([16#29], Field);
is(error, Field) -> is_described([16#1d], Field);
is(outcome, Field) -> is_described([16#24, 16#25, 16#26, 16#27], Field);
is(Type, {Type, _}) -> true;
is(_, _) -> false.

is_described(Codes, {described, {ulong, Code}, {list, Fields}}) ->
    lists:member(Code, Codes) andalso are(Fields, fields(Code)) =:= ok;
is_described(_, _) -> false.

%% RabbitMQ shows a client's properties to administrators.
is_plain({{symbol, _}, Value}) when is_boolean(Value); Value =:= null -> true;
is_plain({{symbol, _}, {Type, _}}) ->
    lists:member(Type, [utf8, symbol, binary, boolean, ubyte, byte, ushort, short, uint, int, ulong, long, timestamp]);
is_plain({{symbol, _}, {array, symbol, _}}) -> true;
is_plain(_) -> false.

is_option({{symbol, <<"paired">>}, Value}) -> is_boolean(Value) orelse is(boolean, Value);
is_option({{symbol, <<"rabbitmq:priority">>}, {Type, _}}) -> Type =:= int;
is_option(_) -> false.

%% -- where a link leads --------------------------------------------------------------------
%% A client that receives names the source, one that sends names the target; the other end is its own.
only(16#12, [_, _, true | Fields]) -> is_source(address(3, Fields)) orelse nowhere();
only(16#12, [_, _, false | Fields]) -> is_target(address(4, Fields)) orelse nowhere();
only(16#12, _) -> invalid();
%% RabbitMQ takes no notice of the format of a message, and all else is not for it to read.
only(16#14, [_, _, _, {uint, Format} | _]) when Format =/= 0 -> invalid();
only(_, _) -> ok.

address(At, Fields) when length(Fields) < At -> none;
address(At, Fields) ->
    case lists:nth(At, Fields) of
        {described, _, {list, [Address | _]}} -> Address;
        {described, _, {list, []}} -> null;
        null -> none
    end.

is_source({utf8, <<"/queues/", Queue/binary>>}) -> is_name(read, Queue);
is_source({utf8, Address}) -> Address =:= <<"/management">>;
is_source(_) -> false.

%% Where there is no address, each message has one.
is_target(null) -> true;
is_target({utf8, <<"/management">>}) -> true;
is_target({utf8, Address}) -> is_destination(Address);
is_target(_) -> false.

is_destination(<<"/exchanges/", Rest/binary>>) ->
    case binary:split(Rest, <<"/">>, [global]) of
        [Exchange] -> is_name(written, Exchange);
        [Exchange, Key] -> is_name(written, Exchange) andalso byte_size(Key) =< ?NAME;
        _ -> false
    end;
is_destination(_) -> false.

is_name(Use, Quoted) ->
    try netspace_guard_admission:is_for(Use, uri_string:percent_decode(Quoted))
    catch _:_ -> false  % percent_decode/1 throws
    end.

nowhere() -> refuse(<<"amqp:unauthorized-access">>, "an address that no link leads to").

%% -- requests ------------------------------------------------------------------------------
%% Whoever asks has its queue for answers bound, as over AMQP 0-9-1.
requested(Sections) ->
    case {lists:keyfind(16#73, 1, Sections), lists:keyfind(16#77, 1, Sections)} of
        {{_, {list, [_, _, {utf8, <<"/bindings">>}, {utf8, <<"POST">>} | _]}}, {_, {map, Items}}} ->
            is_joined(Items) orelse not_his();
        {{_, {list, [_, _, {utf8, <<"/bindings/", Binding/binary>>}, {utf8, <<"DELETE">>} | _]}}, _} ->
            is_parted(Binding) orelse not_his();
        _ -> not_his()
    end.

is_joined(Items) ->
    case lists:sort(Items) of
        [{{utf8, <<"arguments">>}, {map, []}}, {{utf8, <<"binding_key">>}, {utf8, Key}},
         {{utf8, <<"destination_queue">>}, {utf8, Queue}}, {{utf8, <<"source">>}, {utf8, Exchange}}] ->
            byte_size(Key) =< ?NAME andalso netspace_guard_admission:is_for(asked, Queue)
                andalso netspace_guard_admission:is_for(answered, Exchange);
        _ -> false
    end.

%% RabbitMQ normalises a path first: no character of one may be in it.
is_parted(Binding) ->
    case re:run(Binding, "^src=([\\w.~%-]+);dstq=([\\w.~%-]+);key=[\\w.~%-]*;args=$",
                [dollar_endonly, {capture, all_but_first, binary}]) of
        {match, [Exchange, Queue]} -> is_name(answered, Exchange) andalso is_name(asked, Queue);
        nomatch -> false
    end.

not_his() -> refuse(<<"amqp:unauthorized-access">>, "a request that is the host's to make").

%% -- refusals ------------------------------------------------------------------------------
invalid() -> refuse(<<"amqp:invalid-field">>, "a frame with a field that no client of ours needs").

refuse(Condition, Why) ->
    exit(#'v1_0.error'{condition = {symbol, Condition},
                       description = {utf8, iolist_to_binary(["netspace: ", Why])}}).
"""


# What takes the place of a module of RabbitMQ's: all functions of that module, each a call of this one.
STAND_INS = {
    "netspace_guard_as_parser": {"parse": 1, "parse_many": 2},
    "netspace_guard_as_peeking_parser": {"parse": 1, "parse_many": 2, "peek": 1},
    "netspace_guard_as_management": {"handle_request": 5},
}


def sources(depth: int) -> dict[str, str]:
    """Return the Erlang sources of this module and of the stand-ins for RabbitMQ's modules, by module name.

    :param depth: how many levels of nested values a message may have.
    """
    stand_ins = {name: _stand_in(name, functions) for name, functions in STAND_INS.items()}
    return {MODULE: SOURCE.replace("@DEPTH@", str(depth)), **stand_ins}


def _stand_in(module: str, functions: Mapping[str, int]) -> str:
    lines = [
        "%% Written by netspace: loaded in the place of a module of RabbitMQ's.",
        f"-module({module}).",
        f"-export([{', '.join(f'{name}/{arity}' for name, arity in functions.items())}]).",
    ]
    for name, arity in functions.items():
        arguments = ", ".join(f"A{number}" for number in range(1, arity + 1))
        lines.append(f"{name}({arguments}) -> {MODULE}:{name}({arguments}).")
    return "\n".join(lines) + "\n"
