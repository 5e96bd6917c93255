"""Barriers between points of a run: what is measured, when, and that the run does not notice."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_sphere.analysis import Interpolation, WeightPath, interpolate, path_positions, take_weights
from lit_sphere.callbacks import LinearInterpolationBarrier
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet
from lit_sphere.report import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*many workers")


def data() -> Digits:
    return Digits(batch_size=64, train_size=256)


def module(seed: int = 0, width: int = 4, elr: float = 2e-2) -> SIConvNet:
    torch.manual_seed(seed)
    return SIConvNet(width=width, in_channels=1, elr=elr)


def fit(
    folder: Path | None, *callbacks: Callback, model: LightningModule | None = None, source: Any = None, **options: Any
) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    options = {"accelerator": "cpu", "max_epochs": 4, "enable_checkpointing": False, **options}
    trainer = Trainer(
        logger=CSVLogger(folder, name="", version="") if folder else False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module() if model is None else model, data() if source is None else source, ckpt_path=ckpt_path)
    return trainer


class Keep(Callback):
    """The weights after each epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights.append(take_weights(pl_module))


class MarkAt(Callback):
    """Stands for a switch of the learning rate."""

    def __init__(self, barrier: LinearInterpolationBarrier, *moments: tuple[int, int]) -> None:
        self.barrier, self.moments = barrier, moments
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) in self.moments:
            self.barrier.mark(trainer, pl_module)
            self.barrier.mark(trainer, pl_module)  # by a second switch at the same step
            self.weights.append(take_weights(pl_module))


