"""Replacement of epmd (Erlang's port mapper), as a module of the broker's plugin.

An Erlang node registers its name and port at epmd, a process that every local user can reach. RabbitMQ doesn't start
if another process has already registered its name there. netspace's node has one fixed port, so this module returns
that port and needs no other process. RabbitMQ's command-line tools are started with the same module.

https://www.erlang.org/doc/apps/erts/alt_disco.html
"""

from __future__ import annotations

from pathlib import Path

MODULE = "netspace_guard_mapper"

SOURCE = r"""%% Written by netspace: the one node that there is has the port that -erl_epmd_port says.
-module(netspace_guard_mapper).
-export([start_link/0, register_node/2, register_node/3, port_please/2, port_please/3, address_please/3,
         listen_port_please/2, names/0, names/1]).

-define(VERSION, 6).  % of the distribution's protocol: since OTP 23

start_link() -> ignore.

%% What tells one life of a node from another; 0 to 3 mean something else.
register_node(Name, Port) -> register_node(Name, Port, inet).
register_node(_, _, _) -> {ok, 4 + erlang:system_time() rem (16#FFFFFFFF - 4)}.

port_please(Name, Host) -> port_please(Name, Host, infinity).
port_please(_, _, _) -> {port, port(), ?VERSION}.

address_please(_, _, _) -> {ok, {127, 0, 0, 1}, port(), ?VERSION}.

%% Whoever starts a node says where it listens: kernel's inet_dist_listen_min.
listen_port_please(_, _) -> {ok, 0}.

names() -> names("localhost").
names(_) -> {ok, []}.

port() ->
    {ok, [[Port]]} = init:get_argument(erl_epmd_port),
    list_to_integer(Port).
"""


def arguments(folder: Path, port: int) -> str:
    """Return the Erlang arguments of a node, or of a command-line tool for it.

    :param folder: the folder of the compiled module.
    :param port: the node's distribution port.
    """
    return f"-start_epmd false -pa {folder} -epmd_module {MODULE} -erl_epmd_port {port}"
