"""Evidence of environments with a host appraisal by the verifier, checked by the library and by the example checker."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import types
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import checkout
from support.attestation import appraised_forge as forge
from support.attestation.appraised_forge import ASKED, FORGERIES, FORMS, NONCE, NOW, THUMBPRINT, VERIFIER, Asked, Forge

from netspace import jose
from netspace.attestation import appraised_token, ear, environment_token, host_appraisal
from netspace.attestation.environment_token import Expected
from netspace.attestation.refusals import Refused

KEYS = json.dumps(ear.jwks([VERIFIER.jwk])).encode()


def example() -> ModuleType:
    path = checkout.ROOT / "client/examples/check_appraised_evidence.py"
    spec = importlib.util.spec_from_file_location("check_appraised_evidence", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(path.read_text().splitlines()) <= 200 and "import netspace" not in path.read_text()
    return module


EXAMPLE = example()


def by_library(text: str, asked: Asked, now: float = NOW) -> environment_token.Attested:
    told, _ = appraised_token.verify(
        text, [VERIFIER.jwk], asked.expected, now, minion=asked.minion, minimum=asked.level
    )
    return told


def by_example(text: str, asked: Asked, now: float = NOW) -> dict[str, Any]:
    wanted = {name: getattr(asked.expected, name) for name in ("environment", "host", "image", "configuration", "key")}
    found: dict[str, Any] = EXAMPLE.check(
        text, KEYS, asked.expected.nonce, asked.level, now, minion=asked.minion, **wanted
    )
    return found


@pytest.mark.parametrize("asked", [ASKED, Asked(minion=None, level=1), Asked(Expected(NONCE, "web", "h1"))])
def test_appraised_evidence_has_the_hosts_level(asked: Asked) -> None:
    found = by_library(Forge(claims={"cnf": {"jkt": THUMBPRINT}}).made(), asked)
    assert (found.environment, found.minion, found.level) == ("web", "web1", "L3")
    assert (found.host, found.boot, found.pcrs, found.key) == ("h1", "boot-1", {}, THUMBPRINT)
    assert found.verifier == jose.thumbprint(VERIFIER.jwk)
    told = by_example(Forge(claims={"cnf": {"jkt": THUMBPRINT}}).made(), asked)
    assert told == {name: getattr(found, name) for name in told}


def test_table_has_a_hundred_forgeries() -> None:
    assert len(FORGERIES) >= 100


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_is_refused_with_its_code_by_both(name: str) -> None:
    made, code, asked = FORGERIES[name]
    text = made.made()
    with pytest.raises(Refused) as refused:
        by_library(text, asked)
    assert refused.value.code == code, refused.value
    with pytest.raises(EXAMPLE.Refused):
        by_example(text, asked)


@pytest.mark.parametrize("name", FORMS)
def test_claim_of_another_form_is_refused_with_its_code(name: str) -> None:
    made, code, asked = FORMS[name]
    with pytest.raises(Refused) as refused:
        by_library(made.made(), asked)
    assert refused.value.code == code


def test_times_of_word_and_token_both_count() -> None:
    text = Forge().made()
    by_library(text, ASKED, NOW + 300)
    for now, code in (
        (NOW + 301, "token-expired"),
        (NOW + 3601, "appraisal-expired"),
        (NOW - 400, "appraisal-expired"),
    ):
        with pytest.raises(Refused) as refused:
            by_library(text, ASKED, now)
        assert refused.value.code == code
        with pytest.raises(EXAMPLE.Refused):
            by_example(text, ASKED, now)


def test_host_name_alone_identifies_no_host() -> None:
    asked = Asked(Expected(NONCE, "web", "h1"), None)
    with pytest.raises(ValueError, match="doesn't vouch for PCRs"):
        by_library(Forge().made(), asked)
    with pytest.raises(ValueError, match="doesn't vouch for PCRs"):
        by_library(Forge().made(), Asked(Expected(NONCE, "web", pcrs={7: bytes(32)})))
    with pytest.raises(EXAMPLE.Refused, match="needs the minion's"):
        by_example(Forge().made(), asked)


def test_word_with_a_verifiers_signature_alone_is_made() -> None:
    with pytest.raises(TypeError, match="only check"):
        host_appraisal.Appraised("web1", 5, "b", {}, "web", 1, "", 0, 0, None)


def test_word_is_valid_for_a_day_at_most() -> None:
    key = jose.jwk(forge.TOKEN.public_key())
    made = host_appraisal.make(VERIFIER, "web1", 3, "b", key, ("web", 1), NOW, NOW + 30 * 86400)
    assert host_appraisal.check(made, [VERIFIER.jwk], NOW).expires == NOW + 86400


def test_word_that_the_verifier_replaced_is_refused() -> None:
    _, told = appraised_token.verify(Forge().made(), [VERIFIER.jwk], ASKED.expected, NOW, minion="web1", minimum=3)
    thumbprint = jose.thumbprint(told.key)
    now = {"token_key": [thumbprint, "boot-1"], "boot": "boot-1"}
    appraised_token.check_current(told, now, 3)
    appraised_token.check_current(told, now, 5)
    for record, level in (
        (None, 3),
        ({**now, "boot": "boot-2"}, 3),
        ({**now, "token_key": ["x", "boot-1"]}, 3),
        ({**now, "token_key": None}, 3),
        (now, 2),
        (now, 0),
    ):
        with pytest.raises(Refused) as refused:
            appraised_token.check_current(told, record, level)
        assert refused.value.code == "appraisal-outdated"


def test_no_changed_byte_of_appraised_evidence_is_accepted() -> None:
    text = Forge().made()
    own_word = text.index('"host-key"'), text.index('"token"')  # the host's own statement isn't needed
    for at in (one for one in range(0, len(text), 7) if not own_word[0] <= one < own_word[1]):
        changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        with pytest.raises(Refused):
            by_library(changed, ASKED)
        with pytest.raises(EXAMPLE.Refused):
            by_example(changed, ASKED)


# -- checks that are taken out ------------------------------------------------------------------
CHECKED: tuple[tuple[ModuleType, str], ...] = (
    (appraised_token, "verify"),
    (host_appraisal, "check"),
    (environment_token, "answered"),
    (environment_token, "claims_of"),
    (environment_token, "parts"),
)


class _Without(ast.NodeTransformer):
    """Remove the check with a given number: an ``if`` that contains only the ``raise`` of a refusal."""

    def __init__(self, number: int) -> None:
        self.left, self.text = number, ""

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and "ValueError" not in ast.unparse(node):
            self.left -= 1
            if self.left == -1:
                self.text = ast.unparse(node.test)
                return ast.copy_location(ast.Pass(), node)
        return node


def without(module: ModuleType, name: str, number: int) -> tuple[str, Callable[..., Any]] | None:
    """Return the condition of a function's check, and the function without the check; None if there is none."""
    tree = ast.parse(inspect.getsource(getattr(module, name)))
    taking = _Without(number)
    tree = ast.fix_missing_locations(taking.visit(tree))
    if not taking.text:
        return None
    space = dict(vars(module))
    exec(compile(tree, f"<{name} without a check>", "exec"), space)
    made = space[name]
    assert isinstance(made, types.FunctionType)
    return taking.text, made


def checks() -> Iterator[tuple[ModuleType, str, str, Callable[..., Any]]]:
    for module, name in CHECKED:
        number = 0
        while (found := without(module, name, number)) is not None:
            yield module, name, *found
            number += 1


@pytest.mark.parametrize(
    ("module", "name", "text", "made"), [pytest.param(*one, id=f"{one[1]}: {one[2]}"[:100]) for one in checks()]
)
def test_check_that_is_taken_out_lets_a_forgery_pass(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, text: str, made: Callable[..., Any]
) -> None:
    """Without any one check, a forgery is accepted, breaks a later reader, or is refused for a wrong reason."""
    monkeypatch.setattr(module, name, made)
    for one, code, asked in (*FORGERIES.values(), *FORMS.values()):
        try:
            by_library(one.made(), asked)
        except Refused as err:
            if err.code == code:
                continue
        except Exception:
            return
        return
    pytest.fail(f"no forgery needs the check {text!r} in {name}")
