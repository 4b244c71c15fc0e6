"""Plugin for netspace's own broker that enforces limits for which RabbitMQ 4.0 has no setting.

Memory: without any permission, an account can make the broker keep unbounded data for it. Examples are messages in a
transaction that is never committed, a message that never ends, and messages that the account doesn't read. RabbitMQ's
only reaction is the memory alarm, which stops all clients. So a process in the plugin (the *guard*) looks at the memory
in use ten times a second. If more than half of the alarm's threshold is in use, it closes the connections of the
account that uses the most memory.

Bindings: an environment that sends requests binds its queue for answers under keys of its choice, and RabbitMQ doesn't
limit their number. After 1,000 bindings (``objects.ANSWERS``), the plugin deletes each further binding at once, and
closes the connections of the account.

Methods and frames: :mod:`netspace.link.broker.admission` (AMQP 0-9-1) and :mod:`netspace.link.broker.frames` (1.0)
refuse methods and frames that are useful only to an attacker, before RabbitMQ handles them.

Messages: :mod:`netspace.link.broker.messages` makes RabbitMQ 4.3 order messages and write addresses as 4.0 does.

Work: :mod:`netspace.link.broker.budget` reads slowly from an account that costs the broker too much processor time, and
delays new connections of an account whose connections the guard has closed.

Disk: :mod:`netspace.link.broker.disk` has durable queues free the disk space of messages that were read.

Leaders: RabbitMQ records the owner of each queue's log only twice a second. If the broker is killed within half a
second after a queue was made, the queue never has a leader again. The plugin records the owner as soon as a queue is
made, and makes queues without a leader elect one.

Log: clients choose their own names, so the plugin replaces characters in the log that end a line or control a terminal.

Refusals: :mod:`netspace.link.broker.refusals` counts the refused requests of accounts, as far as the plugin has time
for it.

The plugin reports the accounts whose connections it closes. The reports are in the log, and in a global parameter of
the broker, which ``health`` reads. The plugin is written in Erlang and compiled on the host, by the compiler on which
RabbitMQ's package depends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netspace import files
from netspace.errors import MissingError, NetspaceError
from netspace.link.broker import admission, bounds, budget, disk, frames, mapper, messages, refusals, sections
from netspace.link.topology.objects import ANSWERS

NAME = "netspace_guard"
COMPILER = Path("/usr/bin/erlc")

_APPLICATION = """{application, netspace_guard, [
    {description, "Bounds of accounts"}, {vsn, "1.0.0"}, {registered, [netspace_guard, netspace_guard_budget]},
    {modules, [netspace_guard, netspace_guard_admission, netspace_guard_as_management, netspace_guard_as_parser,
               netspace_guard_as_peeking_parser, netspace_guard_bounds, netspace_guard_budget, netspace_guard_disk,
               netspace_guard_events, netspace_guard_frames, netspace_guard_mapper, netspace_guard_messages,
               netspace_guard_refusals, netspace_guard_sections]},
    {applications, [kernel, stdlib, compiler, rabbit]},
    {mod, {netspace_guard, []}}, {env, []}, {broker_version_requirements, []}]}.
"""

_EVENTS = r"""%% Written by netspace: tells the guard what accounts bind, and of new queues.
-module(netspace_guard_events).
-behaviour(gen_event).
-export([init/1, handle_event/2, handle_call/2]).

init(Guard) -> {ok, Guard}.

handle_event({event, connection_created, Made, _, _}, Guard) ->
    netspace_guard_budget:charge(proplists:get_value(user, Made), netspace_guard_budget:price(connection)),
    {ok, Guard};
handle_event({event, Type, Made, _, _}, Guard)
        when Type =:= binding_created; Type =:= queue_created; Type =:= user_deleted ->
    Guard ! {Type, Made},
    {ok, Guard};
handle_event(_, Guard) -> {ok, Guard}.

handle_call(_, Guard) -> {ok, unknown, Guard}.
"""

_GUARD = r"""%% Written by netspace: cuts off accounts that have the broker keep too much for them.
-module(netspace_guard).
-behaviour(application).
-behaviour(gen_server).
-export([start/2, stop/1, init/1, handle_call/3, handle_cast/2, handle_info/2, plain/2]).
-export([ancestors/1, connections/0, is_environment/1]).

