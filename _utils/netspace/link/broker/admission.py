"""Module of the broker's plugin that admits only those AMQP 0-9-1 methods that links need.

RabbitMQ checks permissions within each method, and handles some arguments before that check. For example, the name of a
queue that begins with ``amq.rabbitmq.reply-to.`` holds an Erlang term. RabbitMQ decodes it and calls a process before
it checks any permission; one such ``queue.declare`` ended the whole node.

RabbitMQ calls a channel interceptor before it handles a method. This interceptor has a list of admitted methods, kinds
of names, and arguments. All others are refused with 403 (ACCESS_REFUSED). A message whose headers no client could read
is refused with 406. RabbitMQ then checks permissions as usual.

A message that RabbitMQ can't convert for a reader over AMQP 1.0 is also refused with 406: it would end that reader's
session, and return to the queue.

If a method makes other processes of the broker work, its price is charged to the account's budget
(:mod:`netspace.link.broker.budget`).

The interceptor applies to all accounts except those that manage the broker, and except the broker's own shovels, which
use no account. RabbitMQ 4.0 calls no interceptor for AMQP 1.0: see :mod:`netspace.link.broker.frames`.
"""

from __future__ import annotations

MODULE = "netspace_guard_admission"
REGISTERED = "netspace-admission"
"""The name of the interceptor in RabbitMQ's registry."""
DEPTH = 16
"""Nested levels of tables and arrays that a message's headers may have."""

