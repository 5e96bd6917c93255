"""What is asked of every callback, on modules that are not ours and on one that is."""

import inspect
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from callback_fits import HAS_WANDB, assert_equal, fit, fitted, quietly, trainer_for
from callback_registry import ANYWHERE, PUBLIC, REGISTRY, Entry, documented_keys, is_first
from foreign_modules import cases
from lightning.pytorch import Callback

pytestmark = quietly


def each_entry(condition: Callable[[Entry], Any] = lambda _: True) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if condition(entry)])


def each_with_its_modules(condition: Callable[[Entry], Any] = lambda _: True) -> pytest.MarkDecorator:
    pairs = [(name, case) for name, entry in REGISTRY.items() if condition(entry) for case in entry.cases]
    return pytest.mark.parametrize(("name", "case"), pairs)


def first_entries() -> pytest.MarkDecorator:
    marks = {name: [] if is_first(name) else [pytest.mark.slow] for name in REGISTRY}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name]) for name in REGISTRY])


@pytest.mark.parametrize("name", PUBLIC)
def test_every_callback_is_in_the_registry(name: str) -> None:
    assert PUBLIC[name] in {entry.kind for entry in REGISTRY.values()}, (
        f"{name} has no entry in tests/callback_registry.py: add one, and all these tests look at it"
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_the_docstring_says_its_kind_and_has_an_example(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert re.match(r"(Monitor|Control): \S", text)
    assert re.search(r"^Example:\n\s+>>> ", text, re.MULTILINE)


@each_with_its_modules()
def test_it_trains_any_module_without_a_surprise(name: str, case: str) -> None:
    outcome, expected = fitted(name, case), REGISTRY[name].says.get(case)
    surprises = [one for one in outcome.warned if expected is None or not re.search(expected, one)]
    assert not surprises
    assert expected is None or outcome.warned, f"warns of nothing, but the registry says {expected!r}"
    for pattern in REGISTRY[name].logs:
        assert any(re.fullmatch(pattern, key) for key in outcome.keys), f"no {pattern} in {sorted(outcome.keys)}"


@pytest.mark.parametrize("name", PUBLIC)
def test_the_table_of_keys_is_true(name: str) -> None:
    """Each key of the docstring's table is logged in some run of the registry, and nothing but these."""
    logged: set[str] = set()
    for entry_name, entry in REGISTRY.items():
        if entry.kind is PUBLIC[name]:
            for case in entry.cases:
                logged |= fitted(entry_name, case).keys - fitted(None, case).keys
    logged -= {"epoch"}
    table = documented_keys(PUBLIC[name])
    unlogged = [pattern.pattern for pattern in table if not any(map(pattern.fullmatch, logged))]
    assert not unlogged, f"in the table, but never logged: {unlogged}"
    untold = [key for key in sorted(logged) if not any(pattern.fullmatch(key) for pattern in table)]
    assert not untold, f"logged, but not in the table: {untold}"


@each_with_its_modules(lambda entry: entry.is_monitor)
def test_a_monitor_leaves_the_run_bit_identical(name: str, case: str) -> None:
    assert_equal(fitted(name, case).tensors, fitted(None, case).tensors)


_SLOWER = [pytest.param(case, marks=pytest.mark.slow) for case in ("manual", "ours")]


@pytest.mark.parametrize("case", ["resnet", *_SLOWER])
def test_monitors_do_not_disturb_each_other(case: str, tmp_path: Path) -> None:
    names = [name for name in REGISTRY if REGISTRY[name].is_monitor and is_first(name) and case in REGISTRY[name].cases]
    together = fit(case, [REGISTRY[name].make(tmp_path) for name in names], tmp_path)
    assert_equal(together.tensors, fitted(None, case).tensors)
    for name in names:
        assert fitted(name, case).logged.items() <= together.logged.items(), name


@each_with_its_modules(lambda entry: entry.changes)
def test_a_control_changes_the_run(name: str, case: str) -> None:
    bare, changed = fitted(None, case).tensors, fitted(name, case).tensors
    assert any(key.startswith("weights") and not torch.equal(value, changed[key]) for key, value in bare.items())


@pytest.mark.parametrize("case", ANYWHERE)
def test_bare_runs_repeat_and_learn(case: str, tmp_path: Path) -> None:
    """Else the comparisons with them would fail, or hold, for no reason."""
    bare = fitted(None, case)
    assert_equal(bare.tensors, fit(case, [], tmp_path).tensors)
    # A bias before a batch norm has no gradient.
    trained = [(name, p) for name, p in cases()[case].make().named_parameters() if p.requires_grad and p.ndim > 1]
    assert not any(torch.equal(p, bare.tensors[f"weights {name}"]) for name, p in trained)


class _Disturbs(Callback):
    def __init__(self, how: Callable[[Any, Any], Any]) -> None:
        self.how = how

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            self.how(pl_module, batch)


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        (lambda *_: torch.rand(1), "torch RNG"),
        (lambda *_: random.random(), "python RNG"),
        (lambda *_: np.random.rand(), "numpy RNG"),
        (lambda module, batch: module(batch[0]), "weights model.bn1.running_mean"),
        (lambda module, batch: module.model.bn1.eval(), "modes"),
        (lambda module, batch: module.model.fc.requires_grad_(False), "trained"),
        (lambda module, batch: module.model.fc.weight.data.mul_(1 + 1e-6), "weights model.conv1.weight"),
    ],
)
def test_the_comparison_sees_what_disturbs_a_run(how: Any, seen: str, tmp_path: Path) -> None:
    disturbed = fit("resnet", [_Disturbs(how)], tmp_path, max_epochs=2).tensors
    assert not torch.equal(disturbed[seen], fit("resnet", [], tmp_path, max_epochs=2).tensors[seen])


