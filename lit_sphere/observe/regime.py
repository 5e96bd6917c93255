"""The regime of a run, judged by its curves while it trains."""

from dataclasses import asdict
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from lit_sphere.analysis.epoch_rows import Row, regime_of_rows, rows_to_judge
from lit_sphere.analysis.regimes import (
    SHORTEST_RUN,
    Regime,
    RegimeVerdict,
    announced_regime,
)
from lit_sphere.observe.dynamics import DynamicsObserver, callbacks_of
from lit_sphere.observe.epoch_curves import CurveCallback
from lit_sphere.observe.module_groups import GroupNames, GroupOptions, Network
from lit_sphere.report.regime_curves import RegimeSegment


class RegimeWatch(CurveCallback, DynamicsObserver):
    """Base of callbacks that name the regime of a run at the end of every epoch, by what they saw of it themselves.

    Attributes:
        verdict: The :class:`~lit_sphere.analysis.RegimeVerdict` of the present curve; None before the first epoch's
            end, and right after :meth:`restart`.
        announced: The regime that stands by :func:`~lit_sphere.analysis.regimes.announced_regime`.
        streak: Number of epochs in a row in which the present verdict was named.
        settled: The regime that ended the run before its time, and its streak; None if none did.
    """

    announces: ClassVar[bool] = False
    """Whether other callbacks may wait for what is announced."""

    shortest_run = SHORTEST_RUN
    """Epochs below which no regime is named; less in a subclass that judges sooner."""

    def __init__(
        self,
        num_classes: int | None = None,
        loss_key: str | None = None,
        error_key: str | None = None,
        converged_loss: float | None = None,
        every_n_steps: int = 4,
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        super().__init__(num_classes, loss_key, error_key, converged_loss, every_n_steps)
        self.verdict: RegimeVerdict | None = None
        self._segments: list[dict[str, Any]] = []  # those before it, with their verdicts
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self._first_epoch, self.verdict = epoch, None
        self.announced: Regime = "undecided"
        self.streak = 0
        self.settled: tuple[Regime, int] | None = None
        self._judged = -1  # the last of them

    def restart(self, epoch: int) -> None:
        """Cut the curve: only epochs from this one on are looked at, since the effective learning rate changed.

        Args:
            epoch: Number of the first epoch after the change.
        """
        if self.verdict is not None:
            self._segments.append({"first_epoch": self._first_epoch, "last_epoch": epoch - 1, **asdict(self.verdict)})
        self._begin(epoch)

    def on_dynamics_change(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        """Cut the curve."""
        self.restart(epoch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups before training."""
        super().on_fit_start(trainer, pl_module)
        if self._anew:
            self._segments = []
            self._begin(0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the regime."""
        self._curves.epoch_end(trainer)
        self._judge()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more, at the last epoch as a whole."""
        self._curves.settle(trainer)
        self._judge()

    @property
    def stays_out(self) -> bool:
        """Whether there is nothing to watch in this run, so that no regime will be named."""
        return self._curves.stays_out

    @property
    def rows(self) -> list[Row]:
        """The curves so far, an epoch each."""
        return self._curves.rows

    @property
    def segments(self) -> list[RegimeSegment]:
        """The curve's parts between changes of the effective learning rate, the present one last."""
        rows = self._curves.rows
        past = [
            RegimeSegment(each["first_epoch"], each["last_epoch"], each["regime"], each["since"])
            for each in self._segments
        ]
        if self.verdict is None or not rows:
            return past
        return [*past, RegimeSegment(self._first_epoch, rows[-1]["epoch"], self.verdict.regime, self.verdict.since)]

    def _judge(self) -> None:
        rows = rows_to_judge(self._curves.rows, self._first_epoch)
        if not rows:
            return
        before = self.verdict
        self.verdict = regime_of_rows(rows, self._classes, self._converged, self._curves.equal_steps)
        if rows[-1]["epoch"] != self._judged:  # the last epoch is judged again at the end of the run
            same = before is not None and before.regime == self.verdict.regime
            self.streak, self._judged = self.streak + 1 if same else 1, rows[-1]["epoch"]
        self.announced = announced_regime(self.announced, self.streak, self.verdict.regime)

    def state_dict(self) -> dict[str, Any]:
        """Curves and verdicts, so that a resumed run continues them."""
        verdict = None if self.verdict is None else asdict(self.verdict)
        return {
            "curves": self._curves.state(),
            "first_epoch": self._first_epoch,
            "segments": [dict(segment) for segment in self._segments],
            "verdict": verdict,
            "announced": self.announced,
            "streak": self.streak,
            "judged": self._judged,
            "settled": self.settled,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._curves.load_state(state_dict["curves"])
        self._begin(state_dict["first_epoch"])
        if "announced" in state_dict:  # else of lit-sphere 0.1, which announced every verdict
            self.announced = state_dict["announced"]
            self.streak, self._judged = state_dict["streak"], state_dict["judged"]
        self.settled = state_dict.get("settled")
        self._segments = [dict(segment) for segment in state_dict["segments"]]
        verdict = state_dict["verdict"]
        self.verdict = None if verdict is None else RegimeVerdict(**verdict)


def regime_watch_of(trainer: Trainer) -> RegimeWatch | None:
    """Give the first callback of the trainer that announces regimes, or None."""
    return next((each for each in callbacks_of(trainer) if isinstance(each, RegimeWatch) and each.announces), None)
