"""PeriodMonitor: on the toy in the plane, whose curves are known, and on real digits."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from lit_sphere.analysis import Periods, read_checkpoint, segment_periods
from lit_sphere.callbacks import (
    CheckpointSimilarity,
    EffectiveLearningRateMonitor,
    FixedNorm,
    LinearInterpolationBarrier,
    PeriodMonitor,
)
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet
from lit_sphere.report import read_metrics
from lit_sphere.theory.toy_plane import PlaneCurves, plane_curves
from lit_sphere.theory.weight_decay import step_distance

QUIET: dict[str, Any] = {
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "log_every_n_steps": 1,
}


class Plane(LightningModule):
    """x²/(x² + y²) from (0.01, 1); batches are only counted."""

    def __init__(self, decay: float = 0.1, lr: float = 1.0) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor([0.01, 1.0], dtype=torch.float64))
        self.decay, self.lr = decay, lr

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.point[0].square() / self.point.square().sum()

    def configure_optimizers(self) -> Optimizer:
        return SGD([self.point], lr=self.lr, weight_decay=self.decay)


def train(
    *callbacks: Any,
    epochs: int,
    steps: int = 1,
    module: LightningModule | None = None,
    folder: Path | None = None,
    ckpt_path: Path | None = None,
) -> Trainer:
    logger = CSVLogger(folder, name="", version="") if folder is not None else False
    trainer = Trainer(max_epochs=epochs, callbacks=list(callbacks), logger=logger, **QUIET)
    batches: Any = torch.zeros(steps, 1)
    trainer.fit(module or Plane(), DataLoader(batches, batch_size=1), ckpt_path=ckpt_path)
    return trainer


def toy(steps: int, decay: float = 0.1) -> PlaneCurves:
    return PlaneCurves(*(curve[0] for curve in plane_curves([decay], steps=steps)))


def monitor(**options: Any) -> PeriodMonitor:
    return PeriodMonitor(groups=["point"], **options)


def test_the_periods_of_the_toy_are_those_of_its_curves() -> None:
    watch, curves = monitor(), toy(60)
    train(watch, epochs=60)
    expected = segment_periods(curves.losses.tolist(), curves.norms.tolist())
    assert watch.periods is not None
    assert watch.periods.count == expected.count >= 4
    ends = [period.end for period in watch.periods.finished]
    assert ends == [period.end for period in expected.finished]
    assert watch.periods.phase == expected.phase


def test_single_steps_are_logged_with_all_digits(tmp_path: Path) -> None:
    curves = toy(40)
    train(monitor(per="step"), epochs=2, steps=20, folder=tmp_path)
    series = read_metrics(tmp_path / "metrics.csv")
    norms = curves.norms
    grads = 2 * (curves.losses * (1 - curves.losses)).sqrt()
    for name, expected in (
        ("loss", curves.losses),
        ("norm_squared", norms.square()),
        ("effective_grad_norm", grads),
        ("elr", curves.elrs / 0.9),  # SP Table 1
        ("distance", step_distance(norms, grads, 1.0, 0.1)),
    ):
        logged = series[f"period/{name}"]
        assert list(logged.steps) == list(range(40))
        torch.testing.assert_close(torch.tensor(logged.values, dtype=torch.float64), expected, rtol=1e-6, atol=1e-12)


def test_jumps_lie_between_those_that_are_certain_and_those_that_are_possible(tmp_path: Path) -> None:
    train(monitor(delta=0.01), epochs=8, steps=5, folder=tmp_path)
    series = read_metrics(tmp_path / "metrics.csv")
    counts = [series[f"period/{name}"].values for name in ("certain_jumps", "jumps", "possible_jumps")]
    assert all(certain <= seen <= possible for certain, seen, possible in zip(*counts, strict=True))
    assert 0 < sum(counts[1]) < 40
    curves = toy(40)
    grads = 2 * (curves.losses * (1 - curves.losses)).sqrt()
    assert sum(counts[1]) == int((step_distance(curves.norms, grads, 1.0, 0.1) > 0.01).sum())


def test_its_numbers_are_those_of_the_elr_monitor(tmp_path: Path) -> None:
    train(monitor(), EffectiveLearningRateMonitor(groups=["point"]), epochs=4, steps=6, folder=tmp_path)
    series = read_metrics(tmp_path / "metrics.csv")
    for name, other in (("elr", "elr/total"), ("effective_grad_norm", "effective_grad_norm/total")):
        assert series[f"period/{name}"].values == series[other].values
    assert series["period/distance"].values == pytest.approx(series["distance/total"].values, rel=1e-12)
    bounds = [name for name in ("elr_low", "elr_high", "norm_low", "norm_high") if f"equilibrium/{name}" in series]
    for name in bounds:
        assert series[f"period/{name}"].values == series[f"equilibrium/{name}"].values


def test_minima_are_kept_and_compared(tmp_path: Path) -> None:
    watch, similarity = monitor(keep_minima=True), CheckpointSimilarity(between="periods", groups=["point"])
    train(watch, similarity, epochs=60, folder=tmp_path)
    assert watch.periods is not None
    assert len(watch.minima) == watch.periods.count
    losses = toy(61).losses.tolist()
    for number, (kept, period) in enumerate(zip(watch.minima, watch.periods.finished, strict=True), 1):
        # at the end of the epoch, which is the beginning of the next
        assert kept["epochs"] == period.minimum_at + 1
        point = kept["weights"]["point"]
        assert (point[0].square() / point.square().sum()).item() == pytest.approx(losses[kept["epochs"]], rel=1e-6)
        content = read_checkpoint(tmp_path / "minima" / f"period-{number:02d}.ckpt")
        torch.testing.assert_close(content["state_dict"]["point"], point, rtol=0, atol=0)
    assert len(similarity.pairs) == watch.periods.count * (watch.periods.count - 1) // 2
    assert similarity.pairs[0].epochs == (watch.minima[0]["epochs"], watch.minima[1]["epochs"])
    assert (tmp_path / "similarity.png").is_file()


def barrier(**options: Any) -> LinearInterpolationBarrier:
    return LinearInterpolationBarrier("periods", points=3, groups=["point"], **options)


def test_barriers_between_minima(tmp_path: Path) -> None:
    watch, paths = monitor(), barrier()
    train(watch, paths, epochs=25, folder=tmp_path)
    count = len(watch.minima)
    assert count >= 2
    assert list(paths.results) == [f"barrier-period-{i}-to-period-{i + 1}" for i in range(1, count)]
    for i, path in enumerate(paths.results.values()):
        start, end = (kept["weights"]["point"] for kept in watch.minima[i : i + 2])
        expected = [(point[0].square() / point.square().sum()).item() for point in (start, end)]
        assert [path.curves["train_loss"][at] for at in (0, -1)] == pytest.approx(expected, rel=1e-6)
        assert path.separation.cosine == pytest.approx(torch.cosine_similarity(start, end, dim=0).item())
    assert len(read_metrics(tmp_path / "metrics.csv")["barrier/train_loss"].values) == count - 1
    assert (tmp_path / "barrier-period-1-to-period-2.png").is_file()


@pytest.mark.parametrize("every", [pytest.param("epoch", marks=pytest.mark.slow), "last step"])
def test_a_resumed_run_has_the_same_minima_and_paths(every: str, tmp_path: Path) -> None:
    """Lightning does not end an epoch again whose last step was saved."""

    def parts() -> tuple[PeriodMonitor, LinearInterpolationBarrier, CheckpointSimilarity]:
        return monitor(), barrier(), CheckpointSimilarity(between="periods", groups=["point"])

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if every == "last step" and trainer.global_step % 2 == 0:
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step // 2}.ckpt", weights_only=False)

        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            if every == "epoch":
                trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch + 1}.ckpt", weights_only=False)

    whole = parts()
    train(*whole, Save(), epochs=20, steps=2)
    least = [kept["epochs"] for kept in whole[0].minima]
    assert len(least) >= 3
    for epoch in range(least[1], least[1] + 3):  # at a minimum, and at the destabilisation after it
        resumed = parts()
        train(*resumed, epochs=20, steps=2, ckpt_path=tmp_path / f"{epoch}.ckpt")
        assert [kept["epochs"] for kept in resumed[0].minima] == least
        for one, other in zip(whole[0].minima, resumed[0].minima, strict=True):
            assert torch.equal(one["weights"]["point"], other["weights"]["point"])
        assert resumed[1].results.items() <= whole[1].results.items()
        assert len(resumed[1].results) >= len(least) - 2
        assert resumed[2].pairs == whole[2].pairs


def test_minima_of_a_loss_that_is_only_logged() -> None:
    class Logs(Plane):
        """Its loss is known after callbacks have heard of the epoch's end."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()  # type: ignore[union-attr]
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            optimizer.step()  # type: ignore[union-attr]
            self.log("train/loss", loss, on_step=False, on_epoch=True)

    returned, logged = monitor(keep_minima=True), monitor(keep_minima=True)
    train(returned, epochs=40)
    train(logged, epochs=40, module=Logs())
    assert len(logged.minima) >= 3
    for one, other in zip(returned.minima, logged.minima, strict=False):
        assert one["epochs"] == other["epochs"]
        assert torch.equal(one["weights"]["point"], other["weights"]["point"])


