"""Declared secrets: a declaration names where they are, and never has one itself."""

from __future__ import annotations

from typing import Any

import pytest

from netspace.environment import record
from netspace.environment.comparison import differences
from netspace.environment.runtimes import USUAL
from netspace.errors import SpecError
from netspace.spec import parse, secrets
from netspace.spec.types import Environment, Secret

WORD = "correct horse"


def declared(given: Any, **more: Any) -> Environment:
    found = parse.declaration({"environments": {"web": {"image": "tar:/srv/a.tar", "secrets": given, **more}}})
    return found.environments["web"]


def test_text_is_a_source_with_the_least_demand() -> None:
    found = secrets.of(declared({"db": "sdb://vault/db?password", "k": {"source": "sdb://v/k", "minimum": "L3"}}))
    assert found == {"db": Secret("sdb://vault/db?password", "L1"), "k": Secret("sdb://v/k", "L3")} or found == {
        "db": Secret(source="sdb://vault/db?password"),
        "k": Secret(source="sdb://v/k", minimum="L3"),
    }


@pytest.mark.parametrize(
    "given",
    [
        {"db": WORD},
        {"db": f"sdb://v/{WORD}"},
        {"db": "sdb://v/"},
        {"db": "sdb:///k"},
        {"db": "sdb://v/" + "k" * 513},
        {"db": f"https://{WORD}"},
        {"DB": "sdb://v/k"},
        {"../db": "sdb://v/k"},
        {"d" * 49: "sdb://v/k"},
        {"db": 7},
        {"db": None},
        {"db": [WORD]},
        {"db": {"minimum": "L0"}},
        {"db": {"minimum": "L6"}},
        {"db": {"value": WORD}},
        {"db": {"source": "sdb://v/k", "sealed": "{}"}},
        {"db": {"sealed": WORD}},
        {"db": {"sealed": "{" + "x" * secrets.SEALED + "}"}},
        {f"s{number}": "sdb://v/k" for number in range(secrets.MOST + 1)},
    ],
)
def test_wrong_secret_is_refused_and_not_repeated(given: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        declared(given)
    assert WORD not in str(caught.value) and "secrets" in str(caught.value)


def test_kernel_has_no_secrets() -> None:
    with pytest.raises(SpecError, match="secrets"):
        parse.declaration({"environments": {"web": {"kernel": "/srv/app", "secrets": {"db": "sdb://v/k"}}}})


def test_tenant_names_no_secrets() -> None:
    quota = {"environments": 3, "memory": "1G", "cpus": 3, "pids": 400}
    mine = {"acme-web": {"image": "tar:/srv/a.tar", "secrets": {"db": "sdb://v/k"}}}
    part = {"quota": quota, "images": ["tar:/srv/*"], "environments": mine}
    with pytest.raises(SpecError, match="acme-web:secrets"):
        parse.declaration({"tenants": {"acme": part}})


def test_record_has_names_and_sources_and_no_ciphertext() -> None:
    spec = declared({"db": {"sealed": "{}"}, "k": "sdb://v/k"})
    named = secrets.named(secrets.of(spec))
    assert all(isinstance(one, Secret) and one.sealed is None for one in named.values()) and set(named) == {"db", "k"}


def test_change_of_secrets_needs_no_restart() -> None:
    assert "secrets" in differences.LIVE
    plain, with_secret = declared({}), declared({"db": "sdb://v/k"})
    assert record.fingerprint(plain, None, USUAL) == record.fingerprint(with_secret, None, USUAL)
