"""Parameters sharded over two gloo processes (FSDP2): the numbers, and the runs, of one process."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from callback_fits import Memory, assert_equal, quietly
from callback_registry import REGISTRY
from foreign_modules import ForeignData, Lion
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from sharded_runs import Sharded, on_two_ranks, run, trainer_of
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lit_sphere.analysis.weights import read_checkpoint
from lit_sphere.callbacks import (
    EffectiveLearningRateMonitor,
    FineTuneSwitch,
    FixedNorm,
    NonFinite,
    RunSummary,
    SharpnessMonitor,
    StopOnNonFinite,
    Switch,
)
from lit_sphere.effective import EffectiveQuantities
from lit_sphere.groups import Group, find_groups
from lit_sphere.groups.sharded import whole_parameters
from lit_sphere.optim import AdaGradG, GradientAscent, NormKeeper, RandomWalk, SphereSGD, joint_norm, squared_norms
from lit_sphere.optim.shards import is_distributed
from lit_sphere.switching.options import SwitchableOptions

pytestmark = [
    quietly,
    pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed"),
    pytest.mark.timeout(300),
    *(
        pytest.mark.filterwarnings(f"ignore:.*{said}")
        for said in ("Detected an existing checkpoint", "exists and is not empty", "weights_only")
    ),
]

# --- sums over shards: rows that two ranks cannot share evenly, one that a rank has nothing of, a scalar

_SHAPES: tuple[tuple[int, ...], ...] = ((5, 3, 2, 2), (1, 4), (7,), (6, 3), (4, 2, 3), ())
Layout = Sequence[Callable[[Tensor], Tensor]]


def layouts() -> dict[str, Layout]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    line = init_device_mesh("cpu", (2,))
    replicas, shards = (init_device_mesh("cpu", shape, mesh_dim_names=("r", "s")) for shape in ((2, 1), (1, 2)))
    row, column, same = Shard(0), Shard(1), Replicate()

    def on(mesh: Any, *placements: Any) -> Callable[[Tensor], Tensor]:
        return lambda tensor: distribute_tensor(tensor.clone(), mesh, placements)

    return {
        "FSDP": [on(line, row)] * 5 + [on(line, same)],
        "HSDP, two replicas": [on(replicas, same, row)] * 5 + [torch.clone],
        "HSDP, two shards": [on(shards, same, row)] * 5 + [torch.clone],
        "all sorts": [on(line, row), torch.clone, on(line, row), on(line, column), on(line, same), torch.clone],
        "two meshes": [
            *(on(line, row), on(shards, same, row), torch.clone),
            *(on(line, column), on(shards, same, column), torch.clone),
        ],
    }


def of_tensors(params: Sequence[nn.Parameter]) -> list[Group]:
    a, b, c, d, e, f = params
    return [Group("a", (a,)), Group("b", (b, c)), Group("d", (d,)), Group("e", (e, f))]


def of_rows(params: Sequence[nn.Parameter]) -> list[Group]:
    a, b, _, d, e, _ = params
    blocks = [Group("d0", (d,), slice(0, 3)), Group("d1", (d,), slice(3, 6)), Group("e", (e,), slice(1, 3))]
    return [*(Group(f"a{i}", (a,), slice(i, i + 1)) for i in range(5)), Group("b", (b,)), *blocks]


def filter_spheres(params: Sequence[nn.Parameter], make: type[SphereSGD] = SphereSGD) -> Optimizer:
    wide, rest = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": wide}, {"params": rest, "elr": None, "lr": 0.1}]
    return make(groups, elr=0.01, granularity="filter")


def adagrad_g(granularity: Any, params: Sequence[nn.Parameter]) -> Optimizer:
    wide, rest = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": wide}, {"params": rest, "granularity": "tensor"}]
    return AdaGradG(groups, lr=0.1, granularity=granularity)


def two_rates(params: Sequence[nn.Parameter]) -> Optimizer:
    groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
    return SGD(groups, lr=0.1)


OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter]], Optimizer]] = {
    "SGD": partial(SGD, lr=0.1, weight_decay=0.01),
    "momentum": partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": partial(AdamW, lr=0.1, weight_decay=0.1),
    "Lion": partial(Lion, lr=0.1),
    "two rates": two_rates,
    "sphere": partial(SphereSGD, elr=0.01),
    "spheres of filters": filter_spheres,
    "ascent": partial(GradientAscent, elr=0.01),
    "random walk": partial(RandomWalk, elr=0.01),
    "random walk of filters": partial(filter_spheres, make=RandomWalk),
    **{f"AdaGradG, {each}": partial(adagrad_g, each) for each in ("filter", "tensor", "joint")},
}


def steps(make: Callable[[Sequence[nn.Parameter]], Optimizer], of: Any, layout: Layout | None) -> list[Tensor]:
    """Measurements of three steps, and the weights after them."""
    layout = layout or [torch.clone] * len(_SHAPES)
    g = torch.Generator().manual_seed(1)
    params = [
        nn.Parameter(put(torch.randn(shape, generator=g, dtype=torch.float64)))
        for shape, put in zip(_SHAPES, layout, strict=True)
    ]
    optimizer = make(params)
    if isinstance(optimizer, AdamW):
        NormKeeper([params[:2], [params[3]]]).attach(optimizer)
    quantities, found = EffectiveQuantities(of(params), optimizer), []
    for step in range(3):
        for number, (p, put) in enumerate(zip(params, layout, strict=True)):
            gradient = put(torch.randn(p.shape, generator=g, dtype=torch.float64))
            p.grad = None if (number, step) == (2, 1) and not isinstance(optimizer, Lion) else gradient
        before = quantities.source == "gradients"
        if before:
            found.append(quantities.measure())
        else:
            quantities.keep_gradients()
            quantities.keep_weights()
        optimizer.step()
        if not before:
            found.append(quantities.measure())
    whole: list[Any] = [p.detach() for p in params]
    return found + [p.full_tensor() if is_distributed(p) else p for p in whole]


def assert_sums_agree(cases: Sequence[tuple[str, str, Any]]) -> None:
    known = layouts()
    for layout, optimizer, of in cases:
        one, two = (steps(OPTIMIZERS[optimizer], of, each) for each in (None, known[layout]))
        for a, b in zip(one, two, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True), (layout, optimizer, of.__name__, a - b)


def test_sums_over_shards_are_those_of_one_process(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        some = ("SGD", "AdamW", "Lion", "spheres of filters", "AdaGradG, joint")
        kinds = itertools.cycle((of_rows, of_tensors))
        assert_sums_agree(list(zip(layouts(), some, kinds, strict=False)))
        put, g = layouts()["FSDP"][0], torch.Generator().manual_seed(0)
        large = [torch.randn(shape, generator=g) for shape in ((601, 300), (3, 5), (300_000,))]
        exact = torch.stack([each.double().square().sum() for each in large])
        torch.testing.assert_close(squared_norms([put(each) for each in large]), exact, rtol=1e-6, atol=0)
        assert joint_norm([put(each) for each in large]).item() == pytest.approx(exact.sum().sqrt().item(), rel=1e-6)
        assert_one_collective_a_step(put)
        sgd = SwitchableOptions([SGD([nn.Parameter(put(large[1]))], lr=0.1)])
        with pytest.raises(ValueError, match="no checkpoint of a sharded run restores; take SphereSGD"):
            sgd.check({"sphere": True}, on_sphere=False)

    on_two_ranks(work, tmp_path)


def assert_one_collective_a_step(put: Callable[[Tensor], Tensor]) -> None:
    """However many tensors there are; AdaGradG needs the norms of gradients, and of what they lead to."""
    counted: list[Any] = []
    all_reduce = dist.all_reduce

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted.append(args)
        return all_reduce(*args, **kwargs)

    params = [nn.Parameter(put(torch.randn(5, 4))) for _ in range(7)]
    for p in params:
        p.grad = put(torch.randn(5, 4))
    groups = [Group(str(number), (p,)) for number, p in enumerate(params)]
    with pytest.MonkeyPatch.context() as patch:
        for make, most in ((partial(SphereSGD, elr=0.1), 1), (partial(AdaGradG, lr=0.1, granularity="tensor"), 2)):
            optimizer: Any = make(params)
            patch.setattr(dist, "all_reduce", counting)
            optimizer.step()
            assert len(counted) == most
            counted.clear()
            patch.undo()
        keeper, sgd, adamw = NormKeeper([[p] for p in params]), SGD(params, lr=0.1), AdamW(params, lr=0.1)
        adamw.step()
        for act in (keeper.rescale, *(EffectiveQuantities(groups, each).measure for each in (sgd, adamw))):
            patch.setattr(dist, "all_reduce", counting)
            act()
            assert len(counted) == 1
            counted.clear()
            patch.undo()


@pytest.mark.slow
def test_all_optimizers_in_all_layouts(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        assert_sums_agree(list(itertools.product(layouts(), OPTIMIZERS, (of_tensors, of_rows))))

    on_two_ranks(work, tmp_path)


# --- a sharded model made whole


class Net(nn.Module):
    """A tensor under two names, batch norm, a recurrent layer that notes its weights elsewhere, a tensor of one row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 5)
        self.again = nn.ModuleList([self.first, nn.BatchNorm1d(5), nn.Linear(5, 1), nn.Linear(1, 5)])
        self.recurrent = nn.GRU(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.again:
            x = layer(x)
        output: Tensor = self.recurrent(x)[0]
        return output.clone()


def state_of(model: nn.Module) -> list[Any]:
    """What must be the same afterwards, by identity."""
    found: list[Any] = []
    for module in model.modules():
        hooks = (module._forward_pre_hooks, module._forward_hooks)
        found += [type(module), *(list(each.items()) for each in hooks)]
        own = {**module._parameters, **module._buffers}
        found += [{name: id(tensor) for name, tensor in own.items()}, set(vars(module))]
        found.append([id(tensor) for tensor in getattr(module, "_flat_weights", [])])
    return found


def use_whole(model: nn.Module, x: Tensor, rank: int, seen: list[int]) -> None:
    """Run, copy and differentiate it whole, then fail."""
    held = set(model.parameters())
    with whole_parameters(model) as copies:
        assert set(copies) == held
        assert not any(map(is_distributed, model.parameters()))
        for _ in range(1 + rank):  # no process waits for the other
            out = model(x)
        assert torch.equal(out, copy.deepcopy(model)(x))
        out.sum().backward()
        assert all(each.grad is not None for each in copies.values())
        assert len(seen) == 2 + rank
        raise KeyError


def test_a_sharded_model_is_whole_for_a_while(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        dist.init_process_group("gloo")
        mesh, half = init_device_mesh("cpu", (2,)), MixedPrecisionPolicy(torch.bfloat16, output_dtype=torch.float32)
        plain, model = Net(), Net()
        seen: list[int] = []
        model.first.register_forward_hook(lambda *_: seen.append(0))
        fully_shard([model.first, model.again[2]], mesh=mesh, mp_policy=half)
        fully_shard(model, mesh=mesh)
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(rank))
        with torch.no_grad():
            model(x)  # leaves the root's parameters gathered
        model.reshard()  # type: ignore[operator]
        before, seen[:] = state_of(model), []
        with pytest.raises(KeyError):
            use_whole(model, x, rank, seen)
        assert state_of(model) == before
        with whole_parameters(model), whole_parameters(plain) as none:
            assert torch.equal(model(x), plain(x))
            assert none == {}
        assert state_of(model) == before
        model(x).sum().backward()
        assert all(is_distributed(p) and is_distributed(p.grad) for p in model.parameters() if p.grad is not None)

        groups, expected = find_groups(model, x), find_groups(plain, x)
        assert [group.name for group in groups] == [group.name for group in expected]
        assert {p for group in groups for p in group.parameters} <= set(model.parameters())
        assert state_of(model) == before

    on_two_ranks(work, tmp_path)


# --- callbacks


def assert_same_run(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one["logged"].keys() == two["logged"].keys()
    for key, value in one["logged"].items():
        assert two["logged"][key] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), key
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-9, atol=1e-12)


