"""Monitors where little or nothing is scale-invariant, heads that take turns, half precision, and names for MLflow."""

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from callback_fits import Log, Memory, fitted, quietly, trainer_for
from foreign_modules import BATCHES, Case, ForeignResNet, ForeignTurns, PlainMLP, cases
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from test_callback_hot_path import waits_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, NAdam
from torch.utils.data import DataLoader, TensorDataset

from lit_sphere.analysis import equal_ess
from lit_sphere.callbacks import (
    CheckpointSimilarity,
    CosineRegimeAnalysis,
    EffectiveLearningRateMonitor,
    FineTuneSwitch,
    LinearInterpolationBarrier,
    RegimeMonitor,
    RunSummary,
    SharpnessMonitor,
)
from lit_sphere.effective import EffectiveQuantities
from lit_sphere.groups import Group, find_groups
from lit_sphere.observe.publishing import plain_key
from lit_sphere.observe.watched_groups import watched_groups
from lit_sphere.report import draw_curves, draw_equal_ess, draw_regimes, read_metrics
from lit_sphere.switching import Switch

pytestmark = quietly

_WORDS, _WIDTH = 11, 8


class TiedLanguageModel(LightningModule):
    """Pre-norm, the head is the embedding: no tensor is scale-invariant."""

    optimizer: Callable[[Any], Any] = AdamW

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, 16), nn.Linear(16, _WIDTH)
        self.head = nn.Linear(_WIDTH, _WORDS, bias=False)
        self.head.weight = self.words.weight
        self.frozen = nn.Linear(_WIDTH, _WIDTH).requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        x = x + self.down(F.gelu(self.up(self.norm(x)))) + self.frozen(x)
        logits: Tensor = self.head(x)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        tokens, following = batch
        return F.cross_entropy(self(tokens).flatten(0, 1), following.flatten())

    def configure_optimizers(self) -> Any:
        return type(self).optimizer([p for p in self.parameters() if p.requires_grad])

    def train_dataloader(self) -> DataLoader[Any]:
        tokens = torch.randint(_WORDS, (4 * BATCHES, 6), generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), 4)


MATRICES = ["words.weight", "up.weight", "down.weight"]


def language_model(make: Callable[[Any], Any] = AdamW) -> TiedLanguageModel:
    return type("Model", (TiedLanguageModel,), {"optimizer": staticmethod(make)})()  # type: ignore[no-any-return]


def logged_by(
    module: LightningModule, callbacks: list[Callback], folder: Path, data: Any = None, **options: Any
) -> Log:
    memory = options.pop("logger", None) or Memory()
    ckpt_path = options.pop("ckpt_path", None)
    trainer = trainer_for("plain", callbacks, folder, **{"max_epochs": 2, "logger": memory, **options})
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return memory.logged if isinstance(memory, Memory) else {}


