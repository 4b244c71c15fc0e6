"""Module of the broker's plugin that reads slowly from accounts that cost the broker too much processor time.

The limits of an environment don't bound the broker's work for it: each frame and each method takes processor time of
the broker. So each account has a budget of this time. Erlang counts the work of a process in *reductions* (about 10 to
30 ns each). 20 times a second, the module adds up the reductions of all processes of each account's connections, and
the prices of methods that make other processes work. If that is more than the account's budget, the module suspends the
processes that read from the account's connections, and their channels, until the budget suffices again. TCP then makes
the account wait. Nothing is lost or refused.

All accounts together have a budget as well (``ALL``), of three times an account's budget. So many accounts that
conspire can't cost the broker more than three single ones. The common budget grows with time. Each account gets an
equal part of the growth, but no more than it has used up. If all accounts together have used up more than the common
budget can hold, those that have used up most are suspended. So an account that uses little never waits for others.

Each message that an account sends returns most of its own cost, so an account that sends many small messages, and does
nothing else, doesn't have to wait.

A channel may end before anybody looks at it. So prices are charged at once. A channel reports its own use if it closes
soon after it was opened, or if RabbitMQ refuses it something.

A connection has no account before its login. Until then, it may use as much as a login needs (``LOGIN``); one that
uses more is ended.

If the guard has closed an account's connections, the account's next connection has to wait one second, and twice as
long after each further closure, up to about a minute. Ten minutes without a closure reset this time.

``erlang:suspend_process/2`` is meant for debuggers. It is used here because RabbitMQ's readers, and Erlang's processes
for TLS connections, offer no other way to pause them. Two dangers were tested and excluded: if the module's process
ends, Erlang resumes all processes that it suspended; and a suspended process can be killed, and frees its memory. Twice
a second a suspended reader goes on for 2 ms, so that it answers requests of the broker's other processes, such as a
request to close the connection.

https://www.erlang.org/doc/apps/erts/erlang.html#suspend_process/2
"""

from __future__ import annotations

MODULE = "netspace_guard_budget"
RATE = 7_500
"""Reductions per millisecond and processor that an account may use. One processor counts as two."""
BURST, DEBT = 3_000, 20_000
"""The most that an account may save up, and the most that it may owe, in milliseconds at this rate."""
ALL = 3
"""The common budget of all accounts, as a multiple of the budget of one account."""
LOGIN = 3_000_000
"""Reductions that a connection may use before its login."""
LONGEST = 64
"""Seconds that an account waits at most after its connections were closed."""
PRICES = {
    "connection": 1_800_000,  # as much as it may do unseen before it closes it
    "channel": 50_000,
    "session": 400_000,  # as a channel, with what it may do unseen before it ends: it can't tell that itself
    "refused": 50_000,
    "method": 5_000,
    "binding": 80_000,
    "message": -200,
}
"""Reductions that an account pays for the work of other processes. A price below 0 is given back to the account."""

