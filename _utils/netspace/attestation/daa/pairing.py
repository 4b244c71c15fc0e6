"""The optimal ate pairing on BN_P256 (Vercauteren, 2010; final exponentiation by Scott and others, 2009). Pure.

There is no Python library that knows this curve (``docs/written-by-hand.md``). The tests have another pairing, with
another field and another algorithm, to compare with (``tests/support/attestation/tate.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

from netspace.attestation.daa import curve, fields
from netspace.attestation.daa.curve import G1, G2
from netspace.attestation.daa.fields import F2, F12, FROBENIUS, ONE_12, U, multiply_12

_LOOP = abs(6 * U + 2)


def is_one(pairs: Iterable[tuple[G1 | None, G2]]) -> bool:
    """Return whether the product of the pairings of these points is 1. All points must be in their groups."""
    product = ONE_12
    for point, other in pairs:
        if point is not None:
            product = multiply_12(product, _miller(point, other))
    return _exponentiated(product) == ONE_12


def pairing(point: G1, other: G2) -> F12:
    return _exponentiated(_miller(point, other))


def _line(at: G1, on: G2, slope: F2) -> F12:
    """Return the line through *on*, times w^3, at a point of G1. The factor has no influence on the pairing."""
    constant = fields.subtract(fields.multiply(slope, on[0]), on[1])
    return (
        constant,
        fields.ZERO,
        fields.scale(slope, -at[0]),
        (at[1], 0),
        fields.ZERO,
        fields.ZERO,
    )


def _miller(point: G1, other: G2) -> F12:
    value, there = ONE_12, other
    for bit in f"{_LOOP:b}"[1:]:
        value = multiply_12(value, value)
        value, there = _step(value, point, there, there)
        if bit == "1":
            value, there = _step(value, point, there, other)
    # U is negative: -there, and the inverse of the value, for which the conjugate stands after the exponentiation.
    value, there = fields.conjugate_12(value), (there[0], fields.negate(there[1]))
    once = _frobenius(other)
    twice = _frobenius(once)
    value, there = _step(value, point, there, once)
    return _step(value, point, there, (twice[0], fields.negate(twice[1])))[0]


def _step(value: F12, point: G1, there: G2, other: G2) -> tuple[F12, G2]:
    """Return *value* times the line through two points, evaluated at *point*; and the sum of the two."""
    slope = curve.slope(there, other)
    assert slope is not None, "points of the group, which the caller has checked, have no such line here"
    return multiply_12(value, _line(point, there, slope)), curve.along(there, other, slope)


def _frobenius(point: G2) -> G2:
    x, y = (fields.conjugate(one) for one in point)
    return fields.multiply(x, _SHIFT_X), fields.multiply(y, _SHIFT_Y)


_SHIFT_X, _SHIFT_Y = fields.invert(FROBENIUS[2]), fields.invert(FROBENIUS[3])


def _exponentiated(value: F12) -> F12:
    """Return value^((p^12 - 1)/n)."""
    easy = multiply_12(fields.conjugate_12(value), fields.invert_12(value))
    easy = multiply_12(fields.frobenius_12(easy, 2), easy)
    u1 = _to_u(easy)
    u2 = _to_u(u1)
    u3 = _to_u(u2)
    conjugate, frobenius = fields.conjugate_12, fields.frobenius_12
    p1 = frobenius(easy)
    p2 = frobenius(p1)
    y0 = multiply_12(multiply_12(p1, p2), frobenius(p2))
    y1 = conjugate(easy)
    y2 = frobenius(u2, 2)
    y3 = conjugate(frobenius(u1))
    y4 = conjugate(multiply_12(u1, frobenius(u2)))
    y5 = conjugate(u2)
    y6 = conjugate(multiply_12(u3, frobenius(u3)))
    # y0 * y1^2 * y2^6 * y3^12 * y4^18 * y5^30 * y6^36
    first = multiply_12(multiply_12(multiply_12(y6, y6), y4), y5)
    second = multiply_12(multiply_12(y3, y5), first)
    first = multiply_12(first, y2)
    second = multiply_12(multiply_12(second, second), first)
    second = multiply_12(second, second)
    first = multiply_12(second, y1)
    second = multiply_12(second, y0)
    return multiply_12(multiply_12(first, first), second)


def _to_u(value: F12) -> F12:
    return fields.conjugate_12(fields.power_12(value, -U))
