"""Cosine similarities of snapshots, errors of their ensembles, and the callback that logs them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lit_sphere.analysis import cosine_matrix, ensemble_errors, take_weights
from lit_sphere.callbacks import CheckpointSimilarity
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet
from lit_sphere.report import PairOfSnapshots, draw_similarity, read_metrics


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4), min_size=1, max_size=4), st.floats(0.1, 9)
)
def test_cosines_against_numpy(rows: list[list[float]], scale: float) -> None:
    vectors = np.array(rows)
    norms = np.linalg.norm(vectors, axis=1)
    assume((norms > 1e-3).all())
    points = [{"a": torch.tensor(row[:1]).double(), "b": scale * torch.tensor(row[1:]).double()} for row in rows]
    points[0] = {name: 5 * value for name, value in points[0].items()}
    vectors = np.concatenate([vectors[:, :1], scale * vectors[:, 1:]], axis=1)
    norms = np.linalg.norm(vectors, axis=1)
    expected = vectors @ vectors.T / np.outer(norms, norms)
    np.testing.assert_allclose(cosine_matrix(points, ["a", "b"]).numpy(), expected, atol=1e-6)


class Table(nn.Module):
    """Logits looked up by the number of the sample."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(probabilities).log())
        self.norm = nn.BatchNorm1d(2)
        self.logits: Tensor

    def forward(self, index: Tensor) -> Tensor:
        assert not self.training
        return self.logits[index]


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    # Right, wrong / wrong, right by little and by much, both wrong, both right.
    one = Table([[0.9, 0.1], [0.45, 0.55], [0.1, 0.9], [0.8, 0.2]])
    two = Table([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    labels = torch.zeros(4, dtype=torch.long)
    index = torch.arange(4)
    model = Table([[0.5, 0.5]] * 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    members = [take_weights(one), take_weights(two)]
    batches = [(index[:3], labels[:3]), (index[3:], labels[3:])]
    found = ensemble_errors(model, members, batches)
    assert found.members == (0.5, 0.5)
    assert found.ensemble == 0.25
    assert found.gain == 0.25
    assert found.member_error == 0.5
    assert model.training
    assert model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # Two processes, the other with four samples more, all wrong.
    found = ensemble_errors(model, members, batches, add_up=lambda counts: counts + 4)
    assert found.ensemble == 5 / 8
    assert found.members == (6 / 8, 6 / 8)
    assert ensemble_errors(model, members[:1], batches).gain == 0
    with pytest.raises(ValueError, match="no batch"):
        ensemble_errors(model, members, [])
    with pytest.raises(ValueError, match="at least one member"):
        ensemble_errors(model, [], batches)


class Keep(Callback):
    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights.append(take_weights(pl_module))


def fit(folder: Path, *callbacks: Callback, epochs: int = 4, **options: Any) -> SIConvNet:
    torch.manual_seed(0)
    module = SIConvNet(width=4, in_channels=1, elr=2e-2)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module, Digits(batch_size=64, train_size=256))
    return module


def test_what_is_logged_is_what_the_functions_say(tmp_path: Path) -> None:
    keep, similarity = Keep(), CheckpointSimilarity(every_n_epochs=1, keep=2)
    module = fit(tmp_path, similarity, keep)
    data = Digits(batch_size=64, train_size=256)
    data.setup()
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    matrix = cosine_matrix(keep.weights, trainable)
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["similarity/previous"].values == pytest.approx([matrix[i, i + 1].item() for i in range(3)], rel=1e-12)
    assert series["similarity/first"].values == pytest.approx(matrix[0, 1:].tolist(), rel=1e-12)
    assert series["similarity/first"].epochs == [1, 2, 3]
    expected = [ensemble_errors(module, keep.weights[i : i + 2], data.val_dataloader()) for i in range(3)]
    assert series["ensemble/error"].values == [each.ensemble for each in expected]
    assert series["ensemble/member_error"].values == [each.member_error for each in expected]
    assert series["ensemble/gain"].values == [each.gain for each in expected]
    assert expected[0].members[1] == expected[1].members[0]
    assert len({each.member_error for each in expected}) > 1
    # The second snapshot is no longer kept when the fourth comes.
    pairs = {pair.epochs: pair.cosine for pair in similarity.pairs}
    assert pairs.keys() == {(1, 2), (1, 3), (2, 3), (1, 4), (3, 4)}
    assert pairs == pytest.approx({(i, j): matrix[i - 1, j - 1].item() for i, j in pairs}, rel=1e-12)
    with (tmp_path / "similarity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["epoch"]), int(row["other_epoch"])) for row in rows] == list(pairs)
    assert [float(row["cosine"]) for row in rows] == list(pairs.values())
    assert float(rows[0]["ensemble_error"]) == expected[0].ensemble
    assert rows[1]["ensemble_error"] == ""
    assert (tmp_path / "similarity.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`|.*use_distributed_sampler")
def test_without_validation_there_are_similarities_only() -> None:
    similarity = CheckpointSimilarity(every_n_epochs=1)
    torch.manual_seed(0)
    quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[similarity],
        enable_model_summary=False,
        log_every_n_steps=1,
        **quiet,
    )
    data = Digits(batch_size=64, train_size=256)
    data.setup()
    trainer.fit(SIConvNet(width=4, in_channels=1, elr=2e-2), data.train_dataloader())
    assert [pair.ensemble_error for pair in similarity.pairs] == [None]


def test_pictures_of_few_and_of_many_pairs(tmp_path: Path) -> None:
    few = draw_similarity([PairOfSnapshots((1, 2), -0.3)])
    many = draw_similarity(
        [PairOfSnapshots((i, j), 0.9 ** (j - i), 0.1, (0.2, 0.3)) for j in range(2, 30) for i in range(1, j)]
    )
    few_panels, many_panels = ([axes.get_title() for axes in figure.axes] for figure in (few, many))
    assert few_panels == ["cosine similarity", ""]
    assert many_panels == ["cosine similarity", "", "validation error [%]"]


def test_bad_arguments_and_runs_too_short(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CheckpointSimilarity: every_n_epochs must be at least 1, got 0"):
        CheckpointSimilarity(every_n_epochs=0)
    with pytest.raises(ValueError, match="CheckpointSimilarity: keep must be at least 2, got 1"):
        CheckpointSimilarity(keep=1)
    with pytest.warns(UserWarning, match="no two snapshots 10 epochs apart in 2 epochs; lower every_n_epochs"):
        fit(tmp_path, CheckpointSimilarity(), epochs=2)


@pytest.mark.slow
def test_minima_of_different_periods_are_far_apart(tmp_path: Path) -> None:
    """In the whole space with weight decay, at LR 0.3 and WD 1e-2, the weights jump away from time to time (PB §5)."""
    torch.manual_seed(0)
    module = SIConvNet(width=8, in_channels=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=1e-2))
    similarity = CheckpointSimilarity(every_n_epochs=10, keep=13)
    quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=120, callbacks=[similarity], enable_model_summary=False, **quiet,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, Digits())
    consecutive = [pair.cosine for pair in similarity.pairs if pair.ensemble_error is not None]
    assert sorted(consecutive)[len(consecutive) // 2] > 0.9, "within a period the weights hardly move"
    assert min(consecutive) < 0.4, "between two periods they do"
