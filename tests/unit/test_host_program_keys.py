"""``seal``, ``unseal`` and ``sign`` as the keeper answers them, on a host without a TPM."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netspace import jose
from netspace.attestation import bound_value
from netspace.attestation.bound_value import Asker
from netspace.environment import record as records
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.host import child_records, keeper, program_keys
from netspace.host.child_records import Run
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.spec import parse

VERBS = ["seal", "unseal", "sign"]
DECLARED = {
    "environments": {
        name: {"image": "tar:/x.tar", "command": ["/bin/true"], "host": verbs}
        for name, verbs in {"web": VERBS, "till": VERBS, "aid": ["whoami"]}.items()
    }
}
VALUE = jose.text(b"a value")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    layout = Layout(root=tmp_path)
    layout.state.mkdir(parents=True)
    for name in DECLARED["environments"]:
        record(layout, name, "a")
    return layout


def record(layout: Layout, name: str, image: str) -> None:
    spec = parse.declaration(DECLARED).environments[name]
    made = Image(image * 64, "i", Defaults())
    records.write(layout, name, records.Record(spec, spec.state, 1 << 20, made, "c", "r", {}))


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    """The runs of the environments' programs, which began with the boot."""
    found = {name: Run("boot", number, 0) for number, name in enumerate(DECLARED["environments"], 2)}
    monkeypatch.setattr(child_records, "run_of", lambda _, name: found.get(name))
    return found


@pytest.fixture
def kept(layout: Layout) -> keeper.Keeper:
    host_peer.folder(layout).mkdir(parents=True)
    return keeper.Keeper(layout, os.getuid())


def ask(kept: keeper.Keeper, verb: str, asker: str = "web", **arguments: Any) -> Any:
    """Return the answer to a request, or the code of its refusal."""
    body = {"id": 1, "asker": asker, "verb": verb, "at": 0.0, "arguments": arguments}
    told = msgspec.json.decode(kept.answer(json.dumps(body).encode()))
    return told["answer"] if told["answer"] is not None else told["code"]


def test_value_is_opened_for_its_environment_and_image(kept: keeper.Keeper, layout: Layout) -> None:
    made = ask(kept, "seal", value=VALUE)
    assert (made["kept_in"], made["boot"]) == ("file", False)
    assert ask(kept, "unseal", sealed=made["sealed"]) == {"value": VALUE, "kept_in": "file", "boot": False}
    assert ask(kept, "unseal", "till", sealed=made["sealed"]) == "sealed-elsewhere"
    assert ask(kept, "unseal", "aid", sealed=made["sealed"]) == "verb-not-permitted"
    any_image = ask(kept, "seal", value=VALUE, image=False)["sealed"]
    record(layout, "web", "b")  # an update
    assert ask(kept, "unseal", sealed=made["sealed"]) == "sealed-elsewhere"
    assert ask(kept, "unseal", sealed=any_image)["value"] == VALUE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asker, "context", lambda self, use, image: use.encode())
        text = ask(kept, "seal", value=VALUE)["sealed"]
        assert ask(kept, "unseal", "till", sealed=text)["value"] == VALUE, "the binding is what refuses"


def test_signature_is_by_the_key_that_was_told(kept: keeper.Keeper, layout: Layout) -> None:
    digest = jose.text(hashlib.sha256(b"text").digest())
    mine = ask(kept, "sign", digest=digest)
    thumbprint = jose.thumbprint(mine["key"])
    assert ask(kept, "sign", digest=digest, key=thumbprint)["key"] == mine["key"]
    assert ask(kept, "sign", "till", digest=digest, key=thumbprint) == "key-changed"
    record(layout, "web", "b")
    assert ask(kept, "sign", digest=digest, key=thumbprint) == "key-changed"
    assert ask(kept, "sign", digest=digest, image=False)["key"] != ask(kept, "sign", digest=digest)["key"]


