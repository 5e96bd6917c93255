"""When to change what in the middle of a run."""

import math
from dataclasses import asdict, dataclass

_WHEN = ("epoch", "step", "after_epochs", "loss_below", "regime")
Value = float | bool


@dataclass(frozen=True)
class Switch:
    """When to change what. Exactly one *when*, and at least one *what*.

    Args:
        epoch: When: before the first step of this epoch, counted from 0; at least 1.
        step: When: after this number of optimizer steps; at least 1.
        after_epochs: When: this number of epochs after the previous switch (or after the start of the run).
        loss_below: When: the train loss of an epoch has fallen below this.
        regime: When: ``RegimeMonitor`` announces this regime, e.g. ``convergence``.
        elr: What: effective learning rate η̃ of the spheres.
        lr: What: learning rate η of what is trained in the whole space.
        weight_decay: What: weight decay of what is trained in the whole space.
        momentum: What: momentum of what is trained in the whole space.
        augment: What: whether the data module augments training images.
        sphere: What: false leaves the sphere for SGD in the whole space, with η = η̃ρ² unless ``lr`` is given; true
            enters the sphere of the norm that the weights have, with η̃ = η/ρ² unless ``elr`` is given.

    Raises:
        ValueError: If there is not exactly one *when* or no *what*, or a value is out of its range.
    """

    epoch: int | None = None
    step: int | None = None
    after_epochs: int | None = None
    loss_below: float | None = None
    regime: str | None = None
    elr: float | None = None
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    augment: bool | None = None
    sphere: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what is not one *when* with a *what*."""
        when = [name for name in _WHEN if getattr(self, name) is not None]
        if len(when) != 1:
            got = f"got {' and '.join(when)}" if when else "none is given"
            raise ValueError(f"{self}: give exactly one of {', '.join(_WHEN)}; {got}")
        if not self.changes:
            raise ValueError(
                f"{self}: changes nothing; give elr, lr, weight_decay, momentum, augment or sphere as well"
            )
        for name in ("epoch", "step", "after_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{self}: {name} must be at least 1; what holds from the start is no switch")
        for name in ("elr", "lr", "loss_below"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{self}: {name} must be positive and finite, got {value}")
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"{self}: weight_decay must be finite and not negative, got {self.weight_decay}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"{self}: momentum must be at least 0 and below 1, got {self.momentum}")
        if self.sphere is False and self.elr is not None:
            raise ValueError(f"{self}: leaves the sphere, where there is no elr; give lr")
        if self.sphere is True and {"lr", "weight_decay", "momentum"} & self.changes.keys():
            raise ValueError(f"{self}: enters the sphere, where there is an elr only; give elr, the rest separately")

    @property
    def changes(self) -> dict[str, Value]:
        """What is changed, by name."""
        return {name: value for name, value in asdict(self).items() if name not in _WHEN and value is not None}

    @property
    def when(self) -> str:
        """When, in words."""
        return next(f"{name} {getattr(self, name)}" for name in _WHEN if getattr(self, name) is not None)

    def __str__(self) -> str:
        """Name it by what was given."""
        given = ", ".join(f"{name}: {value}" for name, value in asdict(self).items() if value is not None)
        return f"switch {{{given}}}"
