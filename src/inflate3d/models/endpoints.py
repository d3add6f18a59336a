"""Inner layers by name: a network runs as far as the last one asked for."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from inflate3d.errors import InflateError, nearest_names


def check_endpoints(names: str | Iterable[str], known: Sequence[str], *, where: str) -> list[str]:
    """List the endpoints asked for, one or several.

    Raises:
        InflateError: The network has no endpoint of such a name.

    Example:
        >>> check_endpoints("pool5", ["conv5b", "pool5"], where="C3D")
        ['pool5']
    """
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InflateError(
            f"there is no endpoint called {', '.join(unknown)}",
            where=f"{where}.endpoints",
            expected=", ".join(known),
            got=repr(unknown),
            fix="did you mean " + "; ".join(nearest_names(name, known) for name in unknown) + "?",
        )
    return wanted


def run_endpoints(
    step: Callable[[str, Tensor], Tensor], x: Tensor, *, wanted: list[str], known: Sequence[str]
) -> dict[str, Tensor]:
    """Run the steps in order up to the last one wanted, and return those wanted, in the order they were asked for."""
    last = max((known.index(name) for name in wanted), default=-1)
    found: dict[str, Tensor] = {}
    for name in known[: last + 1]:
        x = step(name, x)
        if name in wanted:
            found[name] = x
    return {name: found[name] for name in wanted}
