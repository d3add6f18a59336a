"""The one error and the one warning of the package: what is wrong, expected, got, and what to type next."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any


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


def check_choice(value: object, known: Iterable[str], *, what: str, where: str) -> None:
    """Refuse what is not among the known names.

    Args:
        value: What the user typed.
        known: All allowed names.
        what: What they are names of, in the singular.
        where: Who asks.

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
        expected=", ".join(names),
        got=repr(value),
        fix=f"did you mean {nearest_names(str(value), names)}?",
    )


def list_faults(faults: Iterable[str], shown: int = 8) -> str:
    """Tell the first faults, and how many more there are.

    Example:
        >>> list_faults(["a is missing", "b is missing", "c is missing"], shown=2)
        'a is missing; b is missing; and 1 more'
    """
    every = list(faults)
    more = len(every) - shown
    return "; ".join(every[:shown]) + (f"; and {more} more" if more > 0 else "")


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
