"""Groups of LightningModules as people write them: without forward, with any batch, under manual optimisation."""

import inspect
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torchmetrics
from callback_registry import REGISTRY
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_sphere import callbacks
from lit_sphere.callbacks import EffectiveLearningRateMonitor, FixedNorm, RunSummary
from lit_sphere.groups import search_groups
from lit_sphere.observe import module_groups
from lit_sphere.observe.module_groups import FindsGroups, groups_of

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SAMPLES = [(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(i)), i % 3) for i in range(16)]
NET = [("net.1.weight",)]


class NoForward(LightningModule):
    """The commonest style: the step calls a network that is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8, bias=False), nn.BatchNorm1d(8, affine=False), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.losses: list[float] = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.head(self.net(x))
        self.accuracy.update(logits, y)
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss)
        self.losses.append(loss.item())
        cast(Any, self.logger).experiment.log_metrics({"seen": 1.0}, step=len(self.losses))
        return loss

    def training_step(self, batch: Any, index: int) -> Any:
        return self.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class DictBatch(NoForward):
    """A dictionary in, a dictionary out."""

    def training_step(self, batch: Any, index: int) -> Any:
        return {"loss": self.loss(batch["x"], batch["y"])}


class Views(NoForward):
    """Two views of an image, and a label."""

    def training_step(self, batch: Any, index: int) -> Any:
        (one, other), y = batch
        return self.loss(one, y) + self.loss(other, y)


class LossForward(NoForward):
    """A forward that returns the loss."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(x, y)

    def training_step(self, batch: Any, index: int) -> Any:
        return self(*batch)