@pytest.mark.parametrize("make", [lambda: CheckpointSimilarity(between="periods", groups=["point"]), barrier])
def test_periods_that_nobody_finds_are_refused(make: Callable[[], Callback]) -> None:
    with pytest.raises(ValueError, match="needs PeriodMonitor"):
        train(make(), epochs=2)


def test_paths_between_periods_are_as_long_as_these(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="leave every_n_epochs out"):
        barrier(every_n_epochs=2)
    with caplog.at_level("INFO"):
        train(monitor(), barrier(), epochs=2)
    assert "it needs the minima of two finished periods, and there are none" in caplog.text


@pytest.mark.parametrize("decay", [0.0])
def test_a_run_without_decay_is_refused_before_it_begins(decay: float) -> None:
    module = Plane(decay)
    with pytest.raises(ValueError, match="weight_decay > 0") as refused:
        train(monitor(), epochs=2, module=module)
    assert "\n" not in str(refused.value)
    assert module.point[0] == 0.01


@pytest.mark.parametrize(("of_point", "of_head"), [(0.0, 0.1), (0.1, 0.0)])
def test_weight_decay_of_the_head_alone_is_warned_of(
    of_point: float, of_head: float, recwarn: pytest.WarningsRecorder
) -> None:
    class WithHead(Plane):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def configure_optimizers(self) -> Optimizer:
            point = {"params": [self.point], "weight_decay": of_point}
            return SGD([point, {"params": [self.head], "weight_decay": of_head}], lr=1.0)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        train(monitor(), epochs=2, module=WithHead())
    said = [str(each.message) for each in recwarn if "weight decay" in str(each.message)]
    assert len(said) == (not of_point)
    if said:
        assert said[0].startswith("PeriodMonitor: only parameters that are not scale-invariant have weight decay")


