"""Anonymous attestation by files: ``python -m netspace.attestation.daa COMMAND``. Experimental.

Each command writes its result to a file or to stdout, in base64 or JSON. ``docs/anonymous-attestation.md`` shows the
order.
"""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from netspace import files, strict_json
from netspace.attestation import base64_fields
from netspace.attestation.daa import quote
from netspace.attestation.daa.scheme import Credential, IssuerKey, Refusal, Request
from netspace.errors import NetspaceError

MOST = 64 * 1024
PCRS = range(24)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m netspace.attestation.daa", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, work: Callable[[argparse.Namespace], Any], about: str, *arguments: str) -> None:
        one = commands.add_parser(name, help=about, description=about)
        one.set_defaults(work=work)
        for argument in arguments:
            one.add_argument(argument)
        if name == "quote":
            one.add_argument("pcrs", type=int, nargs="+", choices=PCRS, metavar="PCR")
        if name in ("request", "answer", "quote"):
            one.add_argument("--tpm", default="device:/dev/tpmrm0")
            one.add_argument("--lock", type=Path)
        if name in ("quote", "verify"):
            one.add_argument("--basename", default="")
        if name == "verify":
            one.add_argument("--rogues", type=Path)

    command("make", _make, "master: make the issuer's key", "registrar")
    command("request", _request, "host: ask to join")
    command("challenge", _challenge, "master: challenge a host", "registrar", "minion", "request")
    command("answer", _answer, "host: answer the challenge", "challenge")
    command("admit", _admit, "master: issue the credential", "registrar", "minion", "answer")
    command("check", _check, "host: check the credential", "issuer", "credential", "request")
    command("nonce", lambda _: {"nonce": secrets.token_hex(32)}, "verifier: make a nonce")
    command("quote", _quote, "host: quote PCRs anonymously", "issuer", "credential", "nonce")
    command("verify", _verify, "verifier: verify a quote", "issuer", "quote", "nonce", "values")
    options = parser.parse_args(argv)
    try:
        print(json.dumps(options.work(options), indent=1))
    except (NetspaceError, OSError) as err:
        print(f"anonymous attestation: {err}", file=sys.stderr)
        return 1
    return 0


# -- files -----------------------------------------------------------------------------------------
def _json(path: str) -> dict[str, Any]:
    try:
        found = strict_json.loads(files.read(path, MOST))
    except ValueError as err:
        raise Refusal("malformed", f"{path}: {err}") from err
    if not isinstance(found, dict):
        raise Refusal("malformed", f"{path}: not an object")
    return found


def _field(path: str, name: str) -> bytes:
    return base64_fields.octets(_json(path).get(name), 4096, f"{path}: {name}")


def _hex(text: str, what: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as err:
        raise Refusal("malformed", f"{what} is not hex") from err


def _text(**fields: bytes) -> dict[str, str]:
    return {name: base64.b64encode(value).decode() for name, value in fields.items()}


def _issuer(options: argparse.Namespace) -> IssuerKey:
    return IssuerKey.decode(_field(options.issuer, "issuer"))


def _asked(options: argparse.Namespace, issuer: IssuerKey) -> Request:
    nonce = _hex(str(_json(options.nonce).get("nonce")), "nonce")
    return Request(issuer.digest, nonce, options.basename.encode() or None)


# -- the master ------------------------------------------------------------------------------------
def _of(options: argparse.Namespace) -> Any:
    from netspace.attestation.daa.issuer import Issuer
    from netspace.attestation.registrar.registrar import Registrar

    return Issuer(Registrar(Path(options.registrar)))


def _make(options: argparse.Namespace) -> dict[str, str]:
    return _text(issuer=_of(options).make(time.time()).encode())


def _challenge(options: argparse.Namespace) -> dict[str, str]:
    asked = _json(options.request)
    shown = [_field(options.request, name) for name in ("endorsement", "public")]
    blob, encrypted = _of(options).challenge(options.minion, *shown, time.time())
    return {"template": str(asked.get("template")), **_text(blob=blob, encrypted=encrypted)}


def _admit(options: argparse.Namespace) -> dict[str, str]:
    answer = _field(options.answer, "answer")
    return _text(credential=_of(options).admit(options.minion, answer, time.time()))


# -- the host --------------------------------------------------------------------------------------
def _with_tpm(options: argparse.Namespace, work: Callable[[Any, Any], Any]) -> Any:
    from netspace.attestation.daa.member import Member
    from netspace.attestation.minion import self_appraisal
    from netspace.attestation.tpm import device
    from netspace.layout import Layout

    lock = options.lock or self_appraisal.lock_path(Layout())  # as all uses of this host's TPM
    return device.run(options.tpm, lambda opened: work(opened, Member(opened)), lock=lock)


def _request(options: argparse.Namespace) -> dict[str, str]:
    def work(device: Any, member: Any) -> dict[str, str]:
        shown = device.endorsement()
        return {"template": shown.template, **_text(endorsement=shown.public, public=member.public())}

    found: dict[str, str] = _with_tpm(options, work)
    return found


def _answer(options: argparse.Namespace) -> dict[str, str]:
    template = str(_json(options.challenge).get("template"))
    blob, encrypted = (_field(options.challenge, name) for name in ("blob", "encrypted"))
    return _text(answer=_with_tpm(options, lambda _, member: member.activate(template, blob, encrypted)))


def _check(options: argparse.Namespace) -> dict[str, bool]:
    from netspace.attestation.daa.issuer import member_key

    credential = Credential.decode(_field(options.credential, "credential"))
    credential.check(_issuer(options), member_key(_field(options.request, "public")).point)
    return {"good": True}


def _quote(options: argparse.Namespace) -> dict[str, Any]:
    issuer = _issuer(options)
    credential = Credential.decode(_field(options.credential, "credential"))
    pcrs = sorted(set(options.pcrs))
    request = _asked(options, issuer)
    made, values = _with_tpm(options, lambda _, member: member.quote(credential, request, pcrs))
    return {**_text(quote=made), "pcrs": {str(pcr): values[pcr].hex() for pcr in pcrs}}


# -- the verifier ----------------------------------------------------------------------------------
def _verify(options: argparse.Namespace) -> dict[str, Any]:
    issuer = _issuer(options)
    expected = _json(options.values).get("pcrs")
    if not isinstance(expected, dict) or not set(expected) <= {str(pcr) for pcr in PCRS}:
        raise Refusal("malformed", f"{options.values}: 'pcrs' has no values of PCRs")
    values = {int(pcr): _hex(str(value), f"PCR {pcr}") for pcr, value in expected.items()}
    known = _json(str(options.rogues)) if options.rogues else {}
    listed = [known.get(name, []) for name in ("keys", "pseudonyms")]
    if set(known) - {"keys", "pseudonyms"} or not all(isinstance(one, list) for one in listed):
        raise Refusal("malformed", f"{options.rogues}: expected lists 'keys' and 'pseudonyms'")
    rogues = quote.Rogues(quote.keys(listed[0]), quote.pseudonyms(listed[1]))
    made = quote.verify(_field(options.quote, "quote"), issuer, _asked(options, issuer), values, rogues)
    return {"good": True, "pseudonym": made.pseudonym}


if __name__ == "__main__":
    sys.exit(main())
