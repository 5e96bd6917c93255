"""Damaged, foreign and unfitting checkpoints: each is answered in one line that names the file and the remedy."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LitSphere
from test_bad_input import refused

from lit_sphere.cli import main

Content = dict[str, Any]
Change = Callable[[Content], Any]

_FEW = ("--data.train_size", "64", "--data.batch_size", "32", "--wandb", "disabled")
_WHOLE = ("--model.elr", "null", "--model.optimizer")
_RUNS = {
    "sphere": (),
    "SGD": (*_WHOLE, "SGD", "--model.optimizer.lr", "0.1", "--model.optimizer.momentum", "0.9"),
    "Adam": (*_WHOLE, "Adam", "--model.optimizer.lr", "0.001"),
}
_COMMANDS = {
    "fit": ("fit", "--ckpt_path", "bad.ckpt", "--run", "r", "--trainer.max_epochs", "2", *_FEW),
    "begin": ("fit", "--ckpt_weights", "bad.ckpt", "--run", "r", "--trainer.max_epochs", "1", *_FEW),
    "test": ("test", "--ckpt_path", "bad.ckpt", *_FEW[:4]),
    "validate": ("validate", "--ckpt_path", "bad.ckpt", *_FEW[:4]),
    "interpolate": ("interpolate", "bad.ckpt", "bad.ckpt", "--run", "r", "--points", "3", *_FEW[:4]),
}
_ALL = tuple(_COMMANDS)
_LOADED = ("fit", "test", "validate")
_FIRST = "network.convs.1.weight"


class Saved(dict[str, Content]):
    """Checkpoints of real runs of one epoch, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Content:
        before = Path.cwd()
        os.chdir(self._folder)
        try:
            main(["fit", "--model.width", "4", "--run", name, "--trainer.max_epochs", "1", *_FEW, *_RUNS[name]])
        finally:
            os.chdir(before)
        self[name] = torch.load(self._folder / name / "checkpoints" / "last.ckpt", weights_only=True)
        return self[name]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("runs"))


def put(name: str, value: Any) -> Change:
    return lambda content: content.update({name: value})


def without(*names: str) -> Change:
    return lambda content: [content.pop(name) for name in names]


def weight(value: Any, name: Any = _FIRST) -> Change:
    return lambda content: content["state_dict"].update({name: value})


def fill(value: float, name: str = _FIRST) -> Change:
    return lambda content: content["state_dict"][name].fill_(value)


