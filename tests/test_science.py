"""The three regimes on digits, by the shipped config (TR fig. 1 at laptop size)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_sphere.report import read_metrics

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("elr", "regime"),
    [
        ("1e-4", "convergence"),
        ("1e-3", "convergence"),
        ("1e-2", "convergence"),
        ("3e-2", "chaotic equilibrium"),
        ("4e-2", "chaotic equilibrium"),
        ("2e-1", "divergence"),
        ("5e-1", "divergence"),
    ],
)
def test_an_effective_learning_rate_has_its_regime(
    elr: str, regime: str, tmp_path: Path, lit_sphere: Callable[..., Any]
) -> None:
    result = lit_sphere(
        "fit", "--config", "elr.yaml", "--model.elr", elr, "--run", str(tmp_path), "--wandb", "disabled"
    )
    series = read_metrics(tmp_path / "metrics.csv")
    losses, errors = series["train/loss"].values, series["val/error"].values
    assert len(losses) == len(errors) == 100
    assert f"regime       {regime}" in result.out
    if regime == "convergence":
        assert losses[-1] < {"1e-4": 1e-2, "1e-3": 2e-3, "1e-2": 5e-4}[elr]
        assert errors[-1] <= 0.04
    elif regime == "chaotic equilibrium":
        assert min(losses) > 0.5
        assert 15 < sum(series["effective_grad_norm/total"].values[-20:]) / 20 < 60
    else:
        assert sum(errors[-20:]) / 20 == pytest.approx(0.9, abs=0.05)
        assert min(series["effective_grad_norm/total"].values[-20:]) > 100