def test_the_sphere_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=1, callbacks=[PeriodMonitor()], logger=False, **QUIET)
    with pytest.raises(ValueError, match="weights on a sphere have none"):
        trainer.fit(SIConvNet(width=4, in_channels=1, elr=1e-2), Digits(train_size=64, batch_size=32))


def test_a_fixed_norm_has_no_periods_and_no_predictions(tmp_path: Path) -> None:
    watch = monitor()
    train(watch, FixedNorm(norm=2.0, groups=["point"]), epochs=40, folder=tmp_path)
    assert watch.periods is not None
    assert watch.periods.verdict == "no periods"
    series = read_metrics(tmp_path / "metrics.csv")
    assert "period/t_max" not in series
    assert "period/distance" in series


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "batch"}, "per must be epoch or step"),
        ({"delta": 1.0}, "delta must be in"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PeriodMonitor(**options)


def test_two_of_them_are_refused() -> None:
    with pytest.raises(ValueError, match="two of them"):
        train(monitor(), monitor(per="step"), epochs=1)


def test_it_announces_each_destabilisation_and_gives_a_verdict(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(monitor(), epochs=30)
    said = [record.message for record in caplog.records if "period" in record.message]
    assert said[0].startswith("period 1 has ended: destabilised once, at epoch ")
    assert said[-1].startswith("periods at the end: ")
    assert "periods: destabilised at epochs" in said[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "decay", "epochs", "least"),
    [  # Destabilisations of seeds 0, 1 and 2 in 250 epochs; in brackets the epochs of the first ones
        (0.3, 1e-2, 80, 1),  # 5, 4, 6 (68, 58, 58)
        (3.0, 1e-3, 120, 2),  # 7, 6, 5 (30 and 61, 29 and 84, 73 and 102)
        (1.0, 1e-3, 12, 0),  # 1, 1, 1 (149, 208, 92)
        (0.3, 3e-3, 12, 0),  # of this and what follows none in 250 epochs, while the norm falls
        (0.1, 1e-2, 12, 0),
        (0.1, 1e-3, 12, 0),
    ],
)
def test_periods_of_runs_on_digits(lr: float, decay: float, epochs: int, least: int) -> None:
    """How often they come goes with learning rate times weight decay. With three seeds: ``reproduce P12``."""
    found = periods_on_digits(lr, decay, epochs)
    if least:
        assert found.count >= least, found.sentence
    else:
        assert found.count == 0
        assert found.verdict == "not yet", found.sentence


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_on_digits_that_never_converges_has_none(seed: int) -> None:
    assert periods_on_digits(3.0, 1e-2, 25, seed).count == 0


def periods_on_digits(lr: float, decay: float, epochs: int, seed: int = 0) -> Periods:
    seed_everything(seed, verbose=False)
    watch = PeriodMonitor()
    trainer = Trainer(max_epochs=epochs, callbacks=[watch], logger=False, **QUIET)
    trainer.fit(SIConvNet(width=8, in_channels=1, optimizer=partial(SGD, lr=lr, weight_decay=decay)), Digits())
    assert watch.periods is not None
    return watch.periods
