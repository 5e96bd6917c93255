"""What runs are found and compared by in W&B: group, job type, tags, and the numbers in the summary."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_sphere.analysis.regimes import REGIME_NUMBERS, RegimeVerdict
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.effective import QUANTITIES

_LONGEST_TAG = 64
_LONGEST_GROUP = 128
_PROTOCOLS = {
    "FixedNorm": "fixed norm",
    "FineTuneSwitch": "switch",
    "OptimizerComparison": "optimizer comparison",
}
_OF_GROUPS = {*QUANTITIES, "gradient_radial"}
_BEST = ("train/loss", "train/error", "val/loss", "val/error")


class RunLabels(NamedTuple):
    """What a run is found by in W&B.

    Attributes:
        group: ``WANDB_RUN_GROUP``, or network and data.
        job_type: ``WANDB_JOB_TYPE``, or ``fit``.
        tags: Those of ``WANDB_TAGS``, then network, data, protocol and what else is special of the run.
    """

    group: str
    job_type: str
    tags: list[str]


def run_labels(config: Mapping[str, Any]) -> RunLabels:
    """Choose group, job type and tags of a run; what stands in the environment comes first.

    Args:
        config: Its whole configuration, as in config.yaml.

    Returns:
        The labels.

    Raises:
        CommandLineError: If W&B takes no such group or tags as the environment has.
    """  # noqa: DOC502
    network, data = _network(config), _short(_dict(config, "data").get("class_path"))
    given = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    for tag in given:
        _check_length("WANDB_TAGS", tag, _LONGEST_TAG)
    for name in ("WANDB_RUN_GROUP", "WANDB_JOB_TYPE"):
        _check_length(name, os.environ.get(name, ""), _LONGEST_GROUP)
    ours = [tag[:_LONGEST_TAG] for tag in (network, data, *_protocol(config)) if tag]
    return RunLabels(
        os.environ.get("WANDB_RUN_GROUP") or " on ".join(filter(None, (network, data)))[:_LONGEST_GROUP],
        os.environ.get("WANDB_JOB_TYPE") or "fit",
        list(dict.fromkeys([*given, *ours])),
    )


def _check_length(name: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise CommandLineError(f"{name}: {text[:20]}… is {len(text)} characters long; W&B takes {longest}")


def _network(config: Mapping[str, Any]) -> str:
    """The innermost network: ``SphereModule`` and ``Resized`` hold another one."""
    part = _dict(config, "model")
    while inner := _dict(_dict(part, "init_args"), "network"):
        part = inner
    return _short(part.get("class_path"))


def _protocol(config: Mapping[str, Any]) -> list[str]:
    options = _dict(_dict(config, "model"), "init_args")
    callbacks = _dict(config, "trainer").get("callbacks")
    callbacks = [each for each in callbacks if isinstance(each, Mapping)] if isinstance(callbacks, list) else []
    names = {_short(each.get("class_path")) for each in callbacks}
    protocol = [] if "FixedNorm" in names or not options else [_space(options)]
    protocol += [tag for name, tag in _PROTOCOLS.items() if name in names]
    protocol += [_short(_dict(options, name).get("class_path")) for name in ("optimizer", "scheduler")]
    return [*protocol, *(["fine-tuning"] if config.get("ckpt_weights") else [])]


def _space(options: Mapping[str, Any]) -> str:
    return "whole space" if options.get("elr") is None else "sphere"


def _dict(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def _short(class_path: object) -> str:
    return str(class_path or "").rpartition(".")[2]


class LoggedValues:
    """Last and best value of each key that a run logs, for the summary."""

    def __init__(self) -> None:
        self._final: dict[str, float] = {}
        self._best: dict[str, tuple[float, float]] = {}

    def add_rows(self, keys: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Take what a run that goes on has logged before.

        Args:
            keys: Columns of its metrics.csv.
            rows: Cells, empty where nothing was logged.
        """
        for row in rows:
            self.add({key: float(cell) for key, cell in zip(keys, row, strict=True) if cell})

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Take what is logged.

        Args:
            metrics: By key; what is no finite number is passed over.
        """
        epoch = metrics.get("epoch", math.nan)
        for key, value in metrics.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value) or not _is_of_run(key):
                continue
            self._final[key] = float(value)
            if key in _BEST and (key not in self._best or value < self._best[key][0]):
                self._best[key] = float(value), float(epoch)

    def summary(self, verdict: RegimeVerdict | None) -> dict[str, float | str]:
        """Give what W&B's table of runs is to hold.

        Args:
            verdict: The regime, where the run was watched.

        Returns:
            ``final/KEY``; ``best/KEY`` and ``best/KEY_epoch`` of losses and errors; ``regime``, ``regime_number``,
            ``evidence`` and ``since``.
        """
        values: dict[str, float | str] = {f"final/{key}": value for key, value in self._final.items()}
        for key, (value, epoch) in self._best.items():
            values[f"best/{key}"] = value
            if math.isfinite(epoch):
                values[f"best/{key}_epoch"] = epoch
        if verdict is not None:
            values |= {"regime": verdict.regime, "evidence": verdict.evidence}
            values["regime_number"] = float(REGIME_NUMBERS[verdict.regime])
            if verdict.since is not None:
                values["since"] = float(verdict.since)
        return values


def regime_table(name: str, summary: Mapping[str, float | str]) -> tuple[list[str], list[float | str | None]]:
    """Give the run's row in the table of regimes over all runs.

    Args:
        name: Of the run.
        summary: From :meth:`LoggedValues.summary`.

    Returns:
        Columns and cells.
    """
    columns = {
        "ELR": "final/elr/total",
        "regime": "regime",
        "since epoch": "since",
        "evidence": "evidence",
        "train loss": "final/train/loss",
        "sharpness": "final/effective_grad_norm/total",
        "best validation error": "best/val/error",
    }
    return ["run", *columns], [name, *(summary.get(key) for key in columns.values())]


def _is_of_run(key: str) -> bool:
    """Whether a key is of the run as a whole, and none of many groups."""
    prefix, _, name = key.partition("/")
    return bool(name) and (prefix not in _OF_GROUPS or name in ("total", "step_max"))
