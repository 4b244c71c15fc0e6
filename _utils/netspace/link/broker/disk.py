"""Module of the broker's plugin that bounds what durable queues keep on the disk of messages that were read.

RabbitMQ 4.0: a queue cuts its log off before the oldest message that wasn't acknowledged. It looks for that place only
after 8,192 entries of any size; with messages of 16 MiB that is 128 GiB. The module makes it look after 64 entries.

RabbitMQ 4.3: a queue takes a snapshot of its state once between 2 and 10 MB were read, but at most once a second. Then
it deletes the files of its log without a waiting message. A file with one waiting message stays whole until the queue
compacts its files, at every 33rd snapshot. So a reader that acknowledges all but one message of each file could make
the broker keep gigabytes. The module makes the queue take a snapshot at each 2 MB, at most ten times a second. It asks
a queue with several files to compact them at every fourth snapshot.
"""

from __future__ import annotations

MODULE = "netspace_guard_disk"
ENTRIES = 64
"""Entries of a quorum queue's log after which it frees unneeded ones; also the entries of a log file."""
WAL = 64 * 1024**2
"""Bytes of the log that all quorum queues share, before their messages go to files of their own."""

_SOURCE = r"""%% Written by netspace: queues free the disk of what was read.
-module(netspace_guard_disk).
-export([set/0, compact/1]).

-define(FILES, 4).   % more than the files of a full mailbox with large messages
-define(DELETED, 4). % deletions of whole files between two compactions

set() ->
    %% 4.0: least milliseconds and entries between two snapshots of a queue; the most entries.
    persistent_term:put(quorum_queue_checkpoint_config, {1000, @ENTRIES@, 666667}),
    %% 4.3: least milliseconds, and bytes that were read; it takes no fewer than two million.
    persistent_term:put(quorum_queue_snapshot_config, {100, 2000000}).

%% Has queues compact their files. Takes and returns, for each queue, how often it had deleted files when it was asked.
%% 4.0 can't do that. The broker would not start with a plain call of a function that isn't there.
compact(Asked) ->
    case erlang:function_exported(ra, trigger_compaction, 1) of
        true ->
            Queues = [{Name, deleted({Name, node()}), maps:get(Name, Asked, 0)}
                      || Queue <- rabbit_amqqueue:list_by_type(rabbit_quorum_queue),
                         {Name, _} <- [amqqueue:get_pid(Queue)]],
            lists:foreach(fun ra:trigger_compaction/1,
                          [{Name, node()} || {Name, Now, Before} <- Queues, Now >= Before + ?DELETED]),
            maps:from_list([{Name, case Now >= Before + ?DELETED of true -> Now; false -> min(Now, Before) end}
                            || {Name, Now, Before} <- Queues]);
        false -> Asked
    end.

%% How often a queue with several files has deleted files.
deleted(Member) ->
    case ra_counters:counters(Member, [num_segments, minor_compactions]) of
        #{num_segments := Files, minor_compactions := Times} when Files > ?FILES -> Times;
        _ -> 0
    end.
"""


def source() -> str:
    """Return the module's source in Erlang."""
    return _SOURCE.replace("@ENTRIES@", str(ENTRIES))
