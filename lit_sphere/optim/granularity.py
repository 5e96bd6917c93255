"""What a norm, a sphere or an accumulator belongs to, and the names that it had before."""

import warnings
from typing import Any, Literal, TypeVar

Granularity = Literal["joint", "tensor", "filter"]
"""All scale-invariant tensors together; each tensor, or those that are scale-invariant jointly; each filter."""

GranularityT = TypeVar("GranularityT", bound=str)


def granularity_of(owner: str, granularity: GranularityT, default: str, **old: Any) -> GranularityT:
    """Choose between ``granularity`` and the argument's old name.

    Args:
        owner: Class, to be named in messages.
        granularity: As given.
        default: Of ``granularity``.
        **old: The argument of the old name; None where it is not given.

    Returns:
        The granularity; ``group`` of old is ``tensor``.

    Raises:
        ValueError: If both are given.
    """
    ((name, value),) = old.items()
    if value is None:
        return granularity
    if granularity != default:
        raise ValueError(f"{owner}: granularity and {name}, its old name, are both given; leave {name} out")
    warnings.warn(f"{owner}: {name} is called granularity now, and group is called tensor", FutureWarning, stacklevel=3)
    return present_value(value)  # type: ignore[no-any-return]


def present_value(value: Any) -> Any:
    """Give what an old value is called now."""
    return "tensor" if value == "group" else value


def rename_options(param_groups: list[dict[str, Any]]) -> None:
    """Give the options of an optimizer's parameter groups, of an old checkpoint, their present names in place.

    Args:
        param_groups: Of :class:`~lit_sphere.optim.SphereSGD` or :class:`~lit_sphere.optim.AdaGradG`.
    """
    for group in param_groups:
        for old, new in (("spheres", "granularity"), ("left_spheres", "left_granularity"), ("per", "granularity")):
            if old in group:
                group[new] = present_value(group.pop(old))


def sphere_granularity(param_group: dict[str, Any]) -> str | None:
    """Give the granularity of the spheres on which ``SphereSGD`` trains a parameter group.

    Args:
        param_group: Of any optimizer.

    Returns:
        ``joint`` or ``filter``; None where the group is on no sphere of ``SphereSGD``.
    """
    return param_group["granularity"] if param_group.get("elr") is not None else None
