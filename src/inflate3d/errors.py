"""The one error and the one warning of the package: what is wrong, expected, got, and what to type next."""

from collections.abc import Iterable
from difflib import get_close_matches


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
