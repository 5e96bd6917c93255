"""What of Lightning's Trainer and its callbacks cannot work with a :class:`SphereModule`, and what does instead."""

from collections.abc import Iterable

from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)

_LARGER_BATCHES = "take larger batches, --data.batch_size (one step on the sphere is one gradient and one projection)"
_INSTEAD: dict[type[Callback], str] = {
    GradientAccumulationScheduler: f"the module steps at each batch by itself; {_LARGER_BATCHES}",
    StochasticWeightAveraging: "the module steps its schedule by itself; take WeightAveraging, EMAWeightAveraging "
    "or the checkpoints of --checkpoint.keep_all true",
    LearningRateFinder: "the module steps its schedule by itself; try a few ELRs, --model.elr, for each its own --run",
    ModelPruning: "it puts other parameters in the place of those of the sphere; prune a trained checkpoint instead",
    BackboneFinetuning: "it gives the optimizer parameters that lie on no sphere; freeze them in the network, or "
    "change the training by FineTuneSwitch",
}


def check_trainer(
    callbacks: Iterable[Callback], gradient_clip_val: float | None, accumulate_grad_batches: int, on_sphere: bool
) -> None:
    """Refuse options and callbacks of Lightning's that would fail in the midst of training, or change nothing.

    Args:
        callbacks: Of the trainer.
        gradient_clip_val: Of the trainer.
        accumulate_grad_batches: Of the trainer.
        on_sphere: Whether the module trains on the sphere.

    Raises:
        ValueError: Names the option, and what does the same here.
    """
    if gradient_clip_val:
        instead = "a step on the sphere is scaled by --model.elr alone: lower that" if on_sphere else "lower the lr"
        raise ValueError(
            f"--trainer.gradient_clip_val {gradient_clip_val}: the module steps by itself, unclipped; {instead}"
        )
    if accumulate_grad_batches != 1:
        raise ValueError(
            f"--trainer.accumulate_grad_batches {accumulate_grad_batches}: the module steps at each batch by "
            f"itself; {_LARGER_BATCHES}"
        )
    for callback in callbacks:
        reason = next((why for kind, why in _INSTEAD.items() if isinstance(callback, kind)), None)
        if reason is not None:
            raise ValueError(f"--trainer.callbacks: {type(callback).__name__} cannot work here: {reason}")
