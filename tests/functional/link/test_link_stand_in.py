"""The guard's stand-ins for RabbitMQ's modules: the original modules, under new names, work as before."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from netspace.link.broker import admission, frames, plugin

RABBITMQ = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins/*/ebin"

# What each of two ways makes of the parser: the functions of the copy, and what it makes of a value.
PROGRAM = """
{Module, Beam, _} = code:get_object_code(amqp10_binary_parser),
Look = fun(Way) ->
    Name = list_to_atom(atom_to_list(Way) ++ "_copy"),
    {module, Name} = code:load_binary(Name, "copy", netspace_guard_frames:Way(Beam, Module, Name)),
    {lists:sort(Name:module_info(exports)), Name:module_info(module), Name:parse(<<16#a1, 2, 104, 105>>),
     Name:parse_many(<<16#41, 16#42>>, [])}
end,
{Functions, renamed_copy, Text, Both} = Look(renamed),
{Functions, compiled_copy, Text, Both} = Look(compiled),
netspace_guard_frames:stand_in(),
Stands = [lists:sort(M:module_info(exports)) =:= lists:sort(As:module_info(exports)) || {M, As} <-
          [{amqp10_binary_parser, netspace_guard_parser}, {rabbit_amqp_management, netspace_guard_management}]],
Counted = [binary:bin_to_list(netspace_guard_frames:counted(Number, Atom)) ||
           {Number, Atom} <- [{9, <<"mc">>}, {-9, <<"mc">>}, {-9, <<"amqp10_binary_parser">>}]],
{ok, strange, Strange} = compile:forms([{attribute, 1, module, strange}, {attribute, 1, export, [{f, 0}]},
    {function, 1, f, 0, [{clause, 1, [], [], [{call, 1, {remote, 1, {atom, 1, rabbit_misc}, {atom, 1, gone}}, []}]}]}]),
[{rabbit_misc, gone, 0}] = netspace_guard_frames:lacking([Strange]),
Own = [list_to_atom(filename:basename(File, ".beam")) || File <- filelib:wildcard("@OWN@/netspace_*.beam")],
Lacking = netspace_guard_frames:lacking([Code || One <- Own, {_, Code, _} <- [code:get_object_code(One)]]),
Refused = try amqp10_binary_parser:parse(<<16#41>>) catch exit:{'v1_0.error', _, {utf8, Why}, _} -> Why end,
io:format("~s", [json:encode([[tuple_to_list(One) || One <- Lacking], length(Own), Stands,
                          element(1, Text) =:= {utf8, <<"hi">>}, Both, Refused, Counted])]),
init:stop().
"""


def test_modules_go_on_under_other_names(tmp_path: Path) -> None:
    for name, text in plugin.sources().items():
        (tmp_path / name).write_text(text)
    modules = [f"{name}.erl" for name in frames.sources(admission.DEPTH)]
    others = [name for name in plugin.sources() if name.endswith(".erl") and name not in modules]
    compiler = [str(plugin.COMPILER), "+debug_info"]
    subprocess.run([*compiler, "+export_all", *modules], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([*compiler, *others], cwd=tmp_path, check=True, capture_output=True)
    command = f'exec erl -noshell -pa {tmp_path} {RABBITMQ} -eval "$1"'
    program = PROGRAM.replace("@OWN@", str(tmp_path))
    done = subprocess.run(
        ["sh", "-c", command, "sh", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lacking, own, stands, text, values, refused, counted = json.loads(done.stdout)
    # Of this RabbitMQ, the guard lacks no function that it calls.
    assert own == len(modules) + len(others) and lacking == []
    assert stands == [True, True] and text and values == [True, False]
    assert "no number describes" in refused
    # As Erlang 27 and 29 wrote them into RabbitMQ 4.0's and 4.3's modules.
    assert [bytes(one) for one in counted] == [b"\x02mc", b" mc", b"\x08\x14amqp10_binary_parser"]
