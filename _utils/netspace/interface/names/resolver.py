"""Questions to the host's configured resolver, by dnspython. No environment's network or files can affect the answers.

dnspython gives each question a random number and port, ignores answers that don't fit, follows at most 16 CNAMEs, and
repeats a question by TCP if the answer was cut.
"""

from __future__ import annotations

from pathlib import Path

from netspace.errors import NetspaceError
from netspace.interface.names.answers import MOST, Code

SECONDS = 10.0
"""Time for one question, over all resolvers and repetitions."""
_TYPES = {"ipv4": "A", "ipv6": "AAAA"}
_SAID = 200  # characters of a reason that are kept


class UnansweredError(NetspaceError):
    """Error: a question got no usable answer."""

    def __init__(self, code: Code, why: str) -> None:
        self.code = code
        self.why = "".join(one if one.isprintable() else " " for one in why)[:_SAID]
        super().__init__(self.why)


def ask(name: str, family: str, configuration: Path) -> dict[str, float]:
    """Return the addresses of *name*, each with its time to live in seconds; empty if it has none of this family.

    :param family: ``ipv4`` or ``ipv6``.
    :param configuration: the host's resolv.conf(5). Its search list isn't used, because a name in a rule is always
        fully qualified.
    :raises UnansweredError: there is no usable answer.
    """
    import dns.exception
    import dns.name
    import dns.resolver

    try:
        resolver = dns.resolver.Resolver(str(configuration))
        full = dns.name.from_text(name)  # without an origin it is absolute
        answer = resolver.resolve(full, _TYPES[family], raise_on_no_answer=False, search=False, lifetime=SECONDS)
    except dns.resolver.NXDOMAIN:
        raise UnansweredError("name-absent", f"the resolver says that there is no {name}") from None
    except dns.resolver.NoResolverConfiguration as err:
        raise UnansweredError("name-unanswered", f"{configuration}: {err}") from None
    except (dns.exception.DNSException, OSError, ValueError) as err:
        raise UnansweredError("name-unanswered", f"no resolver answers: {err}") from None
    if answer.rrset is None:
        return {}
    if len(answer.rrset) > MOST:
        raise UnansweredError("name-refused", f"it has {len(answer.rrset)} addresses; at most {MOST} are accepted")
    ttl = float(answer.chaining_result.minimum_ttl)  # of the addresses and of all CNAMEs
    return {str(one.address): ttl for one in answer.rrset}