class Weights(Callback):
    """Weights and gradients of some tensors before each step, and the weights after it."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.steps = names, list[dict[str, tuple[Tensor, Tensor, Tensor]]]()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._of = {name: pl_module.get_parameter(name) for name in self.names}
        self._before = {
            name: (p.detach().double().flatten().clone(), p.grad.double().flatten().clone())
            for name, p in self._of.items()
            if p.grad is not None
        }

    def on_train_batch_end(self, *_: Any) -> None:
        after = {name: self._of[name].detach().double().flatten() for name in self._before}
        self.steps.append({name: (*pair, after[name].clone()) for name, pair in self._before.items()})


def angle(x: Tensor, new: Tensor) -> float:
    cosine = (x @ new / x.norm() / new.norm()).clamp(-1, 1)
    return math.asin((new / new.norm() - cosine * x / x.norm()).norm().item())


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: SGD(params, lr=0.1, weight_decay=0.05),
    "momentum": lambda params: SGD(params, lr=0.05, momentum=0.9, weight_decay=0.05),
    "AdamW": lambda params: AdamW(params, lr=1e-2, weight_decay=0.1),
    "NAdam": lambda params: NAdam(params, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matrices_of_a_tied_language_model_are_measured_by_their_real_steps(name: str, tmp_path: Path) -> None:
    monitor, weights = EffectiveLearningRateMonitor(per="step", watch="matrices"), Weights(MATRICES)
    logged = logged_by(language_model(OPTIMIZERS[name]), [monitor, weights], tmp_path, precision="64-true")
    assert monitor.source == {"SGD": "gradients", "NAdam": "weights"}.get(name, "state")
    assert monitor.not_scale_invariant == set(MATRICES), "the tied matrix once, and the frozen one not at all"
    assert {key[5:] for _, key in logged if key.startswith("norm/")} == {"total", *MATRICES}
    assert not any(key.startswith("equilibrium/") for _, key in logged)
    assert len(weights.steps) == 2 * BATCHES
    for step, seen in enumerate(weights.steps):
        together = tuple(torch.cat(each) for each in zip(*seen.values(), strict=True))
        for group, (x, grad, new) in {"total": together, **seen}.items():
            expected = {
                "norm": x.norm().item(),
                "effective_grad_norm": (x.norm() * grad.norm()).item(),
                "angle": angle(x, new),
                "ess": math.tan(angle(x, new)),
                "radial": (1 - x @ new / (x @ x)).item(),
                "gradient_radial": ((x @ grad).abs() / x.norm() / grad.norm()).item(),
            }
            for quantity, value in expected.items():
                found = logged[step, f"{quantity}/{group}"]
                assert found == pytest.approx(value, rel=1e-6, abs=1e-12), (step, quantity, group)
            if monitor.source == "gradients":
                assert logged[step, f"elr/{group}"] == pytest.approx(0.1 / (x @ new).item(), rel=1e-8)


def test_what_is_scale_invariant_keeps_its_groups_and_the_rest_is_marked(tmp_path: Path) -> None:
    strict = logged_by(ForeignResNet(), [EffectiveLearningRateMonitor()], tmp_path, cases()["resnet"].data())
    monitor = EffectiveLearningRateMonitor(watch="matrices")
    logged = logged_by(ForeignResNet(), [monitor], tmp_path, cases()["resnet"].data())
    assert monitor.not_scale_invariant == {"fc.weight"}
    shares = {key[16:]: value for (_, key), value in logged.items() if key.startswith("gradient_radial/")}
    assert "fc.weight" in shares
    assert any("+" in name for name in shares), "the joint group of the residual stream"
    for name, share in shares.items():
        assert name == "total" or (share > 1e-2 if name == "fc.weight" else share < 1e-3), name
    ours = {key: value for key, value in strict.items() if re.match("(ess|elr|norm)/.*weight", key[1])}
    assert len(ours) > 20
    for (step, key), value in ours.items():
        assert logged[step, key.replace("/model.", "/")] == pytest.approx(value, rel=1e-9), key


@pytest.mark.parametrize("watch", [["up.*"], ["up.weight", "words.*", "up.bias"]])
def test_named_tensors_are_watched_alone(watch: list[str], tmp_path: Path) -> None:
    logged = logged_by(language_model(), [EffectiveLearningRateMonitor(watch=watch)], tmp_path)
    names = {"up.weight", "up.bias"} | ({"words.weight"} if "words.*" in watch else set())
    assert {key[5:] for _, key in logged if key.startswith("norm/")} == {"total", *names}


def test_a_name_brings_its_joint_group(tmp_path: Path) -> None:
    monitor = EffectiveLearningRateMonitor(watch=["model.bn1.bias", "fc.*t"])
    logged = logged_by(ForeignResNet(), [monitor], tmp_path, cases()["resnet"].data(), max_epochs=1)
    module = ForeignResNet()
    (group,) = [each for each in find_groups(module, torch.randn(2, 3, 16, 16)) if "model.bn1.bias" in each.names]
    names = {key[5:] for _, key in logged if key.startswith("norm/")}
    assert names >= {"total", group.name.removeprefix("model."), "fc.weight"}
    assert monitor.not_scale_invariant >= {"fc.weight"}
    assert group.name.removeprefix("model.") not in monitor.not_scale_invariant


def test_rows_outside_of_scale_invariant_ones_are_watched_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the values of a fused attention whose queries and keys are normalised."""
    module = language_model()
    rows, up = [slice(0, 3), slice(3, 6), slice(7, 10)], module.get_parameter("up.weight")
    found = [Group(f"up.weight[{each.start}:{each.stop}]", (up,), each, ("up.weight",)) for each in rows]
    monkeypatch.setattr("lit_sphere.observe.watched_groups.groups_of", lambda *_: found)
    for watch in ("matrices", ["up.weight"]):
        watched = watched_groups(RegimeMonitor(), module, None, "tensor", watch)
        assert watched is not None
        names = [group.name for group in watched.groups if group.names == ("up.weight",)]
        assert names == [*(group.name for group in found), "up.weight[6]", "up.weight[10:16]"]
        assert {group.name for group in watched.others if "up" in group.name} == set(names[3:])
        quantities = EffectiveQuantities(watched.groups, AdamW(module.parameters()), radial_gradients=True)
        assert quantities.shape == (9, 1 + len(watched.groups))