-define(INTERVAL, 100).           % ms between two looks
-define(QUIET, 20000).            % reductions of the whole broker between two looks, below which it is nearly idle
-define(SKIPPED, 9).              % looks at the memory that an idle broker skips, one after another
-define(LEAST, 32 * 1048576).     % bytes that nobody is cut off for
-define(TOLD, 100).               % accounts that are told of
-define(ELECTIONS, 60).           % seconds after the start in which queues without a leader choose one
-define(LISTED, 100).             % reductions for each binding that is counted
-define(WAITING, 1000).           % what waits for the guard when it is told of no more refusals

start(_, _) -> supervisor:start_link(?MODULE, supervisor).
stop(_) -> ok.

init(supervisor) ->
    Guard = #{id => guard, start => {gen_server, start_link, [{local, ?MODULE}, ?MODULE, guard, []]}},
    Budget = #{id => budget, start => {netspace_guard_budget, start_link, []}},
    {ok, {#{intensity => 10, period => 10}, [Budget, Guard]}};
init(guard) ->
    process_flag(priority, high),
    netspace_guard_disk:set(),
    _ = logger:add_primary_filter(netspace_guard, {fun ?MODULE:plain/2, []}),
    ok = gen_event:add_sup_handler(rabbit_event, netspace_guard_events, self()),
    self() ! look,
    self() ! {elect, ?ELECTIONS},
    self() ! {compact, #{}},
    {ok, #{vain => 0, total => 0, skipped => 0, ending => #{}, told => #{}, new => false,
           refused => netspace_guard_refusals:new()}}.

handle_call(_, _, State) -> {reply, unknown, State}.
handle_cast({refused, User, Text}, State = #{refused := Refused}) ->
    case is_environment(User) of
        true -> {noreply, State#{refused := netspace_guard_refusals:note(User, Text, Refused)}};
        false -> {noreply, State}
    end;
handle_cast(_, State) -> {noreply, State}.

handle_info(look, State) ->
    erlang:send_after(?INTERVAL, self(), look),
    New = #{refused := Refused} = tell(memory(State)),
    {noreply, New#{refused := netspace_guard_refusals:tell(Refused)}};
handle_info({binding_created, Made}, State) ->
    {noreply, bound(maps:from_list(Made), State)};
handle_info({queue_created, _}, State) ->
    known(),
    {noreply, State};
handle_info({user_deleted, Gone}, State = #{refused := Refused}) ->
    {noreply, State#{refused := netspace_guard_refusals:forget(proplists:get_value(name, Gone), Refused)}};
handle_info({elect, Left}, State) ->
    case elect() of
        Orphans when Orphans > 0, Left > 1 -> erlang:send_after(1000, self(), {elect, Left - 1});
        _ -> ok
    end,
    {noreply, State};
handle_info({compact, Asked}, State) ->
    erlang:send_after(1000, self(), {compact, netspace_guard_disk:compact(Asked)}),
    {noreply, State};
handle_info({ended, Reader}, State = #{ending := Ending}) ->
    {noreply, State#{ending := maps:remove(Reader, Ending)}};
handle_info({gen_event_EXIT, _, Reason}, State) -> {stop, Reason, State};
handle_info(_, State) -> {noreply, State}.

%% -- the log -------------------------------------------------------------------
%% What a client calls itself is logged as it is: no line ends in it, and no terminal is steered by it.
plain(Event = #{msg := {"Channel error on connection" ++ _, [_, _, _, User, _, Text]}}, _) when is_binary(User) ->
    catch refused(User, Text),  % a filter that fails is removed
    cleaned(Event);
plain(Event, _) -> cleaned(Event).

%% Accounts ask for more than the guard has time for, and its looks at the memory wait behind that.
refused(User, Text) ->
    case whereis(?MODULE) of
        undefined -> ok;
        Guard ->
            case process_info(Guard, message_queue_len) of
                {message_queue_len, Waiting} when Waiting < ?WAITING ->
                    gen_server:cast(Guard, {refused, User, netspace_guard_refusals:plain(Text)});
                _ -> ok
            end
    end.

cleaned(Event = #{msg := {Format, Arguments}}) when is_list(Arguments), Format =/= string, Format =/= report ->
    Event#{msg := {Format, [text(One) || One <- Arguments]}};
cleaned(Event) -> Event.

text(Text) when is_binary(Text) ->
    case unicode:characters_to_list(Text) of
        List when is_list(List) ->
            case lists:any(fun steers/1, List) of
                true -> << <<(case steers(One) of true -> $?; false -> One end)/utf8>> || One <- List >>;
                false -> Text
            end;
        _ -> << <<(if One < 32; One > 126 -> $?; true -> One end)>> || <<One>> <= Text >>
    end;
text(Other) -> Other.

steers(One) ->
    One < 32 orelse One >= 127 andalso One < 160 orelse One =:= 16#200E orelse One =:= 16#200F
        orelse One >= 16#2028 andalso One =< 16#202E orelse One >= 16#2066 andalso One =< 16#2069.

%% The manager's account is no environment's, nor is the broker itself.
is_environment(User) when is_binary(User) ->
    case rabbit_auth_backend_internal:lookup_user(User) of
        {ok, Found} -> not lists:member(administrator, internal_user:get_tags(Found));
        _ -> false
    end;
is_environment(_) -> false.  % a connection within the broker, such as a shovel's, has no account

%% -- queues --------------------------------------------------------------------
%% Has whose log is whose written down, for all queues that were made by now.
known() ->
    receive {queue_created, _} -> known()
    after 0 -> dets:sync(ra_directory_reverse)
    end.

%% A log that was not known when the broker started is a new one, whose owner waits for others that there aren't.
elect() ->
    Orphans = [Name || Queue <- rabbit_amqqueue:list_by_type(rabbit_quorum_queue),
                       {Name, _} <- [amqqueue:get_pid(Queue)],
                       whereis(Name) =/= undefined, ra_leaderboard:lookup_leader(Name) =:= undefined],
    [ra:trigger_election({Name, node()}) || Name <- Orphans],
    length(Orphans).

%% -- memory --------------------------------------------------------------------
%% Each scheduler has to tell what memory it has, which wakes them all. A broker that does nothing takes no memory, and
%% what it takes costs reductions: so an idle one is looked at once a second.
memory(State = #{total := Before, skipped := Skipped}) ->
    Total = element(1, erlang:statistics(reductions)),
    case Total - Before < ?QUIET andalso Skipped < ?SKIPPED of
        true -> State#{total := Total, skipped := Skipped + 1};
        false -> looked(State#{total := Total, skipped := 0})
    end.

looked(State = #{vain := Vain, ending := Ending}) ->
    Used = erlang:memory(total),
    case Used > vm_memory_monitor:get_memory_limit() div 2 of
        false -> State#{vain := 0};
        %% Where nobody's connections are to blame, it is looked closely again once there is more.
        true when Used < Vain + ?LEAST -> State;
        true ->
            Owners = owners(Ending),
            Taken = taken(Owners),
            case lists:reverse(lists:keysort(2, maps:to_list(held(Owners, Taken)))) of
                [{User, Bytes} | _] when Bytes > ?LEAST ->
                    Queues = [Queue || {Whose, Queue, _} <- Taken, Whose =:= User],
                    cut(User, <<"has the broker keep too much for it">>, Queues, State);
                _ -> State#{vain := Used}
            end
    end.

%% The supervisor of each connection, but for those that are being ended, and its account.
owners(Ending) ->
    maps:from_list(
        [{Supervisor, User} || {User, Reader, _} <- connections(), not is_map_key(Reader, Ending), is_environment(User),
                               Supervisor <- lists:sublist(ancestors(Reader), 1)]).

%% Bytes that the processes of each account's connections hold, and those that queues in memory hold for it.
held(Owners, Taken) ->
    Own = [{User, size_of(Process)} || Process <- processes(), User <- [owner(Process, Owners)], User =/= nobody],
    lists:foldl(fun({User, Bytes}, Sum) -> Sum#{User => maps:get(User, Sum, 0) + Bytes} end, #{},
                Own ++ [{User, Bytes} || {User, _, Bytes} <- Taken]).

%% All processes of a connection have its supervisor in common.
owner(Process, Owners) ->
    case [maps:get(One, Owners) || One <- ancestors(Process), is_map_key(One, Owners)] of
        [User | _] -> User;
        [] -> nobody
    end.

%% Queues in memory that hold much, and the account that reads them. What it has taken and not acknowledged counts for
%% no bound of the queue. A queue's process keeps an entry for each channel that took something of it.
taken(Owners) ->
    [{User, Queue, Bytes} || Queue <- rabbit_amqqueue:list_by_type(rabbit_classic_queue),
                             Process <- [amqqueue:get_pid(Queue)], is_pid(Process),
                             Bytes <- [size_of(Process)], Bytes > ?LEAST,
                             User <- lists:sublist(readers(Process, Owners), 1)].

readers(Process, Owners) ->
    case process_info(Process, dictionary) of
        {dictionary, Kept} ->
            [User || {{ch, Channel}, _} <- Kept, User <- [owner(Channel, Owners)], User =/= nobody];
        undefined -> []
    end.

%% What comes back to a queue when its reader is cut off is given up: else the reader takes it again, and more with it.
empty(Queues) ->
    [begin timer:sleep(Wait), [catch rabbit_amqqueue:purge(Queue) || Queue <- Queues] end
     || Queues =/= [], Wait <- [0, 500]].

connections() ->
    [{element(11, One), element(6, One), element(5, One)} || One <- rabbit_connection_tracking:list_on_node(node())].

ancestors(Process) ->
    case process_info(Process, {dictionary, '$ancestors'}) of
        {_, Found} when is_list(Found) -> Found;
        _ -> []
    end.

size_of(Process) ->
    case process_info(Process, [memory, binary]) of
        [{memory, Memory}, {binary, Binaries}] -> Memory + lists:sum([Size || {_, Size, _} <- Binaries]);
        undefined -> 0
    end.

%% -- bindings ------------------------------------------------------------------
bound(Made = #{user_who_performed_action := User}, State) ->
    Count = case is_environment(User) of
        true -> length(rabbit_binding:list_for_destination(destination(Made)));
        false -> 0
    end,
    netspace_guard_budget:charge(User, Count * ?LISTED),  % the guard works for it
    case Count > @ANSWERS@ + 1 of  % one is the queue's own
        true -> cut(User, <<"binds more than @ANSWERS@ answers">>, [], undo(Made, State));
        false -> State
    end.

undo(Made = #{vhost := VHost, source_name := Source, routing_key := Key, arguments := Arguments}, State) ->
    Binding = {binding, rabbit_misc:r(VHost, exchange, Source), Key, destination(Made), Arguments},
    _ = rabbit_binding:remove(Binding, <<"netspace_guard">>),
    State.

destination(#{vhost := VHost, destination_kind := Kind, destination_name := Name}) -> rabbit_misc:r(VHost, Kind, Name).

%% -- cutting off ---------------------------------------------------------------
cut(User, Why, Queues, State = #{ending := Ending, told := Told}) ->
    case [{One, Name} || {Whose, One, Name} <- connections(), Whose =:= User, not is_map_key(One, Ending)] of
        [] -> State;
        Chosen ->
            logger:log(warning, "netspace: ~ts is cut off: it ~ts", [User, Why], #{domain => [rabbitmq]}),
            netspace_guard_budget:closed(User, [Reader || {Reader, _} <- Chosen]),
            Guard = self(),
            [spawn(fun() -> close(Reader, Name, Why), empty(Queues), Guard ! {ended, Reader} end)
             || {Reader, Name} <- Chosen],
            #{<<"times">> := Times} = maps:get(User, Told, #{<<"times">> => 0}),
            Entry = #{<<"why">> => Why, <<"times">> => Times + 1, <<"at">> => erlang:system_time(second)},
            Gone = maps:from_keys([Reader || {Reader, _} <- Chosen], true),
            State#{ending := maps:merge(Ending, Gone), told := newest(Told#{User => Entry}), new := true}
    end.

%% It is told why; and whether it listens or not, is gone after that. What was kept for it is given up before.
close(Reader, Name, Why) ->
    Watch = monitor(process, Reader),
    spawn(fun() -> rabbit_networking:close_connection(Reader, binary_to_list(Why)) end),
    receive {'DOWN', Watch, _, _, _} -> ok
    after 200 ->
        garbage_collect(Reader),
        receive {'DOWN', Watch, _, _, _} -> ok
        after 3000 ->
            exit(Reader, kill),
            %% It can't say so itself any more, and would be counted for ever.
            rabbit_core_metrics:connection_closed(Reader),
            rabbit_event:notify(connection_closed, [{name, Name}, {pid, Reader}, {node, node()}])
        end
    end.

newest(Told) ->
    Sorted = lists:sort(fun({_, #{<<"at">> := A}}, {_, #{<<"at">> := B}}) -> A >= B end, maps:to_list(Told)),
    maps:from_list(lists:sublist(Sorted, ?TOLD)).

%% Others read it where the broker keeps it, which it does on disk: once a second is enough.
tell(State = #{new := true, told := Told}) ->
    Now = erlang:monotonic_time(second),
    case maps:get(last, State, Now - 1) < Now of
        true ->
            rabbit_runtime_parameters:set_global(netspace_guard, Told, <<"netspace_guard">>),
            State#{new := false, last => Now};
        false -> State
    end;
tell(State) -> State.
"""


def sources() -> Mapping[str, str]:
    """Return the plugin's source files, by name."""
    filled = _GUARD.replace("@ANSWERS@", str(ANSWERS))
    return {
        f"{NAME}.erl": filled,
        f"{admission.MODULE}.erl": admission.source(),
        f"{bounds.MODULE}.erl": bounds.SOURCE,
        f"{budget.MODULE}.erl": budget.source(),
        f"{disk.MODULE}.erl": disk.source(),
        **{f"{name}.erl": text for name, text in frames.sources(admission.DEPTH).items()},
        f"{messages.MODULE}.erl": messages.SOURCE,
        f"{refusals.MODULE}.erl": refusals.SOURCE,
        f"{sections.MODULE}.erl": sections.source(admission.DEPTH),
        f"{NAME}_events.erl": _EVENTS,
        f"{mapper.MODULE}.erl": mapper.SOURCE,
        f"{NAME}.app": _APPLICATION,
    }


def place(folder: Path) -> Path:
    """Return the folder of this plugin's modules, below *folder*, the folder of all plugins."""
    return folder / f"{NAME}-1.0.0" / "ebin"


def installed(folder: Path) -> bool:
    """Return whether this version of the plugin is installed in *folder*."""
    there = place(folder)
    try:
        same = all((there / name).read_text() == text for name, text in sources().items())
    except OSError:
        return False
    return same and all((there / name).with_suffix(".beam").exists() for name in sources() if name.endswith(".erl"))


def install(folder: Path, group: int) -> None:
    """Compile the plugin into *folder*, readable by *group*.

    :raises MissingError: Erlang's compiler is not installed.
    """
    if installed(folder):
        return
    if not COMPILER.exists():
        raise MissingError(f"Erlang's compiler ({COMPILER})", "apt-get install erlang-base")
    with tempfile.TemporaryDirectory() as made:
        for name, text in sources().items():
            (Path(made) / name).write_text(text)
        modules = [name for name in sources() if name.endswith(".erl")]
        done = subprocess.run(
            [str(COMPILER), "+debug_info", *modules],
            cwd=made,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise NetspaceError(f"the broker's guard can't be compiled: {(done.stderr or done.stdout)[-400:]}")
        there = place(folder)
        shutil.rmtree(there.parent, ignore_errors=True)
        for one in (there.parent, there):
            one.mkdir(mode=0o750)
            os.chown(one, 0, group)
        # Write the sources last: if they are found, the compiled modules are there too.
        for path in sorted(Path(made).iterdir(), key=lambda path: path.suffix != ".beam"):
            files.write(there / path.name, path.read_bytes(), mode=0o640, owner=(0, group))


def cut_off(parameter: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the accounts whose connections the guard closed, from the broker's global *parameter*.

    :return: by account, ``{why, times, at}``.
    """
    return dict((parameter or {}).get("value") or {})
