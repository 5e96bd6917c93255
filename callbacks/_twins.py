"""Two callbacks of one kind in one trainer, whose curves and pictures would be the same."""

from lightning.pytorch import Callback, Trainer


def refuse_twin(asks: Callback, kind: type[Callback], trainer: Trainer, writes: str) -> None:
    """Refuse another callback of one kind, before the run: each would overwrite what the other writes.

    Args:
        asks: A callback.
        kind: Its class, or the one among its bases that says what is written.
        trainer: Its trainer.
        writes: Logged keys and files, in words.

    Raises:
        ValueError: Names the kind, and what both would write.
    """
    others = [each for each in trainer.callbacks if isinstance(each, kind) and each is not asks]  # type: ignore[attr-defined]
    if others:
        raise ValueError(
            f"{kind.__name__}: there are two of them, and both would write {writes}; leave one out, or give each a run "
            "of its own"
        )