class Manual(NoForward):
    """Manual optimisation with a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer: Any = self.optimizers()
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(self.loss(*batch))
        self.clip_gradients(optimizer, 1.0, "norm")
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        cast(Any, self.lr_schedulers()).step()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 100)]


@dataclass
class Sample:
    """A batch of named parts."""

    x: Tensor
    y: Tensor


class DataclassBatch(NoForward):
    """A dataclass in."""

    def training_step(self, batch: Sample, index: int) -> Any:
        return self.loss(batch.x, batch.y)


def together(samples: list[Any]) -> Sample:
    x, y = zip(*samples, strict=True)
    return Sample(torch.stack(x), torch.tensor(y))


def batches(kind: type[NoForward]) -> DataLoader[Any]:
    if kind is DataclassBatch:
        return DataLoader(cast(Any, SAMPLES), 8, collate_fn=together)
    samples: list[Any] = list(SAMPLES)
    if kind is DictBatch:
        samples = [{"x": x, "y": y} for x, y in SAMPLES]
    elif kind is Views:
        samples = [([x, x + 0.1], y) for x, y in SAMPLES]
    return DataLoader(cast(Any, samples), 8)


def train(kind: type[NoForward], folder: Path, *callbacks: Any) -> NoForward:
    module = kind()
    logger = CSVLogger(folder, "run", "0")
    trainer = Trainer(max_epochs=1, callbacks=list(callbacks), logger=logger, enable_checkpointing=False, **QUIET)
    trainer.fit(module, batches(kind))
    module.metrics = dict(trainer.callback_metrics)  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("kind", [NoForward, DictBatch, Views, LossForward, Manual, DataclassBatch])
@pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|Experiment logs directory)")
def test_a_training_step_is_all_that_is_needed(kind: type[NoForward], tmp_path: Path) -> None:
    watched, plain = train(kind, tmp_path / "a", EffectiveLearningRateMonitor()), train(kind, tmp_path / "b")
    assert 0 < cast(Any, watched.metrics)["elr/total"] < 1
    assert watched.losses == plain.losses  # only the real steps, on the same weights
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    assert torch.equal(watched.accuracy.compute(), plain.accuracy.compute())
    assert [each.read_text().count("seen") for each in tmp_path.glob("*/run/0/metrics.csv")] == [1, 1]


class OwnSchedule(NoForward):
    """Sets the learning rate in the step, by hand and by a scheduler of its own; skips a batch."""

    def training_step(self, batch: Any, index: int) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 1:
            return None
        for group in cast(Any, self.optimizers()).param_groups:
            group["lr"] *= 0.9
        self.schedule.step()
        return self.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return optimizer


@pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|Experiment logs|lr_scheduler.step|None)")
def test_the_real_optimizer_is_left_alone(tmp_path: Path) -> None:
    watched, plain = train(OwnSchedule, tmp_path / "a", EffectiveLearningRateMonitor()), train(OwnSchedule, tmp_path)
    rates = [cast(Any, module).schedule.optimizer.param_groups[0]["lr"] for module in (watched, plain)]
    assert rates[0] == rates[1] < 0.1
    assert watched.losses == plain.losses
    assert cast(Any, watched.metrics)["elr/total"] > 0


def test_a_batch_that_cannot_be_looked_into() -> None:
    class Opaque:
        def __init__(self, x: Tensor, y: Tensor) -> None:
            self.x, self.y = x, y

    class Graphs(NoForward):
        def training_step(self, batch: Any, index: int) -> Any:
            return F.cross_entropy(self.head(self.net(batch.x)), batch.y)

    groups = groups_of(FixedNorm(), Graphs(), Opaque(torch.randn(8, 3, 4, 4), torch.arange(8) % 3))
    assert groups is not None
    assert [group.names for group in groups] == NET


def test_a_step_with_a_gradient_penalty() -> None:
    class Penalised(NoForward):
        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            x = x.requires_grad_()
            loss = F.cross_entropy(self.head(self.net(x)), y)
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            return loss + gradient.square().sum()

    groups = groups_of(FixedNorm(), Penalised(), (torch.randn(8, 3, 4, 4), torch.arange(8) % 3))
    assert groups is not None
    assert [group.names for group in groups] == NET


def test_what_the_search_runs_can_be_said() -> None:
    class Parts(NoForward):
        def training_step(self, batch: Any, index: int) -> Any:
            raise RuntimeError("not apart from a run")

    batch = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"FixedNorm: a training step of Parts cannot be run .*not apart.*network="):
        groups_of(FixedNorm(), Parts(), batch)
    options: list[dict[str, Any]] = [
        {"network": "net"},
        {"network": "net", "example_input": torch.zeros(2, 3, 4, 4)},
        {"groups": ["net.*.weight"]},
        {"groups": [["net.1.weight"]]},
    ]
    for each in options:
        groups = groups_of(FixedNorm(**each), Parts(), batch)
        assert groups is not None
        assert [group.names for group in groups] == NET
    module = Parts()
    groups = groups_of(FixedNorm(network=lambda x: module.head(module.net(x))), module, batch)
    assert groups is not None
    assert [group.names for group in groups] == NET


def test_every_callback_that_needs_groups_takes_the_options() -> None:
    kinds = [kind for kind in vars(callbacks).values() if isinstance(kind, type) and issubclass(kind, FindsGroups)]
    assert len(kinds) > 8
    for kind in kinds:
        if kind is not RunSummary:  # it looks at what others have found
            assert {"example_input", "network", "groups"} <= inspect.signature(kind).parameters.keys(), kind
    needing = {entry.kind for entry in REGISTRY.values() if entry.needs_groups}
    assert needing <= set(kinds)


def test_a_choice_between_groups_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Gained(NoForward):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.middle = nn.Parameter(torch.ones(8)), nn.Linear(8, 8, bias=False)

        def training_step(self, batch: Any, index: int) -> Any:
            x = self.net[1](batch[0].flatten(1))
            x = x + self.gain * self.middle(F.relu(F.layer_norm(x, (8,))))
            return F.cross_entropy(self.head(F.layer_norm(x, (8,))), batch[1])

    batch = torch.randn(8, 3, 4, 4), torch.arange(8) % 3
    with caplog.at_level(logging.INFO):
        groups = groups_of(FixedNorm(), Gained(), batch)
    assert groups is not None
    assert [group.names for group in groups] == [("net.1.weight", "middle.weight")]
    said = [record.message for record in caplog.records if "of several choices" in record.message]
    assert len(said) == 1
    assert re.search(r"the 1 groups .* 1 other tensors \(gain\) could stand in place .*groups= decides", said[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "body"}, "network: NoForward has no 'body'"),
        ({"groups": ["net.7.weight"]}, "groups: 'net.7.weight' is no trainable parameter of NoForward, which has net"),
        ({"groups": ["net.*", ["net.1.weight", "head.weight"]]}, "groups: net.1.weight is in two groups"),
        ({"groups": []}, "groups is empty"),
    ],
)
def test_wrong_words_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"FixedNorm: {message}") as caught:
        groups_of(FixedNorm(**options), NoForward(), (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("when", ["before", "at the start"])
@pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|eval mode|Experiment logs directory)")
def test_norms_that_training_leaves_frozen_normalise_nothing(when: str, tmp_path: Path) -> None:
    class Finetuned(NoForward):
        def __init__(self) -> None:
            super().__init__()
            # Without a shift the frozen norm is a scale, which the norm behind it undoes.
            self.after = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8))
            self.net = nn.Sequential(*self.net, self.after)
            nn.init.normal_(cast(Tensor, self.net[2].running_mean))
            self.example_input_array = torch.zeros(2, 3, 4, 4)
            if when == "before":
                self.net[2].eval()

        def forward(self, x: Tensor) -> Any:
            return self.head(self.net(x))

        def on_train_start(self) -> None:
            self.net[2].eval()

    monitor = EffectiveLearningRateMonitor()
    train(Finetuned, tmp_path, monitor)
    assert monitor._watch.names == ["4.0.weight"]


@pytest.mark.parametrize("options", [{"groups": 3}, {"groups": [3]}, {"groups": "net"}, {"network": 3}])
def test_words_of_another_type_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        FixedNorm(**options)


def test_a_resumed_run_does_not_search_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(module: NoForward, epochs: int, path: str | None = None) -> Trainer:
        trainer = Trainer(
            max_epochs=epochs, callbacks=[EffectiveLearningRateMonitor()], logger=False, enable_checkpointing=False,
            default_root_dir=tmp_path, **QUIET,
        )  # fmt: skip
        trainer.fit(module, batches(DictBatch), ckpt_path=path)
        return trainer

    monkeypatch.setattr(NoForward, "loss", lambda self, x, y: F.cross_entropy(self.head(self.net(x)), y))
    fit(DictBatch(), 1).save_checkpoint(tmp_path / "one.ckpt")
    searches: list[Any] = []

    def search(*args: Any, **options: Any) -> Any:
        searches.append(args)
        return search_groups(*args, **options)

    monkeypatch.setattr(module_groups, "search_groups", search)
    assert fit(DictBatch(), 2, str(tmp_path / "one.ckpt")).callback_metrics["elr/total"] > 0
    assert not searches
    frozen = DictBatch()
    frozen.head.requires_grad_(False)
    module_groups.FindsGroups().on_load_checkpoint(
        cast(Any, None), frozen, torch.load(tmp_path / "one.ckpt", weights_only=True)
    )
    groups_of(FixedNorm(), frozen, next(iter(batches(DictBatch))))
    assert len(searches) == 1  # others are trained: the names do not hold
