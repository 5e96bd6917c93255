"""SharpnessMonitor against independent measurements of the same runs; its arguments and errors."""

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Memory, fit, quietly, trainer_for
from conftest import LitSphere
from foreign_modules import BATCHES, ForeignLayerNorm, ForeignResNet, cases
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lit_sphere.callbacks import EffectiveLearningRateMonitor, SharpnessMonitor
from lit_sphere.groups import find_groups
from lit_sphere.report import read_metrics

pytestmark = quietly


def curve(memory: Memory, key: str) -> list[float]:
    return [value for (_, name), value in sorted(memory.logged.items()) if name == key]


def invariant(module: LightningModule, example: Tensor) -> list[nn.Parameter]:
    return [p for group in find_groups(module, example) for p in group.parameters]


def norm_of(tensors: Any) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


@pytest.mark.parametrize("case", ["resnet", "layer_norm", "ours"])
def test_online_is_the_total_of_the_other_monitor(case: str, tmp_path: Path) -> None:
    memory = Memory()
    fit(case, [SharpnessMonitor(), EffectiveLearningRateMonitor()], tmp_path, memory)
    online = curve(memory, "sharpness/online")
    assert len(online) == 3
    assert online == pytest.approx(curve(memory, "effective_grad_norm/total"), rel=1e-12)


def test_online_is_the_unclipped_mean_gradient_of_accumulated_batches(tmp_path: Path) -> None:
    memory, options = Memory(), {"accumulate_grad_batches": 2, "gradient_clip_val": 1e-3}
    fit("layer_norm", [SharpnessMonitor()], tmp_path, memory, max_epochs=1, limit_train_batches=2, **options)
    module, data = ForeignLayerNorm(), cases()["layer_norm"].data()
    x, y = (torch.cat(parts) for parts in zip(*list(data.train_dataloader())[:2], strict=True))
    params = invariant(module, x[:2])
    grads = torch.autograd.grad(F.cross_entropy(module(x), y), params)
    assert curve(memory, "sharpness/online") == [pytest.approx(norm_of(params) * norm_of(grads), rel=1e-5)]


def slow_pass(module: LightningModule, batches: Any) -> tuple[float, float, float]:
    """Loss, error and sharpness in train mode, at the module's weights."""
    module = deepcopy(module).train()
    params = invariant(module, next(iter(batches))[0][:2])
    rows = []
    for x, y in batches:
        logits = module(x)
        loss = F.cross_entropy(logits, y)
        sharpness = norm_of(params) * norm_of(torch.autograd.grad(loss, params))
        rows.append([len(y), loss.item(), float((logits.argmax(1) != y).float().mean()), sharpness])
    count = sum(row[0] for row in rows)
    means = [sum(row[0] * row[i] for row in rows) / count for i in (1, 2, 3)]
    return means[0], means[1], means[2]


# Not bf16 convolutions: with some of these, torch 2.15 on a CPU gives gradients that are NaN at random.
@pytest.mark.parametrize(
    ("case", "precision"),
    [("resnet", "32-true"), ("manual", "32-true"), ("ours", "32-true"), ("layer_norm", "bf16-mixed")],
)
def test_the_pass_is_made_at_the_weights_of_the_epochs_end(case: str, precision: Any, tmp_path: Path) -> None:
    memory, module, data = Memory(), cases()[case].make(), cases()[case].data()
    trainer = trainer_for(case, [SharpnessMonitor(train_pass_every=3)], tmp_path, logger=memory, precision=precision)
    trainer.fit(module, data)
    loader = data.train_pass_dataloader() if hasattr(data, "train_pass_dataloader") else data.train_dataloader()
    expected = slow_pass(module, loader)
    keys = ("train_pass/loss", "train_pass/error", "sharpness/train_pass")
    found = [curve(memory, key) for key in keys]
    assert found == [[pytest.approx(value, rel=1e-4)] for value in expected]
    assert [float(trainer.callback_metrics[key]) for key in keys] == pytest.approx(list(expected), rel=1e-4)


