"""Module of the broker's plugin that makes RabbitMQ 4.3 handle messages as 4.0 does.

Priorities: a queue of RabbitMQ 4.0 delivers at most two messages of high priority for each other message. A queue of
4.3 delivers all messages of high priority first, so one sender could delay the messages of all others. So under 4.3 the
module gives every message the default priority, and the queue delivers messages in the order of arrival.

Addresses for answers: a request may be sent over AMQP 0-9-1 and read over AMQP 1.0. RabbitMQ 4.0 passes its
``reply_to`` on as the sender wrote it, ``<exchange>/<key>``. RabbitMQ 4.3 takes the text for the name of a queue, and
passes on ``/queues/<exchange>%2F<key>``. The module restores the text of 4.0.

RabbitMQ 4.3 calls a message interceptor (``rabbit_msg_interceptor``) for each message, over all protocols. In RabbitMQ
4.0 the module has no effect: it changes messages only if RabbitMQ has the module of 4.3's queues.
"""

from __future__ import annotations

MODULE = "netspace_guard_messages"

SOURCE = r"""%% Written by netspace: messages have the order and the addresses that they have with RabbitMQ 4.0.
-module(netspace_guard_messages).
-export([start/0, intercept/4]).

-rabbit_boot_step({?MODULE, [
    {description, "netspace: order of messages, addresses for answers"},
    {mfa, {?MODULE, start, []}},
    {requires, rabbit_registry},
    {enables, recovery}]}).

-define(USUAL, 4).    % the priority of a message that names none
-define(ANSWER, 6).   % where a message's properties of AMQP 1.0 have the address for answers

%% A broker whose queues know strict priorities doesn't start without this. Modules of 4.3 are called by a variable:
%% what the guard calls by name must be in each RabbitMQ.
start() ->
    case code:ensure_loaded(rabbit_fifo_pq) of
        {module, _} ->
            {module, Interceptors} = code:ensure_loaded(rabbit_msg_interceptor),
            Ours = [{?MODULE, #{}}],
            ok = Interceptors:remove(Ours),  % of a start before this one in the same emulator
            ok = Interceptors:add(Ours);
        {error, _} -> ok
    end.

%% A message without a priority stays so: with one, it would have one for its reader, too.
intercept(Message, _, incoming, _) ->
    case mc:priority(Message) of
        undefined -> Message;
        _ -> mc:set_annotation(p, ?USUAL, Message)
    end;
intercept(Message, #{protocol := amqp10}, outgoing, _) when element(2, Message) =:= mc_amqpl ->
    addressed(mc:convert(mc_amqp, Message));
intercept(Message, _, outgoing, _) -> Message.

%% RabbitMQ converts no message twice.
addressed(Message) ->
    Parts = [properties(Part) || Part <- tuple_to_list(element(3, Message))],
    setelement(3, Message, list_to_tuple(Parts)).

properties(Part) when element(1, Part) =:= 'v1_0.properties' ->
    case element(?ANSWER, Part) of
        {utf8, <<"/queues/", Quoted/binary>>} ->
            setelement(?ANSWER, Part, {utf8, uri_string:percent_decode(Quoted)});
        _ -> Part
    end;
properties(Part) -> Part.
"""
