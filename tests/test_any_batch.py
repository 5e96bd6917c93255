"""Callbacks that evaluate batches themselves, on modules without a forward that gives logits, and on any batch."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Memory, assert_equal, everything, quietly
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lit_sphere.analysis import WeightPath, path_positions, put_weights, take_weights
from lit_sphere.callbacks import (
    CheckpointSimilarity,
    LinearInterpolationBarrier,
    OptimizerComparison,
    SharpnessMonitor,
)
from lit_sphere.observe.passes import untouched
from lit_sphere.observe.quiet_step import StepLoss

pytestmark = [quietly, pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")]
_OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}


class Pair(LightningModule):
    """Inputs and labels, and a forward that gives logits: the others do the same by other means."""

    lr = _OPTIONS["lr"]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), **{**_OPTIONS, "lr": self.lr})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    @staticmethod
    def batch_of(x: Tensor, y: Tensor) -> Any:
        return [x, y]


class Average:
    """A running average of the user's own."""

    def __init__(self) -> None:
        self.count, self.mean = 0, torch.zeros(())

    def update(self, value: Tensor) -> None:
        self.count += 1
        self.mean += (value.detach() - self.mean) / self.count


class NoForward(Pair):
    """Keeps a metric, a list, a sum and an average of its own."""

    forward = LightningModule.forward

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.seen, self.total, self.average = MeanMetric(), list[float](), torch.zeros(()), Average()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.mean.update(loss)
        self.seen.append(float(loss))
        self.total += loss.detach()
        self.average.update(loss)
        self.log("mean", self.mean)
        return {"loss": loss}


class DictBatch(Pair):
    """Takes its batch apart."""

    forward = LightningModule.forward

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        labels = batch.pop("labels")
        return F.cross_entropy(self.net(batch["inputs"].add_(0)), labels)

    @staticmethod
    def batch_of(x: Tensor, y: Tensor) -> Any:
        return {"inputs": x, "labels": y}


@dataclass
class Images:
    inputs: Tensor
    labels: Tensor


class Dataclass(Pair):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch.inputs), batch.labels)

    @staticmethod
    def batch_of(x: Tensor, y: Tensor) -> Any:
        return Images(x, y)


class LossForward(Pair):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return F.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(*batch)


class Manual(DictBatch):
    """Two backward passes, whose sum is the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        logits = self.net(batch["inputs"])
        nothing = 0 * logits.square().sum()
        self.manual_backward(F.cross_entropy(logits, batch["labels"]) + nothing, retain_graph=True)
        self.manual_backward(-nothing)
        optimizer.step()


class Views(Pair):
    """Two views of an image, a teacher that follows the network, noise from a generator of its own and from torch's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.teacher = nn.Linear(6, 3).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(0)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (one, two), _ = batch
        one = one + 0.1 * torch.randn(one.shape, generator=self.generator) + 0.1 * torch.randn_like(one)
        target = self.teacher(two)
        for p in self.teacher.parameters():
            p.mul_(0.9)
        return F.mse_loss(self.net(one), target)

    @staticmethod
    def batch_of(x: Tensor, y: Tensor) -> Any:
        return [x, x.flip(1)], y


class Penalty(Pair):
    """Differentiates in its step."""

    example_input_array = torch.zeros(2, 6)
    batch_of = DictBatch.batch_of

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch["inputs"].requires_grad_()
        loss = F.cross_entropy(self.net(x), batch["labels"])
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + slope.square().sum()


