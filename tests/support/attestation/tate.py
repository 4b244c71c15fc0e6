"""A second pairing on BN_P256, to compare with the library's: the Tate pairing, by the textbook, without shortcuts.

It shares nothing with the library but the integers that a point is written with. F_p12 is F_p[z]/(z^12 - 2z^6 + 2) here
(z^6 = 1 + i), points are affine over that field, Miller's loop runs over the group's order, and the last exponent is
(p^12 - 1)/n, written out.
"""

from __future__ import annotations

from typing import TypeAlias

P = 0xFFFFFFFFFFFCF0CD46E5F25EEE71A49F0CDC65FB12980A82D3292DDBAED33013
N = 0xFFFFFFFFFFFCF0CD46E5F25EEE71A49E0CDC65FB1299921AF62D536CD10B500D

Element: TypeAlias = tuple[int, ...]
Point: TypeAlias = tuple[int, int]
Twisted: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
ONE: Element = (1, *[0] * 11)


def multiply(a: Element, b: Element) -> Element:
    product = [0] * 23
    for i, x in enumerate(a):
        if x:
            for j, y in enumerate(b):
                product[i + j] += x * y
    for place in range(22, 11, -1):  # z^12 = 2z^6 - 2
        product[place - 6] += 2 * product[place]
        product[place - 12] -= 2 * product[place]
    return tuple(value % P for value in product[:12])


def power(a: Element, exponent: int) -> Element:
    done = ONE
    while exponent:
        if exponent & 1:
            done = multiply(done, a)
        a = multiply(a, a)
        exponent >>= 1
    return done


def _of_f2(value: tuple[int, int], shift: int) -> Element:
    """Return (a + b*i) * z^shift, where i = z^6 - 1."""
    a, b = value
    found = [0] * 12
    found[0], found[6] = (a - b) % P, b
    moved = tuple(found)
    for _ in range(shift % 12):
        moved = multiply(moved, (0, 1, *[0] * 10))
    return moved


def _untwisted(point: Twisted) -> tuple[Element, Element]:
    """Return a point of the twist as a point of the curve over F_p12: (x/z^2, y/z^3)."""
    # z^12 = 2z^6 - 2, so z * (z^5 - z^11/2) = 1.
    inverse = tuple({5: 1, 11: -pow(2, -1, P) % P}.get(place, 0) for place in range(12))
    assert multiply(inverse, (0, 1, *[0] * 10)) == ONE
    x, y = _of_f2(point[0], 0), _of_f2(point[1], 0)
    return multiply(x, power(inverse, 2)), multiply(y, power(inverse, 3))


def pairing(point: Point, other: Twisted) -> Element:
    """Return the reduced Tate pairing of a point of G1 and a point of G2."""
    x, y = _untwisted(other)
    value, (tx, ty) = ONE, point
    for bit in f"{N:b}"[1:]:
        value = multiply(value, value)
        slope = 3 * tx * tx * pow(2 * ty, -1, P) % P
        value = multiply(value, _line(x, y, tx, ty, slope))
        tx, ty = _along(tx, ty, tx, slope)
        if bit == "1":
            if tx == point[0]:  # the last step: a vertical line, which the exponent makes 1
                break
            slope = (ty - point[1]) * pow(tx - point[0], -1, P) % P
            value = multiply(value, _line(x, y, tx, ty, slope))
            tx, ty = _along(tx, ty, point[0], slope)
    return power(value, (P**12 - 1) // N)


def _line(x: Element, y: Element, tx: int, ty: int, slope: int) -> Element:
    """Return the line through (tx, ty) with this slope, at (x, y): y - ty - slope*(x - tx)."""
    found = [(one - slope * two) % P for one, two in zip(y, x, strict=True)]
    found[0] = (found[0] - ty + slope * tx) % P
    return tuple(found)


def _along(tx: int, ty: int, other: int, slope: int) -> Point:
    x = (slope * slope - tx - other) % P
    return x, (slope * (tx - x) - ty) % P


# -- the curve over F_p, by chords and tangents ----------------------------------------------------
def add(a: Point | None, b: Point | None) -> Point | None:
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    slope = 3 * a[0] ** 2 * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    return _along(*a, b[0], slope % P)


def times(point: Point | None, factor: int) -> Point | None:
    done: Point | None = None
    for bit in f"{factor % N:b}":
        done = add(done, done)
        if bit == "1":
            done = add(done, point)
    return done


def is_credential(issuer: tuple[Twisted, Twisted], points: tuple[Point, Point, Point, Point]) -> bool:
    """Return whether points R, S, T, W satisfy the verifier's equations for an issuer's X and Y.

    They are e(R, Y) = e(S, G2) and e(T, G2) = e(R + W, X).
    """
    (x, y), (r, s, t, w) = issuer, points
    both = add(r, w)
    assert both is not None
    return pairing(r, y) == pairing(s, GENERATOR_2) and pairing(t, GENERATOR_2) == pairing(both, x)


GENERATOR_2: Twisted = (
    (
        0xFE0C3350B4C96C2028560F577C28913ACE1C539A12BF843CD22616B689C09EFB,
        0x04EA66057738AC054DB5AE1C637D813B924DD78E287D03589D269ED34A37E6A2B,
    ),
    (
        0x702046E7C542A3B376770D75124E3E51EFCB24758D615848E909B481BEDC27FF,
        0x0554E3BCD388C29042EEA649297EB29F8B4CBE80821A98B3E01281114AAD049B,
    ),
)
