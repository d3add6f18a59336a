"""The one error and the one warning of the package: what is wrong, expected, got, what to type next; and its checks."""

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from numbers import Integral, Real
from typing import Any

NEXT_LINE = "\n            "  # in `got`, below its first line


# All raises fill the same five slots, each on a line of its own: that they look alike is meant.
class InflateError(ValueError):
    """A mistake that the user can mend, told in four lines.

    Args:
        problem: What is wrong, one sentence.
        where: The function, file or argument that found it.
        expected: All allowed values, or the rule.
        got: The offending value with its shape, dtype or unit.
        fix: What to type or change next.

    Example:
        >>> error = InflateError("the clip is too short", where="I3D", expected="9 frames or more", got="8 frames",
        ...                      fix="loop it: inflate3d.clips.sampling.loop_frames(clip, 9)")
        >>> print(error)
        I3D: the clip is too short
          expected: 9 frames or more
          got:      8 frames
          fix:      loop it: inflate3d.clips.sampling.loop_frames(clip, 9)
    """

    def __init__(self, problem: str, *, where: str, expected: str, got: str, fix: str) -> None:
        super().__init__(problem)
        self.problem, self.where, self.expected, self.got, self.fix = problem, where, expected, got, fix

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.problem}\n  expected: {self.expected}\n  got:      {self.got}\n  fix:      {self.fix}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments do not survive the default pickling, and errors cross process borders in data loaders
        return _rebuild, (self.problem, self.where, self.expected, self.got, self.fix)


class InflateWarning(UserWarning):
    """Something was mended on the user's behalf and the result may not be what was meant."""


def _rebuild(problem: str, where: str, expected: str, got: str, fix: str) -> InflateError:
    return InflateError(problem, where=where, expected=expected, got=got, fix=fix)


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Name the (up to) three known names that look most like a mistyped one.

    Example:
        >>> nearest_names("Mixed_5d", ["Mixed_5b", "Mixed_5c", "Logits"])
        'Mixed_5c, Mixed_5b, Logits'
    """
    return ", ".join(get_close_matches(name, list(known), n=3, cutoff=0.0))


def is_number(value: object) -> bool:
    """Whether it is a finite real number.

    Example:
        >>> is_number(2.5), is_number(float("nan")), is_number(10**400), is_number(True), is_number("2")
        (True, False, False, False, False)
    """
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:  # a whole number that no float reaches
        return False


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


def check_choice(value: object, known: Iterable[str], *, what: str, where: str, expected: str = "") -> None:
    """Refuse what is not among the known names.

    Args:
        value: What the user typed.
        known: All allowed names.
        what: What they are names of, in the singular.
        where: Who asks.
        expected: What is allowed, where there is more to say than the names.

    Raises:
        InflateError: The value is not among them.

    Example:
        >>> check_choice("video", ("video", "i3d"), what="preset", where="make_plan")
    """
    names = list(known)
    if isinstance(value, str) and value in names:
        return
    raise InflateError(
        f"there is no such {what}",
        where=where,
        expected=expected or ", ".join(names),
        got=repr(value),
        fix=f"did you mean {nearest_names(str(value), names)}?",
    )


def check_options(
    options: object,
    rules: Mapping[str, tuple[str, bool]],
    *,
    problem: str = "an option is out of range",
    fix: str = "pass what is expected",
) -> None:
    """Refuse options with values that are not allowed, all of them together.

    Args:
        options: A dataclass; what it is called is named as the place.
        rules: For each attribute what is allowed, in words, and whether its value is.
        problem: What is wrong, one sentence.
        fix: What to type where those that are wrong have no default.

    Raises:
        InflateError: A value is not allowed.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Options:
        ...     fps: float = 25.0
        ...     crops: str = "center"
        >>> wrong = Options(fps=-1.0)
        >>> check_options(wrong, {"fps": ("a number above 0", wrong.fps > 0), "crops": ("center", True)})
        Traceback (most recent call last):
        inflate3d.errors.InflateError: Options: an option is out of range: fps
          expected: fps: a number above 0
          got:      fps=-1.0
          fix:      take the default: fps=25.0
    """
    wrong = {name: allowed for name, (allowed, fits) in rules.items() if not fits}
    if not wrong:
        return
    kept = [f"{name}={getattr(type(options), name)!r}" for name in wrong if hasattr(type(options), name)]
    raise InflateError(
        f"{problem}: {', '.join(wrong)}",
        where=type(options).__name__,
        expected="; ".join(f"{name}: {allowed}" for name, allowed in wrong.items()),
        got=", ".join(f"{name}={getattr(options, name)!r:.200}" for name in wrong),
        fix=f"take the default{'s' * (len(kept) > 1)}: {', '.join(kept)}" if kept else fix,
    )


def in_a_line(error: BaseException) -> str:
    """Tell somebody else's error by its class and the first line of what it says.

    Example:
        >>> in_a_line(RuntimeError("no room\\nat byte 7")), in_a_line(KeyError())
        ('RuntimeError: no room', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(line[:200] for line in lines[:1])])


def list_faults(faults: Iterable[str], shown: int = 8, *, between: str = "; ") -> str:
    """Tell the first faults, and how many more there are; `between=NEXT_LINE` puts each on a line of its own.

    Example:
        >>> list_faults(["a is missing", "b is missing", "c is missing"], shown=2)
        'a is missing; b is missing; and 1 more'
    """
    every = list(faults)
    return between.join(every[:shown] + [f"and {len(every) - shown} more"] * (len(every) > shown))


def import_extra(module: str, extra: str, *, where: str, instead: str = "") -> Any:
    """Import a module of an optional package.

    Args:
        module: Its full name.
        extra: The extra of inflate3d that installs it.
        where: What needs it.
        instead: What else the user may do.

    Raises:
        InflateError: The package, or one that it needs, is missing.

    Example:
        >>> import_extra("html.parser", "app", where="the page").HTMLParser.__name__
        'HTMLParser'
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InflateError(
            f"the package {package} is missing",
            where=where,
            expected=f"{package}, which the extra {extra} brings",
            got=str(error),
            fix=f'pip install "inflate3d[{extra}]"' + (f", or {instead}" if instead else ""),
        ) from error


def lacks_package(error: BaseException) -> bool:
    """Tell whether an error is that of `import_extra`: then no file is to blame, and it would come again with the next.

    Example:
        >>> try:
        ...     import_extra("no_such_package", "app", where="the page")
        ... except InflateError as error:
        ...     print(lacks_package(error), lacks_package(ValueError("a file")))
        True False
    """
    return isinstance(error, InflateError) and isinstance(error.__cause__, ImportError)
