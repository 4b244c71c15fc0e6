"""Field arithmetic for the curve BN_P256: F_p2 and F_p12. Pure, and not constant in time.

A verifier computes here with public values only. An issuer's secret numbers never enter these fields.

An element of F_p2 = F_p[i]/(i^2 + 1) is a pair. An element of F_p12 = F_p2[w]/(w^6 - XI) is a tuple of six pairs, the
coefficients of 1, w, ..., w^5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

U = -0x6882F5C030B0A801
"""The parameter from which the curve's primes follow (TCG Algorithm Registry, TPM_ECC_BN_P256; ISO/IEC 15946-5)."""
P = 36 * U**4 + 36 * U**3 + 24 * U**2 + 6 * U + 1
N = 36 * U**4 + 36 * U**3 + 18 * U**2 + 6 * U + 1
"""The number of points of the curve over F_p, a prime."""

F2: TypeAlias = tuple[int, int]
F12: TypeAlias = tuple[F2, F2, F2, F2, F2, F2]
_F6: TypeAlias = tuple[F2, F2, F2]
T = TypeVar("T")

ZERO: F2 = (0, 0)
ONE: F2 = (1, 0)
XI: F2 = (1, 1)
ONE_12: F12 = (ONE, ZERO, ZERO, ZERO, ZERO, ZERO)


# -- F_p2 --------------------------------------------------------------------------------------
def add(a: F2, b: F2) -> F2:
    return (a[0] + b[0]) % P, (a[1] + b[1]) % P


def subtract(a: F2, b: F2) -> F2:
    return (a[0] - b[0]) % P, (a[1] - b[1]) % P


def multiply(a: F2, b: F2) -> F2:
    return (a[0] * b[0] - a[1] * b[1]) % P, (a[0] * b[1] + a[1] * b[0]) % P


def scale(a: F2, k: int) -> F2:
    return a[0] * k % P, a[1] * k % P


def negate(a: F2) -> F2:
    return -a[0] % P, -a[1] % P


def conjugate(a: F2) -> F2:
    return a[0], -a[1] % P


def invert(a: F2) -> F2:
    """Return 1/a.

    :raises ValueError: a is 0.
    """
    norm = pow(a[0] * a[0] + a[1] * a[1], -1, P)
    return a[0] * norm % P, -a[1] * norm % P


def repeated(combine: Callable[[T, T], T], neutral: T, a: T, times: int) -> T:
    """Return *times* of *a*, combined: a power by a multiplication, a multiple by an addition.

    :param neutral: the result for 0 times.
    """
    done = neutral
    for bit in f"{times:b}":
        done = combine(done, done)
        if bit == "1":
            done = combine(done, a)
    return done


def power(a: F2, exponent: int) -> F2:
    return repeated(multiply, ONE, a, exponent)


def _by_xi(a: F2) -> F2:
    return (a[0] - a[1]) % P, (a[0] + a[1]) % P


# -- F_p12 -------------------------------------------------------------------------------------
def multiply_12(a: F12, b: F12) -> F12:
    """Return a*b. Coefficients that are 0 cost nothing, so that a line of a pairing costs half."""
    real, imaginary = [0] * 11, [0] * 11
    for place, (x, y) in enumerate(b):
        if x or y:
            for other, (s, t) in enumerate(a):
                real[place + other] += s * x - t * y
                imaginary[place + other] += s * y + t * x
    folded = []
    for place in range(6):
        x, y = real[place], imaginary[place]
        if place < 5:  # w^6 is XI = 1 + i
            s, t = real[place + 6], imaginary[place + 6]
            x, y = x + s - t, y + s + t
        folded.append((x % P, y % P))
    return _twelve(folded)


def conjugate_12(a: F12) -> F12:
    """Return a^(p^6). That is 1/a, if a is a pairing's value."""
    return (a[0], negate(a[1]), a[2], negate(a[3]), a[4], negate(a[5]))


def frobenius_12(a: F12, times: int = 1) -> F12:
    """Return a^p, or a^(p^times)."""
    for _ in range(times):
        a = _twelve([multiply(conjugate(one), factor) for one, factor in zip(a, FROBENIUS, strict=True)])
    return a


def invert_12(a: F12) -> F12:
    """Return 1/a.

    :raises ValueError: a is 0.
    """
    even, odd = (a[0], a[2], a[4]), (a[1], a[3], a[5])
    squared = _multiply_6(odd, odd)
    # (even + odd*w)(even - odd*w) = even^2 - v*odd^2, where v = w^2
    norm = _subtract_6(_multiply_6(even, even), (_by_xi(squared[2]), squared[0], squared[1]))
    over = _invert_6(norm)
    first, second = _multiply_6(even, over), _multiply_6(odd, over)
    return (first[0], negate(second[0]), first[1], negate(second[1]), first[2], negate(second[2]))


def power_12(a: F12, exponent: int) -> F12:
    return repeated(multiply_12, ONE_12, a, exponent)


def _twelve(parts: list[F2]) -> F12:
    a, b, c, d, e, f = parts
    return a, b, c, d, e, f


# -- F_p6 = F_p2[v]/(v^3 - XI), for inversion -------------------------------------------------------
def _multiply_6(a: _F6, b: _F6) -> _F6:
    (a0, a1, a2), (b0, b1, b2) = a, b
    return (
        add(multiply(a0, b0), _by_xi(add(multiply(a1, b2), multiply(a2, b1)))),
        add(add(multiply(a0, b1), multiply(a1, b0)), _by_xi(multiply(a2, b2))),
        add(add(multiply(a0, b2), multiply(a1, b1)), multiply(a2, b0)),
    )


def _subtract_6(a: _F6, b: _F6) -> _F6:
    return subtract(a[0], b[0]), subtract(a[1], b[1]), subtract(a[2], b[2])


def _invert_6(a: _F6) -> _F6:
    a0, a1, a2 = a
    first = subtract(multiply(a0, a0), _by_xi(multiply(a1, a2)))
    second = subtract(_by_xi(multiply(a2, a2)), multiply(a0, a1))
    third = subtract(multiply(a1, a1), multiply(a0, a2))
    norm = add(multiply(a0, first), _by_xi(add(multiply(a2, second), multiply(a1, third))))
    over = invert(norm)
    return multiply(first, over), multiply(second, over), multiply(third, over)


FROBENIUS = tuple(power(XI, place * (P - 1) // 6) for place in range(6))
"""w^(p-1) to the powers 0 to 5."""
