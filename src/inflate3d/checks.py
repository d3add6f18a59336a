"""What passes for a number, a count and a range in arguments and files: a bool does not, nor do NaN and infinity."""

import math
from numbers import Integral, Real


def is_number(value: object) -> bool:
    """Whether it is a finite real number.

    Example:
        >>> is_number(2.5), is_number(float("nan")), is_number(True), is_number("2")
        (True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))


def is_count(value: object, at_most: int = 2**31) -> bool:
    """Whether it is a whole number from 1 to `at_most`.

    Example:
        >>> is_count(7), is_count(0), is_count(2.0), is_count(True), is_count(8, at_most=7)
        (True, False, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= at_most


def is_pair(value: object) -> bool:
    """Whether it is a tuple or list of two numbers.

    Example:
        >>> is_pair((-1.0, 1.0)), is_pair(1), is_pair((0.0, None))
        (True, False, False)
    """
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value))