class Twice(nn.Module):
    """The square, which can be differentiated twice and no further, in all versions of torch."""

    class _Square(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            return 2 * gradient * Twice._Slope.apply(x)

    class _Slope(Function):
        forward = staticmethod(lambda ctx, x: x.clone())

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return Twice._Last.apply(gradient)

    class _Last(Function):
        forward = staticmethod(lambda ctx, gradient: gradient.clone())

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            raise RuntimeError("no third derivative")

    def forward(self, x: Tensor) -> Tensor:
        return Twice._Square.apply(x)  # type: ignore[no-any-return]


class Regression(Pair):
    """A forward, and labels that are no classes."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self(batch[0]), batch[1])

    @staticmethod
    def batch_of(x: Tensor, y: Tensor) -> Any:
        return [x, x[:, :3]]


SAME = [NoForward, DictBatch, Dataclass, LossForward, Manual]
"""Their loss is that of Pair."""
ALL = [*SAME, Views, Regression]


def loader(module: type[Pair], count: int = 17, seed: int = 0, ranks: int = 1, rank: int = 0) -> DataLoader[Any]:
    """The last batch has one sample."""
    g = torch.Generator().manual_seed(seed)
    data = TensorDataset(torch.randn(count, 6, generator=g), torch.randint(3, (count,), generator=g))

    def collate(samples: Any) -> Any:
        x, y = zip(*samples, strict=True)
        return module.batch_of(torch.stack(x), torch.stack(y))

    return DataLoader(data, 8 // ranks, collate_fn=collate, sampler=range(rank, count, ranks), drop_last=ranks == 1)


def fit(module: Pair, callbacks: list[Callback], folder: Path, **options: Any) -> tuple[Trainer, Memory]:
    memory, val = Memory(), options.pop("val", None)
    shown = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    options = {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, **shown, **options}
    loggers = [*options.pop("loggers", []), memory]
    trainer = Trainer(logger=loggers, callbacks=callbacks, default_root_dir=folder, **options)
    trainer.fit(module, loader(type(module)), val)
    return trainer, memory


def twins(kind: type[Pair], callbacks: list[Callback], folder: Path) -> tuple[Memory, Pair, Pair]:
    """Fit with the callbacks and without any: all is the same to the last bit."""
    module = kind()
    trainer, memory = fit(module, callbacks, folder / "with")
    found = everything(trainer, module)
    bare = kind()
    trainer, _ = fit(bare, [], folder / "without")
    assert_equal(found, everything(trainer, bare))
    return memory, module, bare


def monitors() -> list[Callback]:
    return [
        LinearInterpolationBarrier(every_n_epochs=1, points=3),
        CheckpointSimilarity(every_n_epochs=1),
        SharpnessMonitor(train_pass_every=1, curvature_at_end=True, curvature_vectors=2, curvature_batches=1),
        OptimizerComparison({"own": partial(SGD, **_OPTIONS)}, every_n_steps=1),
    ]


def of(memory: Memory, key: str) -> list[float]:
    return [value for (_, name), value in memory.logged.items() if name == key]


@pytest.mark.parametrize("kind", ALL)
def test_they_run_wherever_a_training_step_runs_and_leave_it_alone(kind: type[Pair], tmp_path: Path) -> None:
    memory, module, bare = twins(kind, monitors(), tmp_path)
    if isinstance(module, NoForward) and isinstance(bare, NoForward):
        assert module.seen == bare.seen
        assert len(module.seen) == 4
        assert torch.equal(module.total, bare.total)
        assert module.average.count == 4
        assert torch.equal(module.average.mean, bare.average.mean)
    if isinstance(module, Views) and isinstance(bare, Views):
        assert torch.equal(module.generator.get_state(), bare.generator.get_state())
    assert not set(vars(module)) ^ set(vars(bare)), "what silenced the step is gone"
    found = {key for _, key in memory.logged}
    assert {
        "barrier/train_loss",
        "similarity/previous",
        "train_pass/loss",
        "sharpness/train_pass",
        "sharpness/hessian_trace",
        "sharpness/top_eigenvalue",
        "optimizer_comparison/own_loss",
    } <= found
    assert not [key for key in found if "error" in key and key != "sharpness/hessian_trace_error"]
    assert not [key for key in found if "ensemble" in key or "fisher" in key]
    assert all(math.isfinite(value) for value in memory.logged.values())
    assert of(memory, "optimizer_comparison/own_distance_max") == [0.0] * 4


def test_files_have_no_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    barrier = LinearInterpolationBarrier(every_n_epochs=1, points=3)
    monkeypatch.setattr(
        "lit_sphere.callbacks.linear_interpolation_barrier.save_picture",
        lambda trainer, folder, name, draw: drawn.append(len(draw().axes)),
    )
    fit(DictBatch(), [barrier], tmp_path, loggers=[CSVLogger(tmp_path, name="", version="")])
    with (tmp_path / "barrier-0001-to-0002.csv").open() as table:
        assert next(csv.reader(table)) == ["position", "train_loss"]
    assert drawn == [1]


@pytest.mark.parametrize("statistics", ["batch", "reestimated"])
@pytest.mark.parametrize("kind", [DictBatch, Manual])
def test_the_barrier_is_that_of_the_steps_losses_along_the_path(kind: Any, statistics: Any, tmp_path: Path) -> None:
    class Keep(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            ends.append(take_weights(pl_module))

    ends: list[dict[str, Tensor]] = []
    barrier = LinearInterpolationBarrier(every_n_epochs=1, points=5, statistics=statistics)
    fit(module := kind(), [barrier, Keep()], tmp_path, val=loader(kind, 11, seed=1), limit_val_batches=0)
    (measured,) = barrier.results.values()

    def losses(batches: Any) -> float:
        total = sum(len(b["labels"]) * F.cross_entropy(module.net(b["inputs"]), b["labels"]).item() for b in batches)
        return total / sum(len(b["labels"]) for b in batches)

    g = list(loader(kind))
    whole = next(iter(DataLoader(loader(kind).dataset, 17)))
    x, y = whole
    batches = [kind.batch_of(x[:8], y[:8]), kind.batch_of(x[8:], y[8:])]
    assert len(g) == 2
    path = WeightPath(ends[0], ends[1], [["net.0.weight"]])
    for t, found in zip(path_positions(5), measured.curves["train_loss"], strict=True):
        put_weights(module, path.at(t))
        module.train()
        if statistics == "reestimated":
            inputs = [module.net[0](b["inputs"]) for b in batches]
            module.net[1].running_mean = torch.stack([z.mean(0) for z in inputs]).mean(0).detach()
            module.net[1].running_var = torch.stack([z.var(0) for z in inputs]).mean(0).detach()
            module.eval()
        assert found == pytest.approx(losses(batches), rel=1e-5)
    assert measured.curves.keys() == {"train_loss"}
    assert max(measured.curves["train_loss"]) > 1.001 * min(measured.curves["train_loss"])


@pytest.mark.parametrize("kind", SAME)
def test_by_the_training_step_it_is_the_same_as_by_logits(kind: type[Pair], tmp_path: Path) -> None:
    (_, by_step), (_, by_logits) = (
        fit(each(), monitors(), tmp_path / each.__name__, val=loader(each, 11, seed=1)) for each in (kind, Pair)
    )
    keys = {
        key for key in by_step.logged if key[1].startswith(("barrier/", "similarity/", "train_pass/", "sharpness/"))
    }
    assert {key for _, key in keys} >= {"barrier/val_loss", "barrier/train_loss", "sharpness/top_eigenvalue"}
    for key in keys:
        assert by_step.logged[key] == pytest.approx(by_logits.logged[key], rel=1e-4, abs=1e-6), key


def test_a_step_that_differentiates_is_run_with_gradients(tmp_path: Path) -> None:
    barrier = LinearInterpolationBarrier(every_n_epochs=1, points=3)
    module, _ = Penalty(), fit(Penalty(), [barrier], tmp_path)
    (measured,) = barrier.results.values()
    assert all(math.isfinite(value) for value in measured.curves["train_loss"])
    module.net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 3), Twice())
    with pytest.raises(ValueError, match=r"nor by its training step, run apart \(no third derivative\); change"):
        fit(module, [SharpnessMonitor(curvature_at_end=True)], tmp_path)
    assert module.global_step == 0


def test_whole_numbers_that_are_no_classes_go_by_the_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Counts(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.mse_loss(self(batch[0])[:, 0], batch[1].float())

        @staticmethod
        def batch_of(x: Tensor, y: Tensor) -> Any:
            return [x, 3 + y]

    with caplog.at_level("INFO"):
        _, memory = fit(Counts(), [LinearInterpolationBarrier(every_n_epochs=1, points=3)], tmp_path)
    assert any("(labels go up to 5, and there are 3 outputs): the loss is that" in each for each in caplog.messages)
    assert not of(memory, "barrier/train_error")


def test_what_a_step_draws_is_the_same_all_along_the_path(tmp_path: Path) -> None:
    class Still(DictBatch):
        lr = 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            batch["inputs"] += torch.randn_like(batch["inputs"])
            return super().training_step(batch, batch_idx)

    barrier = LinearInterpolationBarrier(every_n_epochs=1, points=3)
    fit(Still(), [barrier], tmp_path)
    (measured,) = barrier.results.values()
    assert len(set(measured.curves["train_loss"])) == 1


def test_a_validation_set_that_the_training_step_does_not_take_is_left_out(tmp_path: Path) -> None:
    barrier = LinearInterpolationBarrier(every_n_epochs=1, points=3)
    val: DataLoader[Any] = DataLoader([torch.zeros(6)] * 8, 4, collate_fn=stacked)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="step of DictBatch does not take batches of the validation set .*labels"):
        fit(DictBatch(), [barrier], tmp_path, val=val)
    assert [[*each.curves] for each in barrier.results.values()] == [["train_loss"]]


def stacked(samples: Any) -> dict[str, Tensor]:
    return {"inputs": torch.stack(samples)}


class OnlyInTraining(Pair):
    """A step that cannot be run apart."""

    example_input_array = torch.zeros(2, 6)
    batch_of = DictBatch.batch_of

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.lightning_module.log.__name__ == "log":
            return F.cross_entropy(self(batch["inputs"]), batch["labels"])
        raise RuntimeError("not apart")


@pytest.mark.parametrize("callback", [monitors()[i] for i in (0, 2, 3)])
def test_where_neither_runs_both_ways_are_named(callback: Callback, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot evaluate a batch") as error:
        fit(OnlyInTraining(), [callback], tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{type(callback).__name__} cannot evaluate a batch")
    assert "by criterion(module(inputs), labels) (a batch is a dict, no pair of inputs and labels)" in message
    assert "nor by its training step, run apart (not apart)" in message


class Skips(DictBatch):
    """Leaves out batches of few samples."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if len(batch["labels"]) == 8 else None


def test_batches_that_the_step_skips_do_not_count(tmp_path: Path) -> None:
    monitor = SharpnessMonitor(train_pass_every=1)
    barrier = LinearInterpolationBarrier(every_n_epochs=1, points=3)
    _, memory = fit(Skips(), [barrier, monitor], tmp_path)
    module = Skips()
    assert all(math.isfinite(value) for value in memory.logged.values())
    batches = [module.batch_of(torch.zeros(n, 6), torch.zeros(n).long()) for n in (8, 9)]
    step = StepLoss(module)
    assert [found and found[1] for found in map(step, batches)] == [8, None]


def test_two_ranks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for draws in ("callbacks.linear_interpolation_barrier", "callbacks.sharpness", "rivals.results"):
        monkeypatch.setattr(f"lit_sphere.{draws}.save_picture", lambda *_: None)  # which take most of the time

    class InOrder(DictBatch):
        def __init__(self) -> None:
            super().__init__()
            self.net[1] = nn.LayerNorm(8)

        def train_dataloader(self) -> DataLoader[Any]:
            return loader(type(self), 16, ranks=self.trainer.world_size, rank=self.trainer.global_rank)

    found = []
    for ranks in (1, 2):
        barrier, _, sharpness, _ = monitors()
        comparison = OptimizerComparison({"own": partial(SGD, **_OPTIONS)}, granularity="tensor", every_n_steps=1)
        options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2} if ranks == 2 else {}
        trainer = Trainer(
            accelerator="cpu", max_epochs=2, callbacks=[barrier, sharpness, comparison],
            logger=CSVLogger(tmp_path / str(ranks), name="", version=""), use_distributed_sampler=False,
            log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            **options,
        )  # fmt: skip
        trainer.fit(InOrder())
        with (tmp_path / str(ranks) / "barrier-0001-to-0002.csv").open() as table:
            curve = [float(row["train_loss"]) for row in csv.DictReader(table)]
        metrics = trainer.callback_metrics
        assert metrics["optimizer_comparison/own_distance_max"] < 1e-12
        names = ("train_pass/loss", "sharpness/train_pass", "sharpness/top_eigenvalue", "optimizer_comparison/own_loss")
        found.append([*curve, *(float(metrics[name]) for name in names)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def held(module: nn.Module) -> Iterator[tuple[str, int]]:
    for name, each in module.named_modules():
        for key, value in vars(each).items():
            yield f"{name} {key}", id(value)


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_leaves_no_trace_in_its_module(fails: bool) -> None:
    class Fails(Views):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.last = self.other = loss
            if fails:
                raise RuntimeError("boom")
            return loss

    module = Fails()
    module.last = torch.zeros(())
    before, state = dict(held(module)), module.generator.get_state()
    teacher = module.teacher.weight.clone()
    batch = module.batch_of(torch.randn(4, 6), torch.zeros(4))
    with untouched(module):
        if fails:
            with pytest.raises(RuntimeError, match="boom"):
                StepLoss(module)(batch)
        else:
            found = StepLoss(module)(batch)
            assert found is not None
            found[0].backward()
            weight = module.net[0].weight
            assert isinstance(weight, nn.Parameter)
            assert weight.grad is not None, "it can be differentiated"
    assert dict(held(module)) == before
    assert torch.equal(module.generator.get_state(), state)
    assert torch.equal(module.teacher.weight, teacher)
    assert module.last == 0


class TwoNames(Pair):
    """The first layer is reachable by two names, as that of T5's shared embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.net[0]
        self.body = nn.Sequential(self.stem, self.net[1])


def test_rivals_leave_modules_with_two_names_alone(tmp_path: Path) -> None:
    memory, module, _ = twins(TwoNames, [monitors()[3]], tmp_path)
    assert isinstance(module, TwoNames)
    assert isinstance(module.stem.weight, nn.Parameter)
    assert module.stem.weight is module.body[0].weight
    assert of(memory, "optimizer_comparison/own_distance_max") == [0.0] * 4


def test_a_last_batch_of_one_sample_is_joined_whatever_holds_it(tmp_path: Path) -> None:
    counts: list[int] = []

    class Counts(DictBatch):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            counts.append(len(batch["labels"]))
            return super().training_step(batch, batch_idx)

    fit(Counts(), [LinearInterpolationBarrier(every_n_epochs=1, points=3)], tmp_path)
    assert 9 in counts
    assert 1 not in counts


class Transformer(LightningModule):
    """As its authors show it."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        transformers: Any = import_module("transformers")
        torch.manual_seed(0)
        layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
        config = transformers.BertConfig(**layers, vocab_size=50, num_labels=3)
        self.net = transformers.BertForSequenceClassification(config)
        if reentrant is not None:
            self.net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        self.net.train()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(**batch).loss

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), **_OPTIONS)

    def train_dataloader(self) -> DataLoader[Any]:
        g = torch.Generator().manual_seed(0)
        ids, labels = torch.randint(50, (16, 8), generator=g), torch.randint(3, (16,), generator=g)
        rows = [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": y} for x, y in zip(ids, labels)]  # noqa: B905
        return DataLoader(rows, 8)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_on_a_transformer_with_dropout_and_checkpoints(reentrant: bool | None, tmp_path: Path) -> None:
    def run(callbacks: list[Callback]) -> tuple[dict[str, Tensor], Memory]:
        memory, module = Memory(), Transformer(reentrant)
        trainer = Trainer(
            logger=memory, callbacks=callbacks, max_epochs=2, accelerator="cpu", enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(module)
        return everything(trainer, module), memory

    barrier, similarity, sharpness, _ = monitors()
    comparison = OptimizerComparison({"own": partial(SGD, **_OPTIONS)}, every_n_steps=1, granularity="tensor")
    if reentrant:  # torch makes no gradients of these but by backward()
        for callback in (sharpness, comparison):
            with pytest.raises(ValueError, match=r"nor by its training step.*use_reentrant=False.*; change"):
                run([callback])
    callbacks = [barrier, similarity] if reentrant else [barrier, similarity, sharpness, comparison]
    found, memory = run(callbacks)
    assert_equal(found, run([])[0])
    assert all(math.isfinite(value) for value in memory.logged.values())
    assert of(memory, "optimizer_comparison/own_distance_max") == [0.0] * 4 * (not reentrant)
    assert of(memory, "barrier/train_loss")