SOURCE = r"""%% Written by netspace: lets through the methods, names and arguments that a card's user needs.
-module(netspace_guard_admission).
-behaviour(rabbit_channel_interceptor).
-export([description/0, init/1, intercept/3, applies_to/0, is_for/2, shown/1]).

-rabbit_boot_step({?MODULE, [
    {description, "netspace: what accounts may ask for"},
    {mfa, {rabbit_registry, register, [channel_interceptor, <<"@REGISTERED@">>, ?MODULE]}},
    {cleanup, {rabbit_registry, unregister, [channel_interceptor, <<"@REGISTERED@">>]}},
    {requires, rabbit_registry},
    {enables, recovery}]}).

-record('basic.publish', {ticket, exchange, routing_key, mandatory, immediate}).
-record('basic.consume', {ticket, queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments}).
-record('basic.get', {ticket, queue, no_ack}).
-record('queue.declare', {ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments}).
-record('queue.bind', {ticket, queue, exchange, routing_key, nowait, arguments}).
-record('queue.unbind', {ticket, queue, exchange, routing_key, arguments}).
-record('queue.purge', {ticket, queue, nowait}).
-record('exchange.declare', {ticket, exchange, type, passive, durable, auto_delete, internal, nowait, arguments}).
-record(content, {class_id, properties, properties_bin, protocol, payload_fragments_rev}).
-record('P_basic', {content_type, content_encoding, headers, delivery_mode, priority, correlation_id, reply_to,
                    expiration, message_id, timestamp, type, user_id, app_id, cluster_id}).
-record(user, {username, tags, authz_backends}).

-define(LATEST, (1 bsl 63 - 1) div 1000).  % seconds, which are milliseconds in AMQP 1.0

-define(READ, [<<"mailbox">>, <<"lane">>, <<"replies">>, <<"notices">>, <<"dead">>, <<"dead-late">>, <<"dead-again">>]).
-define(WRITTEN, [<<"link">>, <<"reply">>]).
-define(KNOWN, ?READ ++ ?WRITTEN ++ [<<"watch">>, <<"outbox">>]).

description() -> [{description, <<"netspace: lets through what a card's user needs">>}].

%% RabbitMQ calls it with every method whatever is said here, and only checks that no other one says the same.
applies_to() -> ['basic.publish', 'basic.consume', 'basic.get', 'queue.declare', 'queue.bind', 'queue.purge',
                 'exchange.declare', 'exchange.bind'].

init(Channel) ->
    #user{username = Name, tags = Tags, authz_backends = Backends} = rabbit_channel:get_user(Channel),
    %% A shovel's own end is no connection but a call from within, by a user without a name that may do all.
    case lists:member(administrator, Tags) orelse lists:keymember(rabbit_auth_backend_dummy, 1, Backends) of
        true -> host;
        false ->
            netspace_guard_budget:began(),
            netspace_guard_budget:charge(Name, netspace_guard_budget:price(channel)),
            Name
    end.

intercept(Method, Content, host) -> {Method, Content};
intercept(Method, Content, Name) ->
    spend(element(1, Method), Name),
    try admitted(Method, Content)
    catch exit:Refused ->
        netspace_guard_budget:charge(Name, netspace_guard_budget:price(refused)),
        exit(Refused)
    end.

%% What is returned for a message is added up. It is forgotten if the channel ends before the next look.
spend('basic.publish', _) -> netspace_guard_budget:add(price('basic.publish'));
spend('basic.ack', _) -> ok;
spend('channel.close', Name) -> netspace_guard_budget:ended(Name);
spend('channel.close_ok', Name) -> netspace_guard_budget:ended(Name);  % after a refusal
spend(Method, Name) -> netspace_guard_budget:charge(Name, price(Method)).

%% Of what costs other processes more than the channel's own.
price('basic.publish') -> netspace_guard_budget:price(message);
price('queue.bind') -> netspace_guard_budget:price(binding);
price('queue.unbind') -> netspace_guard_budget:price(binding);
price(_) -> netspace_guard_budget:price(method).

%% -- what there is, each with its names and arguments ---------------------------
admitted(Method = #'basic.publish'{exchange = Exchange}, Content) ->
    is_one_of(Exchange, ?WRITTEN) orelse refuse(Method, Exchange),
    {Method, readable(Content)};
admitted(Method = #'basic.get'{queue = Queue}, Content) ->
    is_one_of(Queue, ?READ) orelse refuse(Method, Queue),
    {Method, Content};
admitted(Method = #'basic.consume'{queue = Queue, arguments = Arguments}, Content) ->
    is_one_of(Queue, ?READ) orelse refuse(Method, Queue),
    is_priority(Arguments) orelse refuse_arguments(Method),
    {Method, Content};
admitted(Method = #'queue.purge'{queue = Queue}, Content) ->
    is_one_of(Queue, ?READ) orelse refuse(Method, Queue),
    {Method, Content};
%% A question, whether there is one. The arguments mean nothing then, but clients give those that it was made with.
admitted(Method = #'queue.declare'{queue = Queue, passive = true}, Content) ->
    is_one_of(Queue, ?KNOWN) orelse refuse(Method, Queue),
    {Method#'queue.declare'{arguments = []}, Content};
admitted(Method = #'exchange.declare'{exchange = Exchange, passive = true}, Content) ->
    is_one_of(Exchange, ?KNOWN) orelse refuse(Method, Exchange),
    {Method#'exchange.declare'{arguments = []}, Content};
admitted(Method = #'queue.bind'{queue = Queue, exchange = Exchange, arguments = Arguments}, Content) ->
    {joined(Method, Queue, Exchange, Arguments), Content};
admitted(Method = #'queue.unbind'{queue = Queue, exchange = Exchange, arguments = Arguments}, Content) ->
    {joined(Method, Queue, Exchange, Arguments), Content};
admitted(Method, Content) ->
    case element(1, Method) of
        'channel.open' -> {Method, Content};
        'channel.close' -> {Method, Content};
        'channel.close_ok' -> {Method, Content};
        'channel.flow' -> {Method, Content};
        'channel.flow_ok' -> {Method, Content};
        'basic.qos' -> {Method, Content};
        'basic.cancel' -> {Method, Content};
        'basic.ack' -> {Method, Content};
        'basic.nack' -> {Method, Content};
        'basic.reject' -> {Method, Content};
        'basic.recover' -> {Method, Content};
        'basic.recover_async' -> {Method, Content};
        'confirm.select' -> {Method, Content};
        'tx.select' -> {Method, Content};
        'tx.commit' -> {Method, Content};
        'tx.rollback' -> {Method, Content};
        Name ->
            rabbit_misc:protocol_error(access_refused, "netspace: ~ts is the host's to do", [Name])
    end.

%% Whoever asks has its queue for answers bound to what those answer through that it asks, and nothing else bound.
joined(Method, Queue, Exchange, Arguments) ->
    is_for(asked, Queue) orelse refuse(Method, Queue),
    is_for(answered, Exchange) orelse refuse(Method, Exchange),
    Arguments =:= [] orelse refuse_arguments(Method),
    Method.

%% -- names and arguments ---------------------------------------------------------
%% Over AMQP 1.0: to what one may listen, to what one may send, and what one may have bound.
is_for(read, Name) -> is_one_of(Name, ?READ);
is_for(written, Name) -> is_one_of(Name, ?WRITTEN);
is_for(asked, Name) -> is_one_of(Name, [<<"replies">>]);
is_for(answered, Name) -> is_one_of(Name, [<<"reply">>]).

%% <kind>, or <kind>.<rest>, in characters that our names are made of.
is_one_of(Name, Kinds) when is_binary(Name) ->
    [Kind | _] = binary:split(Name, <<".">>),
    lists:member(Kind, Kinds) andalso is_plain(Name).

is_plain(<<One, Rest/binary>>) when One >= $a, One =< $z; One >= $0, One =< $9; One =:= $.; One =:= $-;
                                    One =:= $_; One =:= $@ ->
    is_plain(Rest);
is_plain(Rest) -> Rest =:= <<>>.

is_priority([]) -> true;
is_priority([{<<"x-priority">>, _, Value}]) -> is_integer(Value);
is_priority(_) -> false.

%% -- messages ----------------------------------------------------------------------
%% What is decoded here isn't decoded again.
readable(Content) ->
    Decoded = #content{properties = About} = decoded(Content),
    #'P_basic'{headers = Headers, reply_to = Answer} = About,
    case Answer of
        <<"amq.rabbitmq.reply-to", _/binary>> ->
            rabbit_misc:protocol_error(access_refused, "netspace: answers come to the queue that the card names", []);
        _ -> ok
    end,
    is_flat(Headers, @DEPTH@) orelse
        rabbit_misc:precondition_failed("netspace: headers are nested more than @DEPTH@ deep"),
    is_carried(About) andalso is_carried(Headers) andalso is_converted(About, Decoded) orelse
        rabbit_misc:precondition_failed("netspace: a property or header that AMQP 1.0 can't carry"),
    Decoded.

decoded(Content) ->
    try rabbit_binary_parser:ensure_content_decoded(Content)
    catch error:_ -> rabbit_misc:precondition_failed("netspace: properties that can't be decoded")
    end.

is_flat(_, 0) -> false;
is_flat(Items, Left) when is_list(Items) -> lists:all(fun(Item) -> is_flat(Item, Left) end, Items);
is_flat({_, table, Items}, Left) -> is_flat(Items, Left - 1);
is_flat({_, array, Items}, Left) -> is_flat(Items, Left - 1);
is_flat({table, Items}, Left) -> is_flat(Items, Left - 1);
is_flat({array, Items}, Left) -> is_flat(Items, Left - 1);
is_flat(_, _) -> true.

%% What would end the session of each reader over AMQP 1.0, which RabbitMQ converts it for. It has no decimal numbers,
%% and fewer milliseconds than there are seconds. By this type and these headers, RabbitMQ knows what was converted
%% before, and decodes it; and it decodes the text of a UUID, whatever it is.
is_carried(#'P_basic'{message_id = Id, correlation_id = Other, timestamp = Time}) ->
    is_id(Id) andalso is_id(Other)
        andalso (Time =:= undefined orelse Time =< ?LATEST);
is_carried(Items) when is_list(Items) -> lists:all(fun is_carried/1, Items);
is_carried({<<"x-amqp-1.0-", _/binary>>, _, _}) -> false;
is_carried({_, Type, Value}) -> is_carried({Type, Value});
is_carried({decimal, _}) -> false;
is_carried({timestamp, Value}) -> Value =< ?LATEST;
is_carried({Type, Items}) when Type =:= table; Type =:= array -> is_carried(Items);
is_carried(_) -> true.

%% A shovel, or who sends a dead letter again, reads by AMQP 0-9-1 what was sent by 1.0, and sends it on as it is.
is_converted(#'P_basic'{type = <<"amqp-1.0">>}, #content{payload_fragments_rev = Fragments}) ->
    netspace_guard_sections:is_body(iolist_to_binary(lists:reverse(Fragments)));
is_converted(_, _) -> true.

is_id(<<"urn:uuid:", Text:36/binary>>) ->
    re:run(Text, "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$", [dollar_endonly]) =/= nomatch;
is_id(_) -> true.

%% -- refusals ------------------------------------------------------------------------
refuse(Method, Name) ->
    rabbit_misc:protocol_error(access_refused, "netspace: ~ts is not for '~ts'", [element(1, Method), shown(Name)]).

refuse_arguments(Method) ->
    rabbit_misc:protocol_error(access_refused, "netspace: ~ts takes no such arguments", [element(1, Method)]).

%% The text goes back to whoever asked, and into the log: whatever is no letter of a name is a question mark there.
shown(Name) ->
    Beginning = binary:part(Name, 0, min(64, byte_size(Name))),
    << <<(if One > 32, One < 127 -> One; true -> $? end)>> || <<One>> <= Beginning >>.
"""


def source() -> str:
    """Return the module's source in Erlang."""
    return SOURCE.replace("@REGISTERED@", REGISTERED).replace("@DEPTH@", str(DEPTH))
