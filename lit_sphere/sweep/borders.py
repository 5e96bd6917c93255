"""The borders of the regimes in any Lightning project: runs in this process, one after the other."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything

from lit_sphere.analysis.border_search import BorderSearch, SearchRange
from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime
from lit_sphere.callbacks import RegimeMonitor
from lit_sphere.report.border_search import BorderRun, SearchResult

_QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def search_borders(
    make_module: Callable[[float], LightningModule],
    make_data: Callable[[], Any],
    trainer_options: Mapping[str, Any],
    low: float,
    high: float,
    *,
    precision: float = 1.25,
    seeds: int = 1,
    budget: int | None = None,
    monitor_options: Mapping[str, Any] | None = None,
    name: str = "lr",
) -> SearchResult:
    """Find the learning rates at which convergence ends, and at which divergence begins, by bisection.

    Each run is trained in this process, with a ``RegimeMonitor`` that ends it once its regime is settled. ``lit-sphere
    borders`` does the same with the command's own modules, several runs at once.

    Args:
        make_module: Makes the module, given what varies: an effective learning rate, or the ``lr`` of its optimizer.
        make_data: Makes a data module or a loader for each run.
        trainer_options: Of ``Trainer``, ``max_epochs`` among them; without loggers, checkpoints and bar unless given.
            Each run gets copies of the callbacks.
        low: Lowest value to try, positive.
        high: Highest.
        precision: Ratio of the two ends of a border that is close enough.
        seeds: Number of seeds, from 0; each is given to ``seed_everything`` before module and data are made.
        budget: No run is begun that could make more epochs in all; None for any number.
        monitor_options: More options of ``RegimeMonitor``, such as ``num_classes`` or ``example_input``.
        name: Of what varies, for the words of the answer.

    Returns:
        The borders with the runs that show them; :func:`~lit_sphere.report.border_search.sentences` puts them in words.

    Raises:
        ValueError: If the range is none, ``max_epochs`` is not given, the budget is too small for one run, or nothing
            in the module is scale-invariant.

    Example:
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> from lit_sphere.report.border_search import sentences
        >>> found = search_borders(
        ...     lambda elr: SIConvNet(width=4, in_channels=1, elr=elr),
        ...     lambda: Digits(train_size=64, batch_size=32),
        ...     {"max_epochs": 20, "accelerator": "cpu"},
        ...     low=10,
        ...     high=100,
        ...     precision=10,
        ...     name="ELR",
        ... )
        >>> sentences(found)[0].partition(":")[0]
        'No convergence at all, down to ELR 10'
    """
    where = SearchRange(low, high, precision)
    epochs = trainer_options.get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"trainer_options: max_epochs must be at least 1, got {epochs}")
    if budget is not None and budget < epochs:
        raise ValueError(f"budget {budget} is too small for one run of {epochs} epochs")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    search, runs = BorderSearch(where, seeds), list[BorderRun]()
    while True:
        result = SearchResult(name, where, seeds, epochs, runs)
        choice = search.next_run(result.verdicts, [()] * seeds)
        if choice is None or (budget is not None and result.epochs + epochs > budget):
            return result
        seed, at = choice
        seed_everything(seed, verbose=False)
        monitor = RegimeMonitor(stop_when=_REGIMES, **(monitor_options or {}))
        runs.append(_run(make_module(at), make_data(), trainer_options, monitor, at, seed))


_REGIMES: list[Regime] = [regime for regime, number in REGIME_NUMBERS.items() if number]


def _run(
    module: LightningModule, data: Any, trainer_options: Mapping[str, Any], monitor: RegimeMonitor, at: float, seed: int
) -> BorderRun:
    given = copy.deepcopy(trainer_options.get("callbacks") or [])
    callbacks = [*(given if isinstance(given, list) else [given]), monitor]
    trainer = Trainer(**{**_QUIET, **trainer_options, "callbacks": callbacks})
    if isinstance(data, LightningDataModule):
        trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, data)
    verdict = monitor.verdict
    if verdict is None:
        raise ValueError(
            f"{type(module).__name__}: no regime can be named: nothing in it is scale-invariant, or it reports no "
            "train loss; see the warnings of RegimeMonitor, and give monitor_options"
        )
    last = monitor.rows[-1]
    norms = last["effective_grad_norm"]
    converged = verdict.since + 1 if verdict.regime == "convergence" and verdict.since is not None else None
    return BorderRun(
        at,
        seed,
        verdict.regime,
        verdict.evidence,
        trainer.current_epoch,
        last["loss"],
        norms[0] if norms else None,
        converged,
    )