def test_a_pattern_without_a_match_is_refused_before_the_first_step(tmp_path: Path) -> None:
    monitor = EffectiveLearningRateMonitor(watch=["words.*", "attention.*"])
    trainer = trainer_for("plain", [monitor], tmp_path, logger=False)
    expected = (
        r"EffectiveLearningRateMonitor: no trainable .* matches 'attention\.\*' .* give names such as words\.weight"
    )
    with pytest.raises(ValueError, match=expected):
        trainer.fit(language_model())
    assert trainer.global_step == 0


@pytest.mark.parametrize("watch", ["matrixes", [], [3], "words.weight"])
def test_what_to_watch_is_a_known_word_or_a_list_of_names(watch: Any) -> None:
    with pytest.raises(ValueError, match=r"EffectiveLearningRateMonitor: watch must be one of .*matrices.* list"):
        EffectiveLearningRateMonitor(watch=watch)


def test_checkpoints_without_the_option_are_found() -> None:
    strict, option = EffectiveLearningRateMonitor(), EffectiveLearningRateMonitor(watch="matrices")
    assert "watch" not in strict.state_key
    assert strict.state_key != option.state_key


def test_several_monitors_say_once_why_they_stay_out(tmp_path: Path) -> None:
    monitors = [
        EffectiveLearningRateMonitor(),
        SharpnessMonitor(train_pass_every=1, curvature_at_end=True),
        RegimeMonitor(),
        CosineRegimeAnalysis(),
        LinearInterpolationBarrier(every_n_epochs=1),
        LinearInterpolationBarrier("switches", great_circle=True),
        CheckpointSimilarity(every_n_epochs=1),
    ]
    with pytest.warns(UserWarning, match="stays out") as warned:
        logged = logged_by(PlainMLP(), [*monitors], tmp_path, cases()["plain"].data())
    told = [str(each.message) for each in warned if "stays out" in str(each.message)]
    assert sum("no scale-invariant group" in each for each in told) == 1
    assert sum("for the same reason" in each for each in told) == len(monitors) - 1 == len(told) - 1
    assert logged == {key: value for key, value in fitted(None, "plain").logged.items() if key in logged}
    assert {key for _, key in logged} == {"epoch", "train_loss", "val_acc"}
    assert not [each for each in tmp_path.rglob("*") if each.suffix in (".png", ".csv", ".json")]


def test_a_run_that_a_monitor_stays_out_of_can_be_resumed(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "epoch.ckpt", weights_only=False)

    def monitors() -> list[Callback]:
        return [EffectiveLearningRateMonitor(), RegimeMonitor(), SharpnessMonitor(), CheckpointSimilarity(1)]

    with pytest.warns(UserWarning, match="stays out"):
        logged_by(PlainMLP(), [*monitors(), Save()], tmp_path, cases()["plain"].data())
    module = PlainMLP()
    with pytest.warns(UserWarning, match="stays out"):
        logged = logged_by(module, monitors(), tmp_path, cases()["plain"].data(), ckpt_path=tmp_path / "epoch.ckpt")
    assert {key for _, key in logged} == {"epoch", "train_loss", "val_acc"}
    assert max(step for step, _ in logged) == 2 * BATCHES - 1