def as_other(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda content: weight(change(content["state_dict"][_FIRST]))(content)


def group(**options: Any) -> Change:
    return lambda content: content["optimizer_states"][0]["param_groups"][0].update(options)


def current(value: Any) -> Change:
    return lambda content: content["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed=value)


def hparams(**options: Any) -> Change:
    return lambda content: content["hyper_parameters"].update(options)


_KINDS = {"a list": [1], "an int": 5, "a str": "x", "None": None}
_TYPES = {
    "state_dict": ("a list", "an int", "a str", "None"),
    "hyper_parameters": ("a list", "an int", "a str", "None"),
    "loops": ("a list", "an int", "a str", "None"),
    "optimizer_states": ("an int", "a str", "None"),
    "lr_schedulers": ("an int", "None"),
    "callbacks": ("a list", "a str"),
    "global_step": ("a list", "a str", "None"),
    "train_metrics": ("a list", "None"),
}
# What is done to the checkpoint, which commands must refuse it, and what they say beside the file's name.
_HOSTILE: dict[str, tuple[Change, tuple[str, ...], list[str]]] = {
    **{
        f"{part} {kind}": (put(part, _KINDS[kind]), _ALL, ["damaged", f"its {part} is a", "another checkpoint"])
        for part, kinds in _TYPES.items()
        for kind in kinds
    },
    "no state_dict": (without("state_dict"), _ALL, ["there is no state_dict in it", "a Trainer has saved"]),
    "no global_step": (without("global_step"), _ALL, ["a state_dict, but no global_step", "a Trainer has saved"]),
    "weights only": (
        without("optimizer_states", "lr_schedulers", "callbacks"),
        ("fit",),
        ["weights only?", "optimizer_states, lr_schedulers", "--ckpt_weights bad.ckpt"],
    ),
    "no loops": (without("loops"), ("fit",), ["holds no loops", "--ckpt_weights bad.ckpt"]),
    "no optimizer": (put("optimizer_states", []), ("fit",), ["holds no optimizer_states", "--ckpt_weights bad.ckpt"]),
    "no version": (without("pytorch-lightning_version"), _LOADED, ["pytorch-lightning_version", "a Trainer has saved"]),
    "odd version": (put("pytorch-lightning_version", "x"), _LOADED, ["pytorch-lightning_version x", "a Trainer"]),
    "weight a str": (weight("x"), _ALL, [_FIRST, "no dense tensor, but a str", "another checkpoint"]),
    "weight a list": (weight([1.0]), _ALL, [_FIRST, "no dense tensor, but a list", "another checkpoint"]),
    "weight None": (weight(None), _ALL, [_FIRST, "no dense tensor, but a NoneType", "another checkpoint"]),
    "sparse weight": (as_other(lambda w: w.to_sparse()), _ALL, [_FIRST, "torch.sparse_coo", "another checkpoint"]),
    "name a number": (weight(torch.zeros(1), 3), _ALL, ["3 in its state_dict", "another checkpoint"]),
    "complex weight": (as_other(lambda w: w.to(torch.complex64)), ("fit", "begin", "test"), [_FIRST, "complex64"]),
    "no weights": (put("state_dict", {}), ("fit", "test"), ["another architecture", "convs.0.weight is nothing there"]),
    "NaN": (fill(torch.nan), _ALL, [f"{_FIRST} is NaN or infinite", "an earlier checkpoint"]),
    "infinite": (fill(-torch.inf), _ALL, [f"{_FIRST} is NaN or infinite", "an earlier checkpoint"]),
    "NaN statistics": (
        fill(torch.nan, "network.norms.0.running_var"),
        _ALL,
        ["network.norms.0.running_var is NaN or infinite", "an earlier checkpoint"],
    ),
    "radius NaN": (group(radius=torch.nan), ("fit", "begin"), ["optimizer_states", "radius is nan"]),
    "ELR infinite": (group(elr=torch.inf), ("fit", "begin"), ["optimizer_states", "elr is inf"]),
    "radius a str": (group(radius="x"), ("fit", "begin"), ["optimizer_states", "radius is x"]),
    "radius 0": (group(radius=0.0), ("fit",), ["radius in the state to load must be positive and finite, got 0.0"]),
    "optimizer a number": (put("optimizer_states", [1]), ("fit", "begin"), ["there are no param_groups"]),
    "groups a number": (
        lambda content: content["optimizer_states"][0].update(param_groups=5),
        ("fit", "begin"),
        ["there are no param_groups and state"],
    ),
    "group without params": (group(params=None), ("fit", "begin"), ["a parameter group holds no params"]),
    "other sizes": (group(params=[0]), ("fit",), ["doesn't match the size of optimizer's group"]),
    "no fit_loop": (put("loops", {}), ("fit",), ["its loops do not say how many epochs are done", "--ckpt_weights"]),
    "epochs a str": (current("x"), ("fit",), ["its loops do not say how many epochs are done", "--ckpt_weights"]),
    "epochs negative": (current(-3), ("fit",), ["its loops do not say how many epochs are done", "--ckpt_weights"]),
    "fit_loop a number": (put("loops", {"fit_loop": 5}), ("fit",), ["its loops do not say", "--ckpt_weights"]),
    "half a loop": (
        lambda content: content["loops"]["fit_loop"].update({"epoch_loop.batch_progress": 5}),
        ("fit",),
        ["damaged, it cannot be restored (TypeError", "begin a new run at its weights by --ckpt_weights"],
    ),
    "callbacks' states numbers": (
        lambda content: content.update(callbacks=dict.fromkeys(content["callbacks"], 5)),
        ("fit",),
        ["damaged, it cannot be restored (", "begin a new run at its weights by --ckpt_weights"],
    ),
    "model a number": (hparams(_class_path=5), _LOADED, ["in its hyper_parameters: model: class_path"]),
    "model unknown": (hparams(_class_path="lit_sphere.modules.Nope"), _ALL, ["in its hyper_parameters", "no class"]),
    "width a str": (hparams(width="x"), _ALL, ["in its hyper_parameters: --model.width: expected int", "--config"]),
    "unknown option": (hparams(bogus=3), _ALL, ["in its hyper_parameters: --model: SIConvNet has no option 'bogus'"]),
}
_QUICK = {
    ("state_dict a list", "fit"), ("hyper_parameters None", "test"), ("loops an int", "begin"), ("no loops", "fit"),
    ("weights only", "fit"), ("weight a str", "interpolate"), ("NaN", "test"), ("NaN", "interpolate"), ("NaN", "fit"),
    ("infinite", "begin"), ("radius NaN", "fit"), ("half a loop", "fit"), ("width a str", "validate"),
    ("tag", "fit"), ("cut", "begin"),
}  # fmt: skip
_ROWS = [(name, command) for name, (_, commands, _) in _HOSTILE.items() for command in commands]


def test_the_table_is_long() -> None:
    assert len(_ROWS) > 120
    assert {*_ROWS, *((name, command) for name in _CONFIGS for command in _ALL)} > _QUICK
    assert {command for _, command in _ROWS} == set(_COMMANDS)


@pytest.mark.parametrize(
    ("name", "command"),
    [pytest.param(*row, marks=() if row in _QUICK else pytest.mark.slow, id=f"{row[0]}-{row[1]}") for row in _ROWS],
)
def test_one_line_names_file_and_remedy(
    name: str, command: str, saved: Saved, empty_folder: Path, lit_sphere: LitSphere
) -> None:
    change, _, words = _HOSTILE[name]
    content = copy.deepcopy(saved["sphere"])
    change(content)
    torch.save(content, "bad.ckpt")
    refused(lit_sphere(*_COMMANDS[command]), "bad.ckpt", *words, status=2)


@pytest.mark.parametrize("command", _ALL)
def test_without_damage_they_are_taken(command: str, saved: Saved, empty_folder: Path, lit_sphere: LitSphere) -> None:
    """The refusals above are due to the damage; what no command needs may be missing."""
    content = copy.deepcopy(saved["sphere"])
    if command != "fit":
        without("loops", "optimizer_states", "lr_schedulers", "callbacks")(content)
    torch.save(content, "bad.ckpt")
    result = lit_sphere(*_COMMANDS[command])
    assert result.status == 0, result.err


@pytest.mark.parametrize("command", [pytest.param(each, marks=pytest.mark.slow) for each in _ALL])
def test_bare_weights(command: str, saved: Saved, empty_folder: Path, lit_sphere: LitSphere) -> None:
    torch.save(saved["sphere"]["state_dict"], "bad.ckpt")
    refused(lit_sphere(*_COMMANDS[command]), "bad.ckpt", "bare weights", "a Trainer has saved", status=2)


_OTHER = {
    ("sphere", "SGD"): ["optimizer: SphereSGD in the checkpoint, SGD here"],
    ("sphere", "Adam"): ["optimizer: SphereSGD in the checkpoint, Adam here"],
    ("SGD", "Adam"): ["optimizer: SGD in the checkpoint, Adam here"],
    ("Adam", "SGD"): ["optimizer: Adam in the checkpoint, SGD here"],
    ("SGD", "sphere"): ["optimizer: SGD in the checkpoint, SphereSGD here"],
}


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(*each, marks=() if each[1] == "Adam" else pytest.mark.slow) for each in _OTHER],
)
@pytest.mark.parametrize("known", [pytest.param(True), pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_its_own_optimizer(
    before: str, after: str, known: bool, saved: Saved, empty_folder: Path, lit_sphere: LitSphere
) -> None:
    content = copy.deepcopy(saved[before])
    model: tuple[str, ...] = ("--model.elr", "1e-3", "--model.optimizer", "null") if after == "sphere" else _RUNS[after]
    if not known:  # as of a module that has saved no options: the kind is told by the states
        del content["hyper_parameters"]
        model = ("--model", "SIConvNet", "--model.width", "4", *model)
    torch.save(content, "bad.ckpt")
    words = (
        _OTHER[before, after]
        if known
        else ["in the checkpoint", f"{model and after.replace('sphere', 'SphereSGD')} here"]
    )
    refused(lit_sphere(*_COMMANDS["fit"], *model), "bad.ckpt", *words, "--ckpt_weights", status=2)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("momentum_buffer", torch.zeros(3), ["momentum_buffer of parameter 0 is (3,) in the checkpoint"]),
        pytest.param("momentum_buffer", "x", ["momentum_buffer of parameter 0 is str"], marks=pytest.mark.slow),
        pytest.param(
            "momentum_buffer", torch.full((4, 1, 3, 3), torch.nan), ["momentum_buffer of parameter 0 is NaN"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_states_of_other_sizes(
    name: str, value: Any, words: list[str], saved: Saved, empty_folder: Path, lit_sphere: LitSphere
) -> None:
    content = copy.deepcopy(saved["SGD"])
    content["optimizer_states"][0]["state"][0][name] = value
    torch.save(content, "bad.ckpt")
    refused(lit_sphere(*_COMMANDS["fit"]), "bad.ckpt", *words, "--ckpt_weights", status=2)


_CONFIGS: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", ["blank file"]),
    "a list": ("- 1\n- 2\n", ["is a list"]),
    "cut": ("model:\n  class_path: 'SIConv", ["no YAML", "line 2"]),
    "cut elsewhere": ("model:\n  class_path: SIConv", ["no class", "SIConv"]),
    "tag": ("model: !!python/object/apply:os.mkdir [executed]\n", ["no YAML", "line 1"]),
    "model a list": ("model: [1, 2]\n", ["model: must be a class"]),
    "no text": (bytes(range(128, 256)), ["no YAML"]),
}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        pytest.param(name, command, marks=() if (name, command) in _QUICK else pytest.mark.slow)
        for name in _CONFIGS
        for command in _ALL
    ],
)
def test_a_damaged_config_beside_the_checkpoint_is_named(
    name: str, command: str, saved: Saved, empty_folder: Path, lit_sphere: LitSphere
) -> None:
    Path("a/checkpoints").mkdir(parents=True)
    torch.save(saved["sphere"], "a/checkpoints/bad.ckpt")
    text, words = _CONFIGS[name]
    Path("a/config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    line = [word.replace("bad.ckpt", "a/checkpoints/bad.ckpt") for word in _COMMANDS[command]]
    refused(lit_sphere(*line), "a/config.yaml", *words, status=2)
    assert not Path("executed").exists()