def both_ranks(work: Callable[[], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What a run gives on two ranks, where they must not differ."""

    def save(rank: int) -> None:
        torch.save(work(), folder / f"{rank}.pt")

    on_two_ranks(save, folder)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_ranks_agree(first, second)
    return dict(first)


def assert_ranks_agree(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert_equal(first["weights"], second["weights"])
    for key in first["logged"].keys() & second["logged"].keys():
        assert first["logged"][key] == pytest.approx(second["logged"][key], rel=0, nan_ok=True), key


def test_a_sharded_run_logs_what_one_process_does(tmp_path: Path) -> None:
    """Every entry of the registry is tried by a slow test."""

    def work(ranks: int) -> dict[str, Any]:
        callbacks: list[Callback] = [EffectiveLearningRateMonitor(), FixedNorm(from_step=2)]
        return run(Sharded(), callbacks, tmp_path / str(ranks), ranks, max_epochs=1, num_sanity_val_steps=1)

    one, two = work(1), both_ranks(lambda: work(2), tmp_path)
    assert_same_run(one, two)
    assert {"elr/total", "ess/total", "switch/fixed_norm"} <= {key for _, key in two["logged"]}


ENTRIES = [name for name, entry in REGISTRY.items() if "layer_norm" in entry.cases]
REFUSED = ["comparison"]


@pytest.mark.slow
def test_every_callback_in_a_sharded_run(tmp_path: Path) -> None:
    """Monitors leave it bit-identical; what cannot run says so before the first step."""

    def work(rank: int) -> None:
        torch.save(run(Sharded(), [], tmp_path / "bare", 2), tmp_path / f"bare-{rank}.pt")
        for name in ENTRIES:
            callback, folder = REGISTRY[name].make(tmp_path / name), tmp_path / name
            if name in REFUSED:
                trainer = trainer_of([callback], folder, Memory(), 2)
                with pytest.raises(ValueError, match=f"{type(callback).__name__}: .*; use the strategy ddp"):
                    trainer.fit(Sharded(), ForeignData())
                assert trainer.global_step == 0
                continue
            torch.save(run(Sharded(), [callback], folder, 2), tmp_path / f"{name}-{rank}.pt")

    on_two_ranks(work, tmp_path)
    for name in ENTRIES:
        if name in REFUSED:
            continue
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert_ranks_agree(first, second)
        if REGISTRY[name].is_monitor:
            assert_equal(first["weights"], torch.load(tmp_path / "bare-0.pt", weights_only=True)["weights"])
        assert_same_run(run(Sharded(), [REGISTRY[name].make(tmp_path / "one")], tmp_path / "one" / name, 1), first)
        for picture in REGISTRY[name].pictures:
            assert (tmp_path / name / picture).is_file()


class Gathered(Sharded):
    """All in one group, whose parameters stay gathered after a forward."""

    def shard(self, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(self, mesh=mesh, reshard_after_forward=False)


class Rounded(Sharded):
    """Computes in bfloat16; sharded parameters, and what is measured of them, are not rounded."""

    def shard(self, mesh: Any) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float64)
        layers = list(self.model.children())
        fully_shard([layers[1], layers[4]], mesh=mesh, mp_policy=half)
        fully_shard(self, mesh=mesh, mp_policy=half)


@pytest.mark.slow
def test_other_ways_to_shard(tmp_path: Path) -> None:
    accumulated = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    ways: dict[type[Sharded], dict[str, Any]] = {
        Gathered: {"num_sanity_val_steps": 1},
        Sharded: accumulated,
        Rounded: {},
    }

    def work(kind: type[Sharded], ranks: int) -> dict[str, Any]:
        callbacks = [REGISTRY[name].make(tmp_path) for name in ("elr", "sharpness", "similarity", "norm")]
        return run(kind(), callbacks, tmp_path / str(ranks) / kind.__name__, ranks, **ways[kind])

    def save(rank: int) -> None:
        for kind in ways:
            torch.save(work(kind, 2), tmp_path / f"{kind.__name__}-{rank}.pt")

    on_two_ranks(save, tmp_path)
    for kind in ways:
        first, second = (torch.load(tmp_path / f"{kind.__name__}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert_ranks_agree(first, second)
        one = work(kind, 1)
        if kind is not Rounded:
            assert_same_run(one, first)
            continue
        assert one["logged"].keys() == first["logged"].keys()
        for key in one["logged"]:
            if key[1].split("/")[0] in ("norm", "elr", "similarity", "switch"):
                assert first["logged"][key] == pytest.approx(one["logged"][key], rel=0.02), key
        fixed = {value for (step, key), value in first["logged"].items() if key == "norm/total" and step >= 4}
        assert max(fixed) == pytest.approx(min(fixed), rel=1e-9)


class Killed(Exception):
    """The process ends here."""


class SaveAndDie(Checkpoint):
    """Saves a checkpoint in the middle of the second epoch, and dies at the end of the next batch."""

    def __init__(self, file: Path, memory: Memory) -> None:
        self.file, self.memory, self.saved = file, memory, False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.saved:
            raise Killed
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.file)
            self.saved, self.logged = True, dict(self.memory.logged)


def killed_and_resumed(
    make: Callable[[], LightningModule], callbacks: Callable[[], list[Callback]], folder: Path, whole: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run, and the same one killed and resumed; from a checkpoint of one file, or of a shard from each rank."""

    def strategy() -> ModelParallelStrategy:
        return ModelParallelStrategy(2, 1, save_distributed_checkpoint=not whole)

    expected = run(make(), callbacks(), folder / "uninterrupted", 2, strategy=strategy())
    memory, file = Memory(), folder / "kill.ckpt"
    die = SaveAndDie(file, memory)
    with pytest.raises(Killed):
        trainer_of([*callbacks(), die], folder, memory, 2, strategy=strategy()).fit(make(), ForeignData())
    resumed = run(make(), callbacks(), folder, 2, strategy=strategy(), ckpt_path=file)
    resumed["logged"] = die.logged | resumed["logged"]
    return expected, resumed


def assert_resumed(expected: dict[str, Any], resumed: dict[str, Any]) -> None:
    assert_equal(expected["weights"], resumed["weights"])
    for (step, key), value in expected["logged"].items():
        if key != "train_loss":  # Lightning does not save a module's means of an unfinished epoch
            assert resumed["logged"][step, key] == pytest.approx(value, rel=0, nan_ok=True), key


@pytest.mark.slow
def test_callbacks_resume_in_a_sharded_run(tmp_path: Path) -> None:
    names = ["elr-scatter", "sharpness-pass", "barrier", "similarity", "regime", "schedule", "switch-decay", "norm"]

    def work(rank: int) -> None:
        for whole, name in zip(itertools.cycle((False, True)), names, strict=False):
            folder = tmp_path / name
            assert_resumed(*killed_and_resumed(Sharded, lambda: [REGISTRY[name].make(folder)], folder, whole))  # noqa: B023

    on_two_ranks(work, tmp_path)


class Chosen(Sharded):
    """With an optimizer for the scale-invariant tensors, and for the rest."""

    def __init__(self, make: Callable[[list[nn.Parameter], list[nn.Parameter]], Optimizer]) -> None:
        super().__init__()
        self.make = make

    def configure_optimizers(self) -> Optimizer:
        invariant = ("model.1.weight", "model.4.weight")
        named = dict(self.named_parameters())
        return self.make([named[name] for name in invariant], [p for n, p in named.items() if n not in invariant])


def on_spheres(granularity: Any, invariant: list[nn.Parameter], rest: list[nn.Parameter]) -> Optimizer:
    groups: list[dict[str, Any]] = [{"params": invariant}, {"params": rest, "elr": None, "lr": 0.05}]
    return SphereSGD(groups, elr=1e-2, granularity=granularity)


def by_adagrad_g(granularity: Any, invariant: list[nn.Parameter], rest: list[nn.Parameter]) -> Optimizer:
    groups: list[dict[str, Any]] = [{"params": invariant}, {"params": rest, "granularity": "joint"}]
    return AdaGradG(groups, lr=0.01, granularity=granularity)


def by_adamw(invariant: list[nn.Parameter], rest: list[nn.Parameter]) -> Optimizer:
    return AdamW([*invariant, *rest], lr=0.01, weight_decay=0.1)


LEAVES = [Switch(epoch=1, elr=1e-3), Switch(step=7, sphere=False)]
RUNS: dict[str, tuple[Any, Callable[[], list[Callback]], bool]] = {
    # No optimizer without state can be read from one file, by torch 2.15.
    "sphere": (partial(on_spheres, "joint"), lambda: [EffectiveLearningRateMonitor(), RunSummary()], False),
    "left": (partial(on_spheres, "joint"), lambda: [EffectiveLearningRateMonitor(), FineTuneSwitch(LEAVES)], False),
    "filters": (partial(on_spheres, "filter"), lambda: [EffectiveLearningRateMonitor()], True),
    "AdaGradG, filter": (partial(by_adagrad_g, "filter"), lambda: [EffectiveLearningRateMonitor()], False),
    "AdaGradG, joint": (partial(by_adagrad_g, "joint"), lambda: [SharpnessMonitor()], True),
    "AdamW": (by_adamw, lambda: [FixedNorm(2.0, granularity="tensor"), EffectiveLearningRateMonitor()], False),
}


@pytest.mark.slow
def test_optimizers_in_a_sharded_run_that_is_killed_and_resumed(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        for name, (make, callbacks, whole) in RUNS.items():
            runs = killed_and_resumed(partial(Chosen, make), callbacks, tmp_path / name, whole)
            assert_resumed(*runs)
            torch.save(runs[0], tmp_path / f"{name}-{rank}.pt")

    on_two_ranks(work, tmp_path)
    for name, (make, callbacks, _) in RUNS.items():
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert_ranks_agree(first, second)
        assert_same_run(run(Chosen(make), callbacks(), tmp_path / "one" / name, 1), first)


class SpoilAShard(Callback):
    """Makes a weight that rank 1 alone holds NaN, and saves."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_rank:
            pl_module.model[1].weight.detach().to_local()[-1, 0] = math.nan
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "spoilt.ckpt")


class BlowsUp(Sharded):
    """In its third step, on one rank."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        bad = batch_idx == 2 and self.trainer.is_global_zero
        return super().training_step(batch, batch_idx) * (math.nan if bad else 1.0)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        trainer = trainer_of([StopOnNonFinite()], tmp_path, Memory(), 2, num_sanity_val_steps=1)
        with pytest.raises(
            NonFinite, match=r"step 2: the gradient of model\.1\.weight, the gradient of model\.1\.bias"
        ):
            trainer.fit(BlowsUp(), ForeignData())

    on_two_ranks(work, tmp_path)


@pytest.mark.slow
def test_no_rank_saves_what_is_damaged_on_another(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        trainer = trainer_of([StopOnNonFinite(), SpoilAShard()], tmp_path, Memory(), 2)
        with pytest.raises(NonFinite, match=r"model\.1\.weight" if rank else "a weight of another process"):
            trainer.fit(Sharded(), ForeignData())

    on_two_ranks(work, tmp_path)
    assert not (tmp_path / "spoilt.ckpt").exists()


def test_a_sharded_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / ".metadata").touch()
    with pytest.raises(ValueError, match=r"a sharded checkpoint; take one that is whole, .*distributed_checkpoint=Fa"):
        read_checkpoint(tmp_path)