def legends(figure: Figure) -> list[str]:
    found = [legend for axes in figure.axes if (legend := axes.get_legend()) is not None]
    return [text.get_text() for legend in found for text in legend.get_texts()]


def test_a_switch_that_waits_for_a_regime_is_refused_where_nobody_can_name_one(tmp_path: Path) -> None:
    callbacks: list[Callback] = [RegimeMonitor(), FineTuneSwitch([Switch(regime="convergence", lr=1e-3)])]
    trainer = trainer_for("plain", callbacks, tmp_path, logger=False, max_epochs=50)
    with (
        pytest.warns(UserWarning, match="RegimeMonitor stays out"),
        pytest.raises(ValueError, match=r"FineTuneSwitch: .* RegimeMonitor stays out .*; let the switch wait"),
    ):
        trainer.fit(PlainMLP(), cases()["plain"].data())
    assert trainer.global_step == 0


@pytest.mark.slow
def test_pictures_mark_what_is_not_scale_invariant(tmp_path: Path) -> None:
    callbacks: list[Callback] = [EffectiveLearningRateMonitor(watch="matrices", scatter_epochs=1), RunSummary()]
    data, logger = cases()["resnet"].data(), CSVLogger(tmp_path, name="", version="")
    logged_by(ForeignResNet(), callbacks, tmp_path, data, logger=logger)
    assert {"curves.png", "equal_ess.png"} <= {each.name for each in tmp_path.iterdir()}
    with (tmp_path / "equal_ess.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows if row["scale_invariant"] == "0"} == {"fc.weight"}
    elrs, grads = ([float(row[key]) for row in rows] for key in ("elr", "effective_grad_norm"))
    flags = [row["scale_invariant"] == "1" for row in rows]
    figure = draw_equal_ess(elrs, grads, "", flags)
    full, hollow = figure.axes[0].collections
    assert [len(np.asarray(each.get_offsets())) for each in (full, hollow)] == [sum(flags), 1]
    assert [len(np.asarray(each.get_facecolor())) for each in (full, hollow)] == [1, 0]
    assert "1 not scale-invariant" in legends(figure)
    pairs = [(elr, grad) for elr, grad, flag in zip(elrs, grads, flags, strict=True) if flag]
    assert equal_ess(elrs, grads, flags) == equal_ess([elr for elr, _ in pairs], [grad for _, grad in pairs])
    curves = draw_curves(read_metrics(tmp_path / "metrics.csv"), not_scale_invariant=["fc.weight"])
    dotted = [line for axes in curves.axes for line in axes.lines if line.get_linestyle() == ":"]
    assert [line.get_gid() for line in dotted] == ["fc.weight"] * 3
    assert "not scale-invariant" in legends(curves)


# --- heads that take turns


def in_turns(make: Callable[[Any], Any]) -> LightningModule:
    return type("Turns", (ForeignTurns,), {"optimizer": staticmethod(make)})()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_heads_that_take_turns_have_the_means_over_their_own_steps(name: str, tmp_path: Path) -> None:
    data = cases()["plain"].data
    single = logged_by(in_turns(OPTIMIZERS[name]), [EffectiveLearningRateMonitor(per="step")], tmp_path, data())
    epochs = logged_by(in_turns(OPTIMIZERS[name]), [EffectiveLearningRateMonitor()], tmp_path, data())
    keys = {key for _, key in epochs if re.match("(norm|elr|ess|angle|radial)/", key) and "max" not in key}
    heads = [f"ess/heads.{head}.0.weight" for head in (0, 1)]
    assert len(keys) >= 20
    assert {*heads} <= {key.replace("+1", "") for key in keys}
    assert all(math.isfinite(value) for value in epochs.values())
    counts = set()
    for key in keys:
        for epoch in range(2):
            steps = range(BATCHES * epoch, BATCHES * (epoch + 1))
            values = [single[step, key] for step in steps if (step, key) in single]
            counts.add(len(values))
            mean = epochs[BATCHES * (epoch + 1) - 1, key]
            assert mean == pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-15), key
    assert counts == {1, BATCHES - 1, BATCHES}


