"""Adapters made on the spot for types that have none of their own: subclasses, and layers known by their names."""

from typing import Any

from torch import nn

from inflate3d.inflation.adapters import ADAPTERS, Adapted

# What a subclass may define and still run as its parent does
HARMLESS = {
    "__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__",
    "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__constants__",
    "extra_repr", "reset_parameters",
}  # fmt: skip
PACKAGES_BY_NAME = ("transformers.", "segmentation_models_pytorch.")


def derived_adapter(type2d: type[nn.Module]) -> type[Adapted] | None:
    """Make the class that takes over layers of this type, if they run as layers of a known type do.

    Example:
        >>> class Stem(nn.Conv2d):
        ...     def __init__(self, channels):
        ...         super().__init__(channels, 8, 7)
        >>> class Odd(nn.Conv2d):
        ...     def forward(self, x):
        ...         return super().forward(x).relu()
        >>> derived_adapter(Stem).__name__, derived_adapter(Odd)
        ('InflatedConv2d_Stem', None)
    """
    if issubclass(type2d, Adapted):
        return None
    parent = _parent_by_name(type2d) or _parent_by_descent(type2d)
    return derive(parent, type2d) if parent else None


def _parent_by_name(type2d: type[nn.Module]) -> type[Adapted] | None:
    if not type2d.__module__.startswith(PACKAGES_BY_NAME):
        return None
    from inflate3d.inflation.adapters_zoo import BY_NAME  # noqa: PLC0415 - for the users of these packages

    for package, adapters in BY_NAME.items():
        for ending, adapter in adapters.items():
            if type2d.__module__.startswith(package) and type2d.__name__.endswith(ending):
                return adapter
    return None


def _parent_by_descent(type2d: type[nn.Module]) -> type[Adapted] | None:
    """Find the adapter of the nearest known class above, if no class in between changes how it runs."""
    known = next((above for above in type2d.__mro__ if above in ADAPTERS), None)
    if known is None:
        return None
    between = type2d.__mro__[: type2d.__mro__.index(known)]
    own = {name: value for cls in between for name, value in vars(cls).items() if name not in HARMLESS}
    # parametrizations hide the weight behind a property
    changed = any(n.startswith("__") or hasattr(known, n) or isinstance(value, property) for n, value in own.items())
    return None if changed else ADAPTERS[known]


def derive(adapter: type[Adapted], type2d: type[nn.Module]) -> type[Adapted]:
    """Make, and register, the class that takes over layers of a type as an adapter takes over those of another."""
    if type2d in ADAPTERS:
        return ADAPTERS[type2d]

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        made = object.__reduce_ex__(self, protocol)
        assert isinstance(made, tuple)
        # a class made on the spot cannot be found by its name, but made again
        return _new, (adapter, type2d), *made[2:]

    name = f"{adapter.__name__}_{type2d.__name__}"
    derived = type(name, (adapter, type2d), {"__reduce_ex__": reduce, "__doc__": adapter.__doc__})
    ADAPTERS[type2d] = derived
    return derived


def _new(adapter: type[Adapted], type2d: type[nn.Module]) -> nn.Module:
    derived = derive(adapter, type2d)
    layer: nn.Module = derived.__new__(derived)
    return layer
