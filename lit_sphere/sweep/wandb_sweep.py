"""The same grid as a sweep of W&B, for agents on many machines."""

import math
from typing import Any

from lit_sphere.sweep.grid import SweepError, canonical
from lit_sphere.sweep.plan import Plan


def wandb_sweep(plan: Plan, name: str, project: str) -> dict[str, Any]:
    """Write a plan as ``wandb sweep`` reads it; each agent runs ``lit-sphere fit`` with one point after the other.

    Args:
        plan: The sweep.
        name: Shown where the plan has no title.
        project: W&B project.

    Returns:
        The content of the YAML file.

    Raises:
        SweepError: If not all points of the grid are run, options change together, or seeds vary: W&B knows products
            of single options only.
    """
    if plan.only:
        raise SweepError(
            "--export wandb: a grid of W&B is whole, and only some points of this one are to be run (only)"
        )
    if plan.zipped:
        raise SweepError(
            f"--export wandb: a grid of W&B is a product, and {', '.join(plan.zipped)} change together (zip); run it "
            "here or by --launcher slurm"
        )
    if plan.seeds > 1:
        raise SweepError(
            "--export wandb: --seeds sets two options together, which a grid of W&B cannot; vary one of them, e.g. "
            f"--over seed_everything={','.join(map(str, range(plan.seeds)))}"
        )
    _ = plan.points  # checks them
    seeds = ["--seed_everything=0", "--data.seed=0"] if plan.seeds else []
    first = [f"--config={plan.over['config'][0]}"] if len(plan.over.get("config", ())) == 1 else []
    parameters = {
        option: {"values": [_value(value) for value in values]}
        for option, values in plan.over.items()
        if option != "config" or not first
    }
    if "config" in parameters:
        raise SweepError("--export wandb: a config that varies must come first, which a grid of W&B cannot")
    return {
        "name": plan.title or name,
        "project": project,
        "program": "lit-sphere",
        "method": "grid",
        "command": ["${env}", "lit-sphere", "fit", "--wandb=online", *first, *plan.fit, *seeds, "${args}"],
        "parameters": parameters,
    }


def _value(text: str) -> float | int | str:
    """A number where the text is one, for W&B's axes; else what is to be typed."""
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return text
    return int(number) if canonical(text).lstrip("-").isdecimal() else number