@each_entry(lambda entry: entry.pictures)
def test_its_pictures_lie_in_the_runs_folder_and_go_to_wandb(name: str) -> None:
    for case in REGISTRY[name].cases:
        for picture in REGISTRY[name].pictures:
            assert picture in fitted(name, case).images or not HAS_WANDB
            image = matplotlib.image.imread(fitted(name, case).folder / picture)
            assert min(image.shape[:2]) > 300
            assert image[..., :3].std() > 0.02, f"{picture} on {case} is blank"


@each_entry(lambda entry: entry.pictures)
def test_pictures_that_fail_cost_a_warning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("matplotlib.figure.Figure.draw", fails)
    entry = REGISTRY[name]
    surprises = fit(entry.cases[0], [entry.make(tmp_path)], tmp_path).warned
    for picture in entry.pictures:
        assert any(f"{picture}: RuntimeError: no font" in each for each in surprises), surprises


@each_with_its_modules()
def test_its_state_is_plain(name: str, case: str, tmp_path: Path) -> None:
    torch.save(fitted(name, case).callback_state, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


@each_entry(lambda entry: entry.other)
def test_two_instances_have_states_of_their_own(name: str, tmp_path: Path) -> None:
    entry = REGISTRY[name]
    assert entry.other is not None
    assert entry.make(tmp_path).state_key == entry.make(tmp_path).state_key
    assert entry.make(tmp_path).state_key != entry.other(tmp_path).state_key


@first_entries()
@pytest.mark.parametrize("options", [{"logger": False}, {"fast_dev_run": True}], ids=["no logger", "fast_dev_run"])
def test_it_needs_no_logger_and_little_time(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    entry = REGISTRY[name]
    case = "layer_norm" if "layer_norm" in entry.cases else entry.cases[0]
    outcome = fit(case, [entry.make(tmp_path)], tmp_path, **options)
    if entry.is_monitor:
        assert_equal(outcome.tensors, fit(case, [], tmp_path, **options).tensors)


@first_entries()
def test_it_needs_no_tensorboard(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = "lightning.pytorch.trainer.connectors.logger_connector.logger_connector"
    for package in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"{connector}.{package}", False)
    fit(REGISTRY[name].cases[0], [REGISTRY[name].make(tmp_path)], tmp_path, logger=True, max_epochs=1)
    assert list(tmp_path.rglob("metrics.csv"))


@each_entry(lambda entry: entry.needs_groups)
def test_it_refuses_a_module_without_groups_before_the_first_step(name: str, tmp_path: Path) -> None:
    callback = REGISTRY[name].make(tmp_path)
    trainer = trainer_for("plain", [callback], tmp_path, logger=False)
    with pytest.raises(ValueError, match=type(callback).__name__) as refused:
        trainer.fit(cases()["plain"].make(), cases()["plain"].data())
    assert trainer.global_step == 0
    remedy = r"\b(put|give|set|use|take|choose|leave|freeze|remove|lower|raise)\b"
    assert re.search(remedy, str(refused.value), re.IGNORECASE), f"no remedy: {refused.value}"


@each_entry(lambda entry: entry.stays_out)
def test_a_monitor_stays_out_where_nothing_is_scale_invariant(name: str) -> None:
    outcome, bare = fitted(name, "plain"), fitted(None, "plain")
    (warned,) = [each for each in outcome.warned if "stays out" in each]
    assert re.search(rf"{REGISTRY[name].kind.__name__} stays out of this run: no scale-invariant group found", warned)
    assert "watch='matrices'" in warned
    assert outcome.warned == [warned]
    assert outcome.logged == bare.logged
    assert not outcome.images
    assert_equal(outcome.tensors, bare.tensors)


@pytest.mark.slow
@each_entry(lambda entry: "resnet" in entry.cases)
def test_it_trains_the_real_resnet18(name: str) -> None:
    outcome = fitted(name, "resnet18")
    assert not outcome.warned or re.search(REGISTRY[name].says.get("resnet", "^$"), "\n".join(outcome.warned))
    for pattern in REGISTRY[name].logs:
        assert any(re.fullmatch(pattern, key) for key in outcome.keys), f"no {pattern} in {sorted(outcome.keys)}"
    if REGISTRY[name].is_monitor:
        assert_equal(outcome.tensors, fitted(None, "resnet18").tensors)