def test_curvature_at_the_end_alone(tmp_path: Path) -> None:
    memory = Memory()
    monitor = SharpnessMonitor(curvature_at_end=True, curvature_vectors=2, curvature_batches=2)
    trainer = trainer_for("resnet", [monitor], tmp_path, logger=memory)
    trainer.fit(cases()["resnet"].make(), cases()["resnet"].data())
    for name in ("fisher_trace", "hessian_trace", "top_eigenvalue", "hessian_trace_error", "fisher_trace_error"):
        step = 3 * BATCHES - 1
        assert [at for at, key in memory.logged if key == f"sharpness/{name}"] == [step]
        assert memory.logged[step, f"sharpness/{name}"] == pytest.approx(
            float(trainer.callback_metrics[f"sharpness/{name}"]), rel=1e-6
        )
    assert float(trainer.callback_metrics["sharpness/top_eigenvalue"]) > 0
    rows = monitor.state_dict()["rows"]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert ["sharpness/fisher_trace" in row for row in rows] == [False, False, True]


class WithDropout(ForeignLayerNorm):
    """At rest, with dropout: nothing but random numbers could change between epochs."""

    def make_model(self) -> nn.Module:
        return nn.Sequential(*super().make_model(), nn.Dropout(0.3))  # type: ignore[misc]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_dropout_is_the_same_in_every_pass(tmp_path: Path) -> None:
    memory = Memory()
    monitor = SharpnessMonitor(train_pass_every=1, curvature_every=1, curvature_vectors=2)
    trainer = trainer_for("layer_norm", [monitor], tmp_path, logger=memory)
    trainer.fit(WithDropout(), cases()["layer_norm"].data())
    keys = {key for _, key in memory.logged if key.startswith(("sharpness/", "train_pass/"))}
    assert len(keys) == 9
    for key in keys - {"sharpness/online"}:
        assert len(set(curve(memory, key))) == 1, key
    assert len(set(curve(memory, "sharpness/online"))) == 3


class FrozenStatistics(ForeignResNet):
    """Fine-tuning with the first batch norm in eval mode."""

    def on_train_epoch_start(self) -> None:
        self.model.bn1.eval()  # type: ignore[union-attr]


def test_modules_that_train_in_eval_mode_stay_in_it(tmp_path: Path) -> None:
    memory, module, data = Memory(), FrozenStatistics(), cases()["resnet"].data()
    trainer = trainer_for("resnet", [SharpnessMonitor(train_pass_every=3)], tmp_path, logger=memory)
    trainer.fit(module, data)
    in_train_mode = slow_pass(module, data.train_dataloader())[0]
    module.train().on_train_epoch_start()
    losses = [F.cross_entropy(module(x), y).item() for x, y in data.train_dataloader()]
    assert curve(memory, "train_pass/loss") == [pytest.approx(sum(losses) / len(losses), rel=1e-4)]
    assert abs(in_train_mode / curve(memory, "train_pass/loss")[0] - 1) > 1e-3


class Trained(ForeignLayerNorm):
    """Without validation, of which Lightning would warn if it had no data."""

    validation_step = LightningModule.validation_step  # type: ignore[assignment]


class Apart(Trained):
    """Batches with a weight for each sample, and a step that needs the trainer's loggers."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if "log" in vars(self):
            raise RuntimeError("not to be left alone")
        return super().training_step(batch[:2], batch_idx)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.randn(3, 16, 16), 0)] * 16)


def loader_of(*tensors: Tensor) -> DataLoader[Any]:
    return DataLoader(torch.utils.data.TensorDataset(*tensors), 8)


@pytest.mark.parametrize(
    ("module", "loader", "message"),
    [
        (Apart, loader_of(torch.randn(16, 3, 16, 16), torch.zeros(16).long(), torch.ones(16)), "a list of 3, .*alone"),
        (Trained, DataLoader(Stream(), 8), "train_pass_dataloader"),
    ],
)
def test_what_cannot_be_passed_over_is_refused_before_the_first_step(
    module: type[LightningModule], loader: DataLoader[Any], message: str, tmp_path: Path
) -> None:
    for monitor in (SharpnessMonitor(train_pass_every=50), SharpnessMonitor(curvature_at_end=True)):
        trainer = trainer_for("layer_norm", [monitor], tmp_path, logger=False, limit_val_batches=0)
        with pytest.raises(ValueError, match=rf"SharpnessMonitor.*{message}"):
            trainer.fit(module(), loader)
        assert trainer.global_step == 0
    trainer = trainer_for("layer_norm", [SharpnessMonitor()], tmp_path, logger=False, limit_val_batches=0)
    trainer.fit(module(), loader)  # the training steps can be watched
    assert float(trainer.callback_metrics["sharpness/online"]) > 0


class SplitInvariant(ForeignLayerNorm):
    """The first layer has an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first, *rest = self.parameters()
        return [torch.optim.SGD([first], lr=0.1), torch.optim.SGD(rest, lr=0.1)]


