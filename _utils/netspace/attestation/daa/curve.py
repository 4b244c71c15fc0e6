"""Points of the curve BN_P256: y^2 = x^3 + 3 over F_p (G1), and of its twist over F_p2 (G2). Pure.

The point at infinity is None. It is neither encoded nor decoded, because no value of the scheme may be this point.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

from netspace.attestation.daa import fields
from netspace.attestation.daa.fields import F2, N, P

G1: TypeAlias = tuple[int, int]
G2: TypeAlias = tuple[F2, F2]

B = 3
GENERATOR: G1 = (1, 2)
# The generator of ISO/IEC 15946-5 and of FIDO ECDAA.
GENERATOR_2: G2 = (
    (
        0xFE0C3350B4C96C2028560F577C28913ACE1C539A12BF843CD22616B689C09EFB,
        0x04EA66057738AC054DB5AE1C637D813B924DD78E287D03589D269ED34A37E6A2B,
    ),
    (
        0x702046E7C542A3B376770D75124E3E51EFCB24758D615848E909B481BEDC27FF,
        0x0554E3BCD388C29042EEA649297EB29F8B4CBE80821A98B3E01281114AAD049B,
    ),
)
B_2: F2 = fields.scale(fields.XI, B)
SIZE, SIZE_2 = 64, 128
"""Bytes of an encoded point: its coordinates, each of 32 bytes; of G2, real and imaginary part of each."""


# -- G1 ----------------------------------------------------------------------------------------
def on_curve(point: G1) -> bool:
    x, y = point
    return 0 <= x < P and 0 <= y < P and (y * y - x * x * x - B) % P == 0


def add(a: G1 | None, b: G1 | None) -> G1 | None:
    if a is None or b is None:
        return b if a is None else a
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = 3 * a[0] * a[0] * pow(2 * a[1], -1, P)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def negate(a: G1 | None) -> G1 | None:
    return None if a is None else (a[0], -a[1] % P)


def multiply(point: G1 | None, factor: int) -> G1 | None:
    """Return factor * point, by coordinates without an inversion in each step (X/Z^2, Y/Z^3)."""
    factor %= N
    if point is None or factor == 0:
        return None
    px, py = point
    x, y, z = 0, 1, 0
    for bit in f"{factor:b}":
        if z:
            squared = y * y % P
            s = 4 * x * squared % P
            m = 3 * x * x % P
            x, z = (m * m - 2 * s) % P, 2 * y * z % P
            y = (m * (s - x) - 8 * squared * squared) % P
        if bit == "1":
            if not z:
                x, y, z = px, py, 1
                continue
            zz = z * z % P
            h, r = (px * zz - x) % P, (py * zz * z - y) % P
            if h == 0:
                # The same point or its negative: for factors below N, only the last step can meet it.
                return add(_affine(x, y, z), point)
            hh = h * h % P
            hhh, v = h * hh % P, x * hh % P
            x = (r * r - hhh - 2 * v) % P
            y = (r * (v - x) - y * hhh) % P
            z = z * h % P
    return _affine(x, y, z)


def _affine(x: int, y: int, z: int) -> G1 | None:
    if not z:
        return None
    over = pow(z, -1, P)
    return x * over * over % P, y * over * over * over % P


def encode(point: G1) -> bytes:
    return point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big")


def decode(raw: bytes) -> G1:
    """Return the point that *raw* encodes.

    The curve has a prime number of points, so each point on it but infinity is in the group.

    :raises ValueError: *raw* has another length, or isn't a point.
    """
    if len(raw) != SIZE:
        raise ValueError(f"a point has {SIZE} bytes, not {len(raw)}")
    point = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    if not on_curve(point):
        raise ValueError("not a point of BN_P256")
    return point


def hashed(basename: bytes) -> tuple[bytes, G1]:
    """Return a basename's point, and the bytes whose SHA-256, modulo p, is the point's x.

    TPM2_Commit takes these bytes (``s2``) and y, and computes x itself. Nobody knows the point's logarithm.
    """
    for counter in range(256):
        seed = b"netspace-daa/1 basename\0" + bytes([counter]) + hashlib.sha256(basename).digest()
        x = int.from_bytes(hashlib.sha256(seed).digest(), "big") % P
        square = (x * x * x + B) % P
        y = pow(square, (P + 1) // 4, P)
        if y * y % P == square:
            return seed, (x, min(y, P - y))
    raise ValueError("no point for this basename")  # once in 2^256


# -- G2 ----------------------------------------------------------------------------------------
def on_twist(point: G2) -> bool:
    x, y = point
    right = fields.add(fields.multiply(fields.multiply(x, x), x), B_2)
    return all(0 <= part < P for part in (*x, *y)) and fields.multiply(y, y) == right


def slope(a: G2, b: G2) -> F2 | None:
    """Return the slope of the line through two points; None if it is vertical."""
    if a[0] == b[0]:
        if a[1] != b[1] or a[1] == fields.ZERO:
            return None
        return fields.multiply(fields.scale(fields.multiply(a[0], a[0]), 3), fields.invert(fields.scale(a[1], 2)))
    return fields.multiply(fields.subtract(b[1], a[1]), fields.invert(fields.subtract(b[0], a[0])))


def along(a: G2, b: G2, slope: F2) -> G2:
    """Return a + b. The line through both points has the given slope."""
    x = fields.subtract(fields.multiply(slope, slope), fields.add(a[0], b[0]))
    return x, fields.subtract(fields.multiply(slope, fields.subtract(a[0], x)), a[1])


def add_2(a: G2 | None, b: G2 | None) -> G2 | None:
    if a is None or b is None:
        return b if a is None else a
    line = slope(a, b)
    return None if line is None else along(a, b, line)


def multiply_2(point: G2, factor: int) -> G2 | None:
    return fields.repeated(add_2, None, point, factor)


def encode_2(point: G2) -> bytes:
    return b"".join(part.to_bytes(32, "big") for coordinate in point for part in coordinate)


def decode_2(raw: bytes) -> G2:
    """Return the point of G2 that *raw* encodes.

    The twist has other points, too, so it is checked that this one is in the group.

    :raises ValueError: *raw* has another length, or isn't a point of the group.
    """
    if len(raw) != SIZE_2:
        raise ValueError(f"a point of G2 has {SIZE_2} bytes, not {len(raw)}")
    a, b, c, d = (int.from_bytes(raw[start : start + 32], "big") for start in range(0, SIZE_2, 32))
    point = (a, b), (c, d)
    if not on_twist(point) or multiply_2(point, N) is not None:
        raise ValueError("not a point of G2 of BN_P256")
    return point
