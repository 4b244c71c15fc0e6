"""Answers to ``seal``, ``unseal`` and ``sign``, by this host's keys of programs (``attestation.minion.program_keys``).

The keeper calls this: it has root's rights, and knows by its records which image the asking environment runs.
"""

from __future__ import annotations

import msgspec

from netspace import jose
from netspace.attestation.bound_value import MOST, Asker, BoundError, TooWeak
from netspace.attestation.minion import program_keys
from netspace.host.children import Refused
from netspace.host.peer.verbs import seal, sign, unseal
from netspace.layout import Layout


def answer(layout: Layout, environment: str, image: str, arguments: msgspec.Struct) -> msgspec.Struct:
    """Return the answer.

    :param environment: the environment that asks.
    :param image: the digest of its image.
    :raises Refused: the request is refused.
    :raises NetspaceError: the host's keys can't be used.
    """
    who = program_keys.asker(layout, environment, image)
    try:
        return _answer(layout, who, arguments)
    except jose.Unreadable as err:
        raise Refused("arguments-invalid", str(err)) from None
    except BoundError as err:
        raise Refused("sealed-elsewhere", str(err)) from None
    except TooWeak as err:
        raise Refused("not-available", str(err)) from None


def _answer(layout: Layout, who: Asker, arguments: msgspec.Struct) -> msgspec.Struct:
    if isinstance(arguments, seal.Arguments):
        plain = jose.octets(arguments.value, "value")
        if len(plain) > MOST:
            raise Refused("arguments-invalid", f"{len(plain)} bytes; a value has {MOST} at most")
        about, text = program_keys.seal(
            layout, who, plain, image=arguments.image, boot=arguments.boot, at_least=arguments.at_least
        )
        return seal.Answer(text, about.kept_in, about.bound is not None)
    if isinstance(arguments, unseal.Arguments):
        about, plain = program_keys.unseal(layout, who, arguments.sealed)
        return unseal.Answer(jose.text(plain), about.kept_in, about.bound is not None)
    assert isinstance(arguments, sign.Arguments)
    made = program_keys.sign(
        layout,
        who,
        jose.octets(arguments.digest, "digest"),
        image=arguments.image,
        boot=arguments.boot,
        at_least=arguments.at_least,
    )
    if arguments.key is not None and jose.thumbprint(made.key) != arguments.key:
        raise Refused(
            "key-changed", "the program's key is another one now: the image or the boot is, or the host's key"
        )
    return sign.Answer(jose.text(made.signature), made.key, made.kept_in, made.boot)