def test_parameters_of_another_optimizer_are_left_out_and_named(tmp_path: Path) -> None:
    trainer = trainer_for("layer_norm", [SharpnessMonitor()], tmp_path, logger=False, max_epochs=1)
    with pytest.warns(UserWarning, match=r"SharpnessMonitor watches the \d groups of SGD; \d are trained elsewhere"):
        trainer.fit(SplitInvariant(), cases()["layer_norm"].data())
    assert float(trainer.callback_metrics["sharpness/online"]) > 0


def test_a_diverged_run_is_logged_and_warned_of(tmp_path: Path) -> None:
    class BlowUp(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            for p in pl_module.parameters():
                p.data.fill_(math.nan)

    memory = Memory()
    monitor = SharpnessMonitor(train_pass_every=1, curvature_at_end=True, curvature_vectors=2)
    trainer = trainer_for("layer_norm", [BlowUp(), monitor], tmp_path, logger=memory, max_epochs=1)
    with pytest.warns(UserWarning, match="gave no top eigenvalue"):
        trainer.fit(cases()["layer_norm"].make(), cases()["layer_norm"].data())
    assert math.isnan(curve(memory, "sharpness/train_pass")[0])
    assert math.isnan(curve(memory, "sharpness/top_eigenvalue")[0])


@pytest.mark.parametrize(
    "options",
    [
        {"train_pass_every": 0},
        {"curvature_every": -1},
        {"curvature_batches": 0},
        {"curvature_vectors": 1},
        {"seed": -1},
        {"weighting": "none"},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"SharpnessMonitor: {next(iter(options))} must"):
        SharpnessMonitor(**options)


_SHORT = ("--config", "elr.yaml", "--trainer.max_epochs=2", "--data.train_size=256", "--wandb=disabled", "--run=r")


def test_the_command_line_takes_it_by_its_short_name(empty_folder: Path, lit_sphere: LitSphere) -> None:
    options = ("--trainer.callbacks+=SharpnessMonitor", "--trainer.callbacks.train_pass_every=2")
    result = lit_sphere("fit", *_SHORT, *options)
    assert result.status == 0, result.err
    series = read_metrics(Path("r/metrics.csv"))
    assert series["sharpness/train_pass"].epochs == [1]
    assert series["sharpness/online"].values == series["effective_grad_norm/total"].values
    assert Path("r/sharpness.png").exists()


def test_a_config_takes_it_by_its_short_name(empty_folder: Path, lit_sphere: LitSphere) -> None:
    text = (
        "trainer:\n  callbacks:\n    - class_path: SharpnessMonitor\n      init_args:\n        curvature_at_end: true\n"
    )
    Path("more.yaml").write_text(f"{text}        curvature_batches: 1\n        curvature_vectors: 2\n")
    result = lit_sphere("fit", *_SHORT, "--config", "more.yaml")
    assert result.status == 0, result.err
    assert read_metrics(Path("r/metrics.csv"))["sharpness/top_eigenvalue"].epochs == [1]


def test_the_options_are_explained(lit_sphere: LitSphere) -> None:
    result = lit_sphere("fit", "--trainer.callbacks.help", "SharpnessMonitor")
    assert result.status == 0
    for words in (
        "--trainer.callbacks.train_pass_every",
        "Make the extra pass every n epochs",
        "{sample,batch}",
        "Random vectors",
    ):
        assert words in result.out, result.out