def bad_requests() -> Iterator[tuple[str, dict[str, Any]]]:
    digest = jose.text(bytes(32))
    for value in ("=", "A A", "AB", "é", 7, None, "A" * 5463, jose.text(bytes(bound_value.MOST + 1))):
        yield "seal", {"value": value}
    for at_least in ("none", "", None, 1):
        yield "seal", {"value": VALUE, "at_least": at_least}
    yield "seal", {"value": VALUE, "image": 1}
    yield "seal", {"value": VALUE, "environment": "till"}
    yield "seal", {}
    for sealed in (None, 7, "A" * 8193, "a+b", "a\n"):
        yield "unseal", {"sealed": sealed}
    for wrong in (digest[:-1], digest + "A", digest[:-1] + "B", 7, None):
        yield "sign", {"digest": wrong}
    yield "sign", {"digest": digest, "key": "short"}


@pytest.mark.parametrize(("verb", "arguments"), list(bad_requests()))
def test_bad_arguments_are_refused_with_their_code(verb: str, arguments: dict[str, Any], kept: keeper.Keeper) -> None:
    assert ask(kept, verb, **arguments) == "arguments-invalid"


def test_weaker_holder_is_refused_before_its_use(kept: keeper.Keeper, layout: Layout) -> None:
    for at_least in ("token", "tpm"):
        assert ask(kept, "seal", value=VALUE, at_least=at_least) == "not-available"
    assert not list(layout.state.rglob("program-key.json"))


def test_text_that_was_never_sealed_opens_nothing(kept: keeper.Keeper) -> None:
    good = ask(kept, "seal", value=VALUE)["sealed"]
    for text in ("", "A", good[:-1], good[4:], good + "AAAA", good[:20] + good[24:]):
        assert ask(kept, "unseal", sealed=text) == "sealed-elsewhere", text


def test_request_of_an_earlier_program_uses_no_key(
    kept: keeper.Keeper, layout: Layout, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program's requests may wait until its environment runs another image, whose key they must not use."""
    digest = jose.text(bytes(32))
    sealed = ask(kept, "seal", value=VALUE)["sealed"]
    wanted: dict[str, dict[str, Any]] = {
        "seal": {"value": VALUE},
        "unseal": {"sealed": sealed},
        "sign": {"digest": digest},
    }
    runs["web"] = Run("boot", 9, 100)  # one second after these requests came
    assert {ask(kept, verb, **given) for verb, given in wanted.items()} == {"not-available"}
    del runs["web"]
    assert {ask(kept, verb, **given) for verb, given in wanted.items()} == {"not-available"}
    monkeypatch.setattr(keeper, "run_that_asked", lambda *_: None)
    assert ask(kept, "unseal", sealed=sealed)["value"] == VALUE, "this check is what refuses"


def test_token_that_never_answers_keeps_the_keeper_free(kept: keeper.Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, free, asked = program_keys.answer, threading.Event(), list[str]()

    def never(layout: Layout, environment: str, image: str, arguments: msgspec.Struct) -> msgspec.Struct:
        asked.append(environment)
        assert free.wait(60)
        return answer(layout, environment, image, arguments)

    monkeypatch.setattr(program_keys, "answer", never)
    monkeypatch.setattr(keeper, "PATIENCE", 0.1)
    assert [ask(kept, "seal", name, value=VALUE) for name in ("web", "till")] == ["not-available"] * 2
    assert asked == ["web"], "one thread at most hangs"
    assert kept.settle() is None
    free.set()
    assert kept._using is not None and kept._using.end(60)
    assert ask(kept, "seal", "till", value=VALUE)["kept_in"] == "file"


def test_keeper_that_is_to_end_waits_for_no_key(kept: keeper.Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(program_keys, "answer", lambda *_: free.wait(60))
    kept.over = True
    assert ask(kept, "seal", value=VALUE) == "not-available"
    assert kept._using is not None and not kept._using.end(0)
    free.set()
