"""SPIFFE IDs of hosts, environments, brokers and endorsers. Pure."""

from __future__ import annotations


def host_id(trust_domain: str, name: str) -> str:
    """Return the SPIFFE ID of a host."""
    return f"spiffe://{trust_domain}/host/{name}"


def spiffe_id(host: str, environment: str | None) -> str:
    """Return the SPIFFE ID of an environment; with None, the SPIFFE ID of the broker.

    :param host: the SPIFFE ID of the host.
    """
    return f"{host}/broker" if environment is None else f"{host}/env/{environment}"


def endorser_id(host: str) -> str:
    """Return the SPIFFE ID of a host's endorser. No account on a broker has this name."""
    return f"{host}/seals"


def domain_of(host: str) -> str:
    """Return the trust domain of a host's SPIFFE ID."""
    return host.removeprefix("spiffe://").partition("/")[0]