def by_hand(start: dict[str, Tensor], end: dict[str, Tensor], points: int, *args: Any, **kwargs: Any) -> Interpolation:
    model, source = module(), data()
    source.setup()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    passes: dict[str, Callable[[], Any]] = {"train": source.train_pass_dataloader, "val": source.val_dataloader}
    path = WeightPath(start, end, [names], *args)
    return interpolate(model, path, passes, path_positions(points), criterion=model.criterion, **kwargs)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another run of the same network."""
    path = tmp_path_factory.mktemp("other") / "other.ckpt"
    fit(None, model=module(elr=1e-3), max_epochs=1).save_checkpoint(path)
    return path


def test_snapshots_are_joined_and_logged(tmp_path: Path) -> None:
    keep, barrier = Keep(), LinearInterpolationBarrier(every_n_epochs=2, points=5)
    fit(tmp_path, barrier, keep, max_epochs=7)
    expected = [by_hand(keep.weights[i], keep.weights[i + 2], 5) for i in (1, 3)]
    assert list(barrier.results.values()) == expected
    assert list(barrier.results) == ["barrier-0002-to-0004", "barrier-0004-to-0006"]
    series = read_metrics(tmp_path / "metrics.csv")
    for name in ("train_loss", "train_error", "val_loss", "val_error"):
        assert series[f"barrier/{name}"].values == [path.barrier(name) for path in expected]
        assert series[f"barrier/{name}"].epochs == [3, 5]
        assert series[f"barrier/{name}"].steps == [4 * 4 - 1, 4 * 6 - 1]
    for name in ("train_loss", "val_loss"):
        assert series[f"barrier/{name}_dip"].values == [path.dip(name) for path in expected]
    assert series["barrier/cosine"].values == [path.separation.cosine for path in expected]
    assert all(path.separation.cosine < 0.999 for path in expected), "the run moves"
    assert max(path.barrier("train_loss") + path.dip("train_loss") for path in expected) > 0
    for name, path in barrier.results.items():
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["position"]) for row in rows] == [0, 0.25, 0.5, 0.75, 1]
        assert tuple(float(row["val_loss"]) for row in rows) == path.curves["val_loss"]
        assert matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3].std() > 0.02


def test_from_a_checkpoint_to_the_end(tmp_path: Path, start: Path) -> None:
    keep, barrier = Keep(), LinearInterpolationBarrier(start=start, points=3, great_circle=True)
    fit(tmp_path, barrier, keep)
    weights = torch.load(start, weights_only=True)["state_dict"]
    (name,) = barrier.results
    assert name == "barrier-other-to-0004-great-circle"
    assert barrier.results[name] == by_hand(weights, keep.weights[-1], 3, True)
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["barrier/great_circle/train_loss"].epochs == [3]
    assert (tmp_path / f"{name}.png").exists()


def test_from_a_checkpoint_every_few_epochs(tmp_path: Path, start: Path) -> None:
    keep = Keep()
    barrier = LinearInterpolationBarrier(start=start, every_n_epochs=2, points=3, statistics="reestimated")
    fit(tmp_path, barrier, keep, max_epochs=5)
    weights = torch.load(start, weights_only=True)["state_dict"]
    names = [f"barrier-other-to-000{i}-reestimated" for i in (2, 4, 5)]
    assert list(barrier.results) == names
    for name, end in zip(names, (1, 3, 4), strict=True):
        assert barrier.results[name] == by_hand(weights, keep.weights[end], 3, statistics="reestimated")
    assert read_metrics(tmp_path / "metrics.csv")["barrier/val_error"].epochs == [1, 3, 4]


def test_between_switches_and_to_the_end(tmp_path: Path) -> None:
    barrier, keep = LinearInterpolationBarrier("switches", points=3), Keep()
    switch = MarkAt(barrier, (1, 2), (3, 0))
    fit(tmp_path, switch, barrier, keep)
    assert list(barrier.results) == ["barrier-switch-1-to-switch-2", "barrier-switch-2-to-0004"]
    assert torch.equal(switch.weights[1]["network.convs.0.weight"], keep.weights[2]["network.convs.0.weight"])
    assert barrier.results["barrier-switch-1-to-switch-2"] == by_hand(switch.weights[0], switch.weights[1], 3)
    assert barrier.results["barrier-switch-2-to-0004"] == by_hand(switch.weights[1], keep.weights[3], 3)


def test_a_resumed_run_remembers_its_switches(tmp_path: Path) -> None:
    def make() -> tuple[LinearInterpolationBarrier, MarkAt]:
        barrier = LinearInterpolationBarrier("switches", points=3, every_n_epochs=2)
        return barrier, MarkAt(barrier, (1, 2), (2, 0))

    whole, first, second = make(), make(), make()
    fit(None, *whole)
    assert list(whole[0].results) == [
        "barrier-switch-1-to-0002",
        "barrier-switch-1-to-switch-2",
        "barrier-switch-2-to-0004",
    ]
    fit(None, *first, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    assert list(first[0].results) == ["barrier-switch-1-to-0002"], "measured once, though it is the end, too"
    fit(None, *second, ckpt_path=tmp_path / "half.ckpt")
    assert {**first[0].results, **second[0].results} == whole[0].results


def test_marks_need_switches() -> None:
    barrier = LinearInterpolationBarrier(every_n_epochs=1)
    with pytest.raises(ValueError, match="marks switches with between='switches', not 'snapshots'"):
        fit(None, MarkAt(barrier, (0, 0)), barrier)
    with pytest.warns(UserWarning, match="no switch was marked; add FineTuneSwitch"):
        fit(None, LinearInterpolationBarrier("switches"), max_epochs=1)


# --- a run that does not notice ----------------------------------------------------------------------------


class ForeignDropout(LightningModule):
    """Automatic optimisation, affine batch norm, dropout, momentum: the run depends on every random number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        hidden = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3)]
        self.layers = nn.Sequential(*hidden, nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        g = torch.Generator().manual_seed(0)
        table = TensorDataset(torch.randn(48, 8, generator=g), torch.randint(0, 3, (48,), generator=g))
        return DataLoader(table, batch_size=16, shuffle=True)


class Fingerprint(Callback):
    """Everything a step could depend on, before each batch."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        state = [value.double().flatten() for value in pl_module.state_dict().values()]
        grads = [p.grad.double().flatten() for p in pl_module.parameters() if p.grad is not None]
        modes = torch.tensor([float(each.training) for each in pl_module.modules()])
        self.seen.append(torch.cat([*state, *grads, modes, torch.get_rng_state().double(), batch[0].flatten()]))


@pytest.mark.parametrize("statistics", ["batch", "reestimated"])
def test_training_goes_on_as_if_nothing_had_been_measured(statistics: Any) -> None:
    barrier = LinearInterpolationBarrier(every_n_epochs=1, points=3, statistics=statistics)
    marked = LinearInterpolationBarrier("switches", points=3, statistics=statistics, every_n_epochs=1)
    prints: list[Fingerprint] = []
    states: list[dict[str, Tensor]] = []
    for callbacks in ([], [barrier, marked, MarkAt(marked, (1, 1))]):
        prints.append(Fingerprint())
        model = ForeignDropout()
        torch.manual_seed(1)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            callbacks=[*callbacks, prints[-1]],
        )
        trainer.fit(model)
        states.append(model.state_dict())
    assert len(barrier.results) == 2
    assert len(marked.results) == 2
    assert next(iter(barrier.results.values())).curves.keys() == {"train_loss", "train_error"}
    assert len(prints[0].seen) == 9
    for bare, watched in zip(*(each.seen for each in prints), strict=True):
        assert torch.equal(bare, watched)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions(precision: Any) -> None:
    results = []
    for each in ("32-true", precision):
        barrier = LinearInterpolationBarrier(every_n_epochs=1, points=3)
        fit(None, barrier, model=module(elr=1e-3), max_epochs=2, precision=each)
        results.append(barrier.results["barrier-0001-to-0002"])
    exact, found = results
    tolerance = 1e-4 if precision == "64-true" else 0.3
    assert found.curves["train_loss"] == pytest.approx(exact.curves["train_loss"], rel=tolerance)
    assert found.separation.cosine == pytest.approx(exact.separation.cosine, abs=tolerance)
    assert found.curves["train_loss"] != exact.curves["train_loss"], "the precision has no effect at all"


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_two_ranks_average_the_statistics_that_they_reestimate(tmp_path: Path, start: Path) -> None:
    class Compare(Callback):
        def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            (found,) = barrier.results.values()
            mine = torch.tensor(list(found.curves.values()))
            others = [torch.empty_like(mine) for _ in range(2)]
            dist.all_gather(others, mine)
            assert torch.equal(others[0], others[1])
            if trainer.is_global_zero:
                torch.save([take_weights(pl_module), found.curves], tmp_path / "found.pt")

    barrier = LinearInterpolationBarrier(start=start, points=3, statistics="reestimated")
    fit(tmp_path, barrier, Compare(), devices=2, strategy="ddp_fork", max_epochs=1)
    end, curves = torch.load(tmp_path / "found.pt", weights_only=True)
    # What one process finds whose batches are the two ranks' shares.
    model, source = module(), data()
    source.setup()
    shares = [(x[rank::2], y[rank::2]) for x, y in source.train_pass_dataloader() for rank in range(2)]
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    path = WeightPath(torch.load(start, weights_only=True)["state_dict"], end, [names])
    passes: dict[str, Callable[[], Any]] = {"train": lambda: shares, "val": source.val_dataloader}
    expected = interpolate(model, path, passes, path_positions(3), "reestimated").curves
    for name, values in expected.items():
        assert curves[name] == pytest.approx(values, rel=1e-5), name


# --- bad input ---------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code was run')",)


def test_a_bad_checkpoint_is_refused_before_the_first_step(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "global_step": 0, "x": Evil()}, tmp_path / "evil.ckpt")
    fit(None, model=module(width=5), max_epochs=1).save_checkpoint(tmp_path / "wide.ckpt")
    for name, words in {
        "nowhere.ckpt": "nowhere.ckpt: no such file",
        "evil.ckpt": "evil.ckpt: holds pickled code",
        "wide.ckpt": r"of another architecture: .* is \(5, 1, 3, 3\) there and \(4, 1, 3, 3\) in SIConvNet; give a",
    }.items():
        first = Fingerprint()
        with pytest.raises(ValueError, match=f"LinearInterpolationBarrier: start .*{words}"):
            fit(None, LinearInterpolationBarrier(start=tmp_path / name), first)
        assert not first.seen


class TwoOutputs(SIConvNet):
    """Not to be evaluated by its forward."""

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs), inputs

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("a step was made")


def test_what_cannot_be_evaluated_is_told_before_the_first_step() -> None:
    """Not at the first snapshot, or at the end, after hours."""
    model = TwoOutputs(width=4, in_channels=1, elr=2e-2)
    name = "LinearInterpolationBarrier"
    with pytest.raises(ValueError, match=rf"{name} cannot evaluate a batch of the \w+ set by TwoOutputs.*; .* out$"):
        fit(None, LinearInterpolationBarrier(between="switches"), model=model)


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`|.*use_distributed_sampler|.*does not have many")
def test_a_train_set_that_has_no_order_is_told_before_the_first_step() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield from ((torch.zeros(1, 8, 8), 0) for _ in range(128))

    with pytest.raises(
        ValueError, match=r"LinearInterpolationBarrier cannot pass over the train set.*method train_pass"
    ):
        fit(None, LinearInterpolationBarrier(between="switches"), Fingerprint(), source=DataLoader(Stream(), 64))


def test_weights_that_are_not_finite_are_refused_before_the_first_step(tmp_path: Path) -> None:
    path = tmp_path / "nan.ckpt"
    weights = {name: value * torch.nan if value.is_floating_point() else value for name, value in
               module().state_dict().items()}  # fmt: skip
    torch.save({"state_dict": weights, "global_step": 1}, path)
    first = Fingerprint()
    with pytest.raises(ValueError, match=r"LinearInterpolationBarrier: start .*is NaN or infinite there; give an"):
        fit(None, LinearInterpolationBarrier(start=path), first)
    assert not first.seen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"between": "epochs"}, "between must be one of"),
        ({"statistics": "running"}, "statistics must be one of"),
        ({"between": "checkpoint"}, "give start"),
        ({"between": "switches", "start": "a.ckpt"}, "give start"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
        ({"points": 2}, "LinearInterpolationBarrier: points must be at least 3"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LinearInterpolationBarrier(**options)


def test_two_that_would_write_the_same_files_are_refused() -> None:
    two = [LinearInterpolationBarrier(every_n_epochs=1, points=points) for points in (3, 5)]
    with pytest.raises(ValueError, match="would write the same files"):
        fit(None, *two)
    fit(None, two[0], LinearInterpolationBarrier(every_n_epochs=1, points=3, great_circle=True), max_epochs=2)


def test_a_run_too_short_for_two_snapshots() -> None:
    with pytest.warns(UserWarning, match="no two snapshots 20 epochs apart in 4 epochs; lower every_n_epochs"):
        fit(None, LinearInterpolationBarrier())


# --- what the papers found ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_barriers_between_learning_rates_and_within_the_chaotic_equilibrium() -> None:
    """TR §5 on digits: optima of far ELRs lie behind barriers, checkpoints of one regime-2 run do not."""

    def trained(elr: float, *barriers: LinearInterpolationBarrier) -> dict[str, Tensor]:
        model = module(width=8, elr=elr)
        fit(None, *barriers, model=model, source=Digits(), max_epochs=100)
        return take_weights(model)

    model, source = module(width=8), Digits()
    source.setup()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    optima = {elr: trained(elr) for elr in (1e-4, 1e-3, 2e-2)}
    found = {}
    for low, high in ((1e-4, 1e-3), (1e-3, 2e-2)):
        path = WeightPath(optima[low], optima[high], [names])
        found[low] = interpolate(model, path, {"train": source.train_pass_dataloader}, path_positions(21))
    assert found[1e-4].barrier("train_loss") < 0.05
    assert found[1e-4].separation.cosine > 0.9
    assert found[1e-3].barrier("train_loss") > 0.2
    assert found[1e-3].separation.cosine < 0.3
    chaotic = LinearInterpolationBarrier(every_n_epochs=20)
    trained(3e-2, chaotic)
    assert len(chaotic.results) == 4
    for each in chaotic.results.values():
        assert each.separation.cosine < 0.5
        assert each.barrier("train_loss") < 0.15 * min(each.curves["train_loss"][0], each.curves["train_loss"][-1])
        assert each.dip("train_loss") > each.barrier("train_loss")