def test_heads_that_take_turns_leave_quantiles_regimes_and_resumed_runs_whole(tmp_path: Path) -> None:
    data = cases()["plain"].data

    class Die(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == BATCHES + 2:
                trainer.save_checkpoint(tmp_path / "kill.ckpt", weights_only=False)
                raise KeyboardInterrupt

    def monitors() -> list[Any]:
        return [EffectiveLearningRateMonitor(quantiles=[0, 0.5, 1]), SharpnessMonitor(), RegimeMonitor(every_n_steps=1)]

    whole_monitors, resumed = monitors(), Memory()
    whole = logged_by(in_turns(AdamW), whole_monitors, tmp_path, data())
    assert all(math.isfinite(value) for value in whole.values())
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        logged_by(in_turns(AdamW), [*monitors(), Die()], tmp_path, data(), logger=resumed)
    again = monitors()
    logged_by(in_turns(AdamW), again, tmp_path, data(), logger=resumed, ckpt_path=tmp_path / "kill.ckpt")
    ours = {key: value for key, value in whole.items() if "/" in key[1]}
    assert len(ours) > 40
    assert {key: resumed.logged[key] for key in ours} == ours
    rows, others = (each[2].state_dict()["curves"]["rows"] for each in (whole_monitors, again))
    assert rows == others
    assert all(math.isfinite(value) for row in rows for value in row["ess"])


def test_a_group_without_a_step_in_an_epoch_is_left_out(tmp_path: Path) -> None:
    class FirstEpochOnly(ForeignTurns):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.model["heads"][1].requires_grad_(self.current_epoch == 0)  # type: ignore[index]
            heads = self(batch[0])[: 2 - min(1, self.current_epoch)]
            return torch.stack([F.cross_entropy(head, batch[1]) for head in heads]).sum()

    monitor, regime = EffectiveLearningRateMonitor(scatter_epochs=1), RegimeMonitor()
    logged = logged_by(FirstEpochOnly(), [monitor, regime], tmp_path, cases()["plain"].data(), max_epochs=3)
    groups = [key[5:] for step, key in logged if step == BATCHES - 1 and key.startswith("norm/")]
    later = [key[5:] for step, key in logged if step == 2 * BATCHES - 1 and key.startswith("norm/")]
    frozen = set(groups) - set(later)
    assert frozen
    assert all(name.startswith("heads.1") for name in frozen)
    assert not any(name.startswith("heads.1") for name in later)
    assert all(math.isfinite(value) for value in logged.values())
    rows = regime.state_dict()["curves"]["rows"]
    assert rows[-1]["ess"].count(None) == len(frozen)
    assert regime.verdict is not None
    lines = draw_regimes(rows, regime.segments).axes[-1].lines
    drawn = [np.isfinite(np.asarray(line.get_ydata(), dtype=float)).sum() for line in lines]
    assert sorted(drawn) == [1] * len(frozen) + [3] * (len(rows[0]["ess"]) - len(frozen))


@pytest.mark.parametrize("name", ["SGD", "momentum", "NAdam"])
def test_a_missing_gradient_is_not_waited_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases(), "turns", Case(lambda: in_turns(OPTIMIZERS[name])))
    assert waits_of(EffectiveLearningRateMonitor(watch="matrices"), "turns", tmp_path) == []


