"""ed25519's curve in slow plain arithmetic (RFC 8032 section 5.1), to make signatures that no honest signer makes."""

import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, P - 2, P) % P
_ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)

Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    """The sum of two points."""
    (x1, y1), (x2, y2) = a, b
    t = _D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + t, P - 2, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, P - 2, P) % P


def multiply(point: Point, times: int) -> Point:
    """`point` added to itself."""
    total = IDENTITY
    while times:
        if times & 1:
            total = add(total, point)
        point, times = add(point, point), times >> 1
    return total


def encode(point: Point) -> bytes:
    """The canonical 32 bytes of a point."""
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def x_of(y: int) -> int | None:
    """An x for this y, if the curve has one."""
    square = (y * y - 1) * pow(_D * y * y + 1, P - 2, P) % P
    for root in (x := pow(square, (P + 3) // 8, P), x * _ROOT_OF_MINUS_ONE % P):
        if root * root % P == square:
            return root
    return None


def _base() -> Point:
    y = 4 * pow(5, P - 2, P) % P
    x = x_of(y)
    assert x is not None
    return (x if x % 2 == 0 else P - x), y


def _torsion() -> list[Point]:
    """The eight points whose order divides eight: multiples of what is left of a point of full order."""
    for y in range(2, 100):
        x = x_of(y)
        if x is not None:
            generator = multiply((x, y), ORDER)
            if multiply(generator, 4) != IDENTITY:
                return [multiply(generator, times) for times in range(8)]
    raise AssertionError("one in two points has full order")


BASE = _base()
TORSION = _torsion()


def sign(scalar: int, public: bytes, nonce: int, commitment: bytes, message: bytes) -> bytes:
    """S for chosen A and R, honest or not: `scalar` and `nonce` are the discrete logarithms the signer claims."""
    challenge = int.from_bytes(hashlib.sha512(commitment + public + message).digest(), "little")
    return commitment + ((nonce + challenge * scalar) % ORDER).to_bytes(32, "little")