SOURCE = r"""%% Written by netspace: reads slowly from who has the broker work too much.
-module(netspace_guard_budget).
-behaviour(gen_server).
-export([start_link/0, init/1, handle_call/3, handle_cast/2, handle_info/2]).
-export([charge/2, add/1, began/0, ended/1, closed/2, balance/4, level/2, pause/1, rate/1, price/1, stranger/1]).

-define(LOOK, 50).              % ms between two looks
-define(IDLE, 15000).           % reductions of the whole broker in a ms, below which nobody is looked at
-define(ACTIVE, 5000).          % reductions of a reader, from which its connection is looked at closely
-define(SELDOM, 10).            % looks after which each connection is looked at closely
-define(MANY, 64).              % processes of a connection that is looked at closely less often
-define(BREATH, 10).            % looks after which a suspended reader goes on for a moment
-define(MOMENT, 2).             % ms of it
-define(FORGIVEN, 600000).      % ms after which it doesn't count any more that an account was cut off
-define(TOLD, 60000).           % ms between two lines of the log about one account
-define(WAITING, 3000).         % reductions for a message that waits for a process
-define(ADDED, netspace_guard_added).
-define(BEGAN, netspace_guard_began).

start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

init([]) ->
    process_flag(priority, high),
    ?MODULE = ets:new(?MODULE, [named_table, public, {write_concurrency, true}]),
    self() ! look,
    {ok, #{accounts => #{}, connections => first, kinds => #{}, held => #{}, ending => #{}, look => 0,
           at => now_ms(), total => total(), rate => rate(erlang:system_info(schedulers_online))}}.

handle_call(_, _, State) -> {reply, unknown, State}.

%% The account's connections, whose Readers are named, are being closed; it waits when it is back.
handle_cast({closed, User, Readers}, State = #{accounts := Accounts, ending := Ending}) ->
    Account = #{times := Times} = account(User, State),
    New = Account#{times := Times + 1, until := now_ms() + pause(Times + 1), cut := now_ms()},
    Gone = maps:merge(Ending, maps:from_keys(Readers, true)),
    {noreply, hold(State#{accounts := Accounts#{User => New}, ending := Gone})};
handle_cast(_, State) -> {noreply, State}.

handle_info(look, State) ->
    erlang:send_after(?LOOK, self(), look),
    {noreply, look(State)};
handle_info(hold, State) -> {noreply, hold(State)};
handle_info(_, State) -> {noreply, State}.

%% -- what others call ------------------------------------------------------------------
%% Adds Reductions to what the account uses.
charge(User, Reductions) ->
    try ets:update_counter(?MODULE, User, {2, Reductions}, {User, 0})
    catch error:badarg -> 0  % this module's process begins anew
    end.

%% Likewise, for the account of the connection to which the calling process belongs. If that process ends before the
%% next look, it is forgotten.
add(Reductions) ->
    put(?ADDED, case get(?ADDED) of undefined -> Reductions; Before -> Before + Reductions end).

%% The calling process is a channel that begins.
began() -> put(?BEGAN, now_ms()).

%% The calling process is a channel that ends, perhaps before it was looked at: then it charges what it used itself.
ended(User) ->
    {reductions, Own} = process_info(self(), reductions),
    case get(?BEGAN) of
        Began when is_integer(Began) ->
            case now_ms() - Began < ?LOOK * ?SELDOM of
                true -> charge(User, Own);
                false -> 0
            end;
        undefined -> 0
    end.

closed(User, Readers) -> gen_server:cast(?MODULE, {closed, User, Readers}).

@PRICES@

%% -- a budget --------------------------------------------------------------------------
%% Reductions in a millisecond, on a machine of so many processors. Only tests set another number.
rate(Processors) -> application:get_env(netspace_guard, rate, @RATE@) * max(2, Processors).

%% What is left of a budget that gained Income, and of which Spent was used up. Below 0, the account waits.
balance(Before, Income, Spent, Rate) ->
    max(-Rate * @DEBT@, min(Rate * @BURST@, min(Rate * @BURST@, Before + Income) - Spent)).

%% The most that each may get, so that nobody gets more than it needs, and all together get no more than Total. An atom
%% is more than any number.
level(Needs, Total) -> level(lists:sort(Needs), Total, length(Needs)).

level([], _, _) -> unlimited;
level([Least | Others], Total, Number) when Least * Number =< Total -> level(Others, Total - Least, Number - 1);
level(_, Total, Number) -> Total div Number.

%% Budgets of one account that all of them have together. Only tests set another number.
all() -> application:get_env(netspace_guard, all, @ALL@).

%% Milliseconds of a pause, after an account was cut off so many Times.
pause(Times) -> 1000 * min(@LONGEST@, 1 bsl min(Times - 1, 10)).

account(User, #{accounts := Accounts, rate := Rate}) ->
    maps:get(User, Accounts, #{balance => Rate * @BURST@, least => 0, times => 0, until => 0, cut => 0, told => 0}).

%% -- a look ----------------------------------------------------------------------------
%% Milliseconds since the broker's start. Erlang's own clock begins below 0.
now_ms() ->
    Since = erlang:monotonic_time() - erlang:system_info(start_time),
    erlang:convert_time_unit(Since, native, millisecond) + 1.

total() -> element(1, erlang:statistics(reductions)).

look(State = #{look := Look, at := At, total := Before, accounts := Accounts}) ->
    Now = now_ms(),
    Total = total(),
    Owing = lists:any(fun(Account) -> waits(Account, Now) end, maps:values(Accounts)),
    Busy = Total - Before > ?IDLE * (Now - At),
    case Owing orelse Busy orelse Now - At > 1000 of
        true -> breath(looked(Now, State#{look := Look + 1, at := Now, total := Total, busy => Busy}, Now - At));
        false -> State
    end.

%% Whether an account waits: by itself, or as it used up more than its share of what all may have used up.
waits(#{balance := Balance, least := Least, until := Until}, Now) -> Balance < Least orelse Until > Now.

looked(Now, State, Passed) ->
    Charged = maps:from_list([Entry || {User, _} <- ets:tab2list(?MODULE), Entry <- ets:take(?MODULE, User)]),
    {Users, Known = #{kinds := Kinds}} = known(maps:keys(Charged), State),
    {Connections, All} = counted(Users, Charged, Known),
    Spent = maps:filter(fun(User, _) -> maps:get(User, Kinds) end, All),
    Present = maps:from_list([{User, true} || {_, User} <- maps:to_list(Users)]),
    Ending = maps:with(maps:keys(Users), maps:get(ending, Known)),
    #{rate := Rate, accounts := Accounts} = Known,
    Named = lists:usort(maps:keys(Accounts) ++ maps:keys(Present) ++ maps:keys(Spent)),
    New = [{User, told(User, Account, Now)}
           || {User, Account} <- spend([{User, account(User, Known)} || User <- Named], Passed, Spent, Rate)],
    Kept = [{User, Account} || {User, Account = #{balance := Balance, cut := Cut}} <- New,
                               is_map_key(User, Present) orelse Balance < Rate * @BURST@
                                   orelse Cut =/= 0 andalso Now - Cut < ?FORGIVEN],
    hold(Known#{accounts := maps:from_list([{User, forgiven(Account, Now)} || {User, Account} <- Kept]),
                connections := Connections, ending := Ending}).

spend(Before, Passed, Spent, Rate) ->
    {All, Full} = {all(), Rate * @BURST@},
    Gain = level([min(Rate * Passed, Full - Balance) || {_, #{balance := Balance}} <- Before], All * Rate * Passed),
    After = [{User, Account#{balance := balance(Balance, min(Rate * Passed, Gain), maps:get(User, Spent, 0), Rate)}}
             || {User, Account = #{balance := Balance}} <- Before],
    Least = least(level([Full - Balance || {_, #{balance := Balance}} <- After], All * Full), Full),
    [{User, Account#{least := Least}} || {User, Account} <- After].

%% The balance below which an account waits, if it may have used up so much.
least(unlimited, _) -> 0;
least(Used, Full) -> max(0, Full - Used).

forgiven(Account = #{cut := Cut}, Now) when Cut =/= 0, Now - Cut >= ?FORGIVEN -> Account#{cut := 0, times := 0};
forgiven(Account, _) -> Account.

told(User, Account = #{balance := Balance, least := Least, told := Told}, Now)
  when Balance < Least, Told =:= 0 orelse Now - Told > ?TOLD ->
    logger:log(warning, "netspace: ~ts is read slowly: it has the broker do too much", [User], #{domain => [rabbitmq]}),
    Account#{told := Now};
told(_, Account, _) -> Account.

%% The account of each reader; and the state with what is known of accounts. The manager's is no environment's.
known(Charged, State = #{kinds := Before, look := Look}) ->
    Kinds = case Look rem ?SELDOM of 0 -> #{}; _ -> Before end,  % an account that was deleted is nobody's
    All = netspace_guard:connections(),
    maps:get(busy, State) andalso strangers([Reader || {_, Reader, _} <- All], maps:get(connections, State)),
    Named = Charged ++ [User || {User, _, _} <- All],
    Found = maps:from_list([{User, maps:get(User, Kinds, unknown)} || User <- Named]),
    New = maps:map(fun(User, unknown) -> netspace_guard:is_environment(User); (_, Kind) -> Kind end, Found),
    {maps:from_list([{Reader, User} || {User, Reader, _} <- All, maps:get(User, New)]), State#{kinds := New}}.

%% Ends each connection that has used more than a login needs, and is none of Readers, which have logged in. No process
%% is asked for its connections: one that is busy with a flood may answer late.
strangers(Readers, Connections) ->
    Known = maps:from_keys([Top || Reader <- Readers, Top <- top(Reader, Connections)], true),
    [begin
         logger:log(warning, "netspace: a connection is ended: it has the broker do too much before its login",
                    #{domain => [rabbitmq]}),
         exit(Reader, kill)
     end || {_, _, Sup} <- ranch_server:get_connections_sups(), {links, Links} <- [process_info(Sup, links)],
            Top <- Links, is_pid(Top), not is_map_key(Top, Known), {Reader, Used} <- stranger(Top), Used > @LOGIN@].

top(Reader, Connections) ->
    case Connections of
        #{Reader := #{top := Top}} -> Top;
        _ -> lists:sublist(netspace_guard:ancestors(Reader), 1)
    end.

%% The reader below a connection's supervisor, and what it and its TLS have used. Each question waits until the process
%% that is asked runs, so there are few. Before a login, there are no channels.
stranger(Top) ->
    [{One, Own + lists:sum([element(1, used(Process)) || Process <- tls(One)])}
     || [{links, Links}, {_, {supervisor, rabbit_connection_sup, _}}] <- [asked(Top, links)], One <- Links, is_pid(One),
        [{reductions, Own}, {_, {rabbit_reader, _, _}}] <- [asked(One, reductions)]].

asked(Process, What) -> process_info(Process, [What, {dictionary, '$initial_call'}]).

%% What is known of each connection now, and what each account used since the look before.
counted(Users, Charged, #{connections := Before, look := Look}) ->
    maps:fold(
        fun(Reader, User, {Connections, Spent}) ->
            {Connection, Used} = connection(Reader, Look, Before),
            {Connections#{Reader => Connection}, Spent#{User => maps:get(User, Spent, 0) + Used}}
        end, {#{}, Charged}, Users).

connection(Reader, Look, Before) when is_map_key(Reader, Before) ->
    Connection = #{seen := Seen, due := Due} = maps:get(Reader, Before),
    {Own, _} = Then = maps:get(Reader, Seen, {0, 0}),
    case used(Reader) of
        {Now, _} when Now - Own < ?ACTIVE, Look < Due -> {Connection, 0};
        Used when Look < Due, map_size(Seen) > ?MANY ->
            {Connection#{seen := Seen#{Reader => Used}}, difference(Used, Then)};
        _ -> closely(Reader, Look, Connection)
    end;
%% What others did before this module's process began is nobody's debt.
connection(Reader, Look, first) ->
    {Connection, _} = closely(Reader, Look, new(Reader)),
    {Connection, 0};
connection(Reader, Look, _) -> closely(Reader, Look, new(Reader)).

new(Reader) ->
    Top = lists:sublist(netspace_guard:ancestors(Reader), 1),
    #{top => Top, tls => tls(Reader), seen => #{}, stops => [Reader], due => 0}.

closely(Reader, Look, Connection = #{top := Top, tls := Tls, seen := Seen, stops := Stops}) ->
    Now = maps:from_list([{Process, used(Process)} || Process <- tree(Top, Top, #{Reader => true}) ++ Tls]),
    Used = maps:fold(fun(Process, Some, Sum) -> Sum + difference(Some, maps:get(Process, Seen, {0, 0})) end, 0, Now),
    Lasting = [One || One <- Stops, is_map_key(One, Now)],
    New = [One || One <- maps:keys(Now), not is_map_key(One, Seen), works(One), One =/= Reader],
    {Connection#{seen := Now, stops := New ++ Lasting, due := Look + ?SELDOM}, Used}.

difference({Own, Added}, {OwnBefore, AddedBefore}) -> Own - OwnBefore + Added - AddedBefore.

%% What waits for a process is as good as done: a reader hands on methods faster than its channels handle them.
used(Process) ->
    case process_info(Process, [reductions, message_queue_len, {dictionary, ?ADDED}]) of
        [{reductions, Own}, {_, Waiting}, {_, Added}] when is_integer(Added) -> {Own, ?WAITING * Waiting + Added};
        [{reductions, Own}, {_, Waiting}, _] -> {Own, ?WAITING * Waiting};
        undefined -> {0, 0}
    end.

%% All processes below a connection's supervisor.
tree(_, [], Found) -> maps:keys(Found);
tree(Top, [Process | Others], Found) ->
    Linked = case process_info(Process, links) of {links, Links} -> Links; undefined -> [] end,
    New = [One || One <- Linked, is_pid(One), not is_map_key(One, Found), below(Top, One)],
    tree(Top, New ++ Others, maps:merge(Found, maps:from_keys(New, true))).

below([Top], Process) -> lists:member(Top, netspace_guard:ancestors(Process));
below([], _) -> false.

%% The processes of a connection's TLS: one watches the reader, and the one that sends is linked to it.
tls(Reader) ->
    {monitored_by, Watching} = with(process_info(Reader, monitored_by), {monitored_by, []}),
    [One || Watcher <- Watching, is_pid(Watcher), is_tls(Watcher),
            {links, Links} <- [with(process_info(Watcher, links), {links, []})],
            One <- [Watcher | [Link || Link <- Links, is_pid(Link), is_tls(Link)]]].

with(undefined, Otherwise) -> Otherwise;
with(Found, _) -> Found.

is_tls(Process) -> lists:member(made_by(Process), [ssl_gen_statem, tls_gen_connection, tls_sender]).

%% Whether a process reads from the client, or does what was read.
works(Process) ->
    lists:member(made_by(Process), [rabbit_channel, rabbit_amqp_session, ssl_gen_statem, tls_gen_connection]).

made_by(Process) ->
    case process_info(Process, {dictionary, '$initial_call'}) of
        {_, {Module, _, _}} -> Module;
        _ -> none
    end.

%% -- waiting ---------------------------------------------------------------------------
%% Suspends the processes that read and work for accounts that wait, and lets all others go on.
hold(State = #{connections := first}) -> State;
hold(State = #{held := Held, accounts := Accounts, connections := Connections, ending := Ending, kinds := Kinds}) ->
    Now = now_ms(),
    Owing = maps:filter(fun(_, Account) -> waits(Account, Now) end, Accounts),
    Wanted = case map_size(Owing) of
        0 -> #{};
        _ -> maps:from_keys(
                 [One || {User, Reader, _} <- netspace_guard:connections(), is_map_key(User, Owing),
                         maps:get(User, Kinds, false), not is_map_key(Reader, Ending),
                         One <- stops(Reader, Connections)], true)
    end,
    [go_on(One) || One <- maps:keys(maps:without(maps:keys(Wanted), Held))],
    Stopped = [One || One <- maps:keys(Wanted), is_map_key(One, Held) orelse suspended(One)],
    State#{held := maps:from_keys(Stopped, true)}.

stops(Reader, Connections) ->
    case Connections of
        #{Reader := #{stops := Stops}} -> Stops;
        _ -> [Reader]
    end.

suspended(Process) -> try erlang:suspend_process(Process, [asynchronous, unless_suspending]) of _ -> true
                      catch error:badarg -> false end.

go_on(Process) -> try erlang:resume_process(Process) catch error:badarg -> false end.

%% For a moment all go on: the broker itself may have asked them something.
breath(State = #{look := Look, held := Held}) when Look rem ?BREATH =:= 0, map_size(Held) > 0 ->
    [go_on(One) || One <- maps:keys(Held)],
    erlang:send_after(?MOMENT, self(), hold),
    State#{held := #{}};
breath(State) -> State.
"""


def source() -> str:
    """Return the module's source in Erlang."""
    prices = ";\n".join(f"price({what}) -> {reductions}" for what, reductions in PRICES.items()) + "."
    filled = {"PRICES": prices, "LOGIN": LOGIN, "RATE": RATE, "ALL": ALL, "BURST": BURST, "DEBT": DEBT}
    filled["LONGEST"] = LONGEST
    text = SOURCE
    for name, value in filled.items():
        text = text.replace(f"@{name}@", str(value))
    return text