# --- half precision


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_bf16_true_is_measured_by_the_weights_as_they_are_rounded(name: str, tmp_path: Path) -> None:
    """Of AdamW at 1e-3 every other weight in bfloat16 does not move at all."""
    names = [key for key, _ in ForeignTurns().named_parameters() if key.endswith(("1.weight", "heads.0.0.weight"))][:1]
    rates = {"SGD": lambda p: SGD(p, lr=1e-3), "AdamW": lambda p: AdamW(p, lr=1e-3)}
    monitor, weights = EffectiveLearningRateMonitor(per="step"), Weights(names)
    options = {"precision": "bf16-true", "max_epochs": 1}
    logged = logged_by(in_turns(rates[name]), [monitor, weights], tmp_path, cases()["plain"].data(), **options)
    assert monitor.source == "weights"
    (name,) = names
    assert len(weights.steps) == BATCHES
    for step, seen in enumerate(weights.steps):
        x, _, new = seen[name]
        key = next(key for at, key in logged if at == step and key.startswith(f"angle/{name.removeprefix('model.')}"))
        assert logged[step, key] == pytest.approx(angle(x, new), rel=1e-3, abs=1e-9)


# --- names

# https://mlflow.org/docs: "Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ),
# colon(:) and slashes (/)", and must be paths as they stand.
_MLFLOW = re.compile(r"[/\w.\- :]*", re.ASCII)


class MLFlowLogger(Memory):
    """Takes what MLflow takes, by name: neither the package nor a server is there."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert all(_MLFLOW.fullmatch(key) for key in metrics), [key for key in metrics if not _MLFLOW.fullmatch(key)]
        super().log_metrics(metrics, step)


def test_mlflow_takes_all_names_and_other_loggers_keep_theirs(tmp_path: Path) -> None:
    memory, mlflow = Memory(), MLFlowLogger()
    monitors: list[Callback] = [EffectiveLearningRateMonitor("filter"), EffectiveLearningRateMonitor(per="step")]
    trainer = trainer_for("resnet", monitors, tmp_path, logger=[memory, mlflow], max_epochs=1)
    trainer.fit(ForeignResNet(), cases()["resnet"].data())
    keys = {key for _, key in memory.logged}
    assert any(key.endswith("+4") or "+" in key for key in keys)
    assert {plain_key(key) for key in keys} == {key for _, key in mlflow.logged}
    assert len({plain_key(key) for key in keys}) == len(keys), "no two became one"


def test_names_in_words_are_those_that_mlflow_itself_takes() -> None:
    names = ["a.weight+4", "convs.0.weight[3]", "w[8:16]", "w+1[8:16]", "blocks.conv+bn.weight", "großes.weight"]
    words = [plain_key(f"elr/{name}") for name in names]
    assert words == [
        *("elr/a.weight and 4 more", "elr/convs.0.weight row 3", "elr/w rows 8-15", "elr/w and 1 more rows 8-15"),
        *("elr/blocks.conv_bn.weight", "elr/gro_es.weight"),
    ]
    assert all(_MLFLOW.fullmatch(name) for name in words)
    validation = pytest.importorskip("mlflow.utils.validation")
    for name in words:
        validation._validate_metric_name(name)


@pytest.mark.slow
def test_gpt2_of_transformers_is_watched_matrix_by_matrix(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class GPT2(TiedLanguageModel):
        def __init__(self) -> None:
            LightningModule.__init__(self)
            torch.manual_seed(0)
            size = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": _WORDS, "n_positions": 8}
            config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **size)
            self.net = transformers.GPT2LMHeadModel(config)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.net(tokens).logits
            return logits

    monitor = EffectiveLearningRateMonitor(watch="matrices")
    with pytest.warns(UserWarning, match="SharpnessMonitor stays out"):
        logged = logged_by(GPT2(), [monitor, SharpnessMonitor()], tmp_path)
    matrices = {name.removeprefix("net.") for name, p in GPT2().named_parameters() if p.ndim > 1}
    assert len(matrices) == 2 + 2 * 4
    assert monitor.not_scale_invariant == matrices
    shares = {key[16:]: value for (_, key), value in logged.items() if key.startswith("gradient_radial/")}
    assert shares.keys() == {"total", *matrices}
    assert all(0 < share < 1 for share in shares.values())
