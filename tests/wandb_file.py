"""What an offline W&B run has written, row by row."""

import json
from pathlib import Path
from typing import Any

from lit_sphere.report.wandb_files import read_records, read_wandb


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """What was logged."""
    records, fault = read_records(path)
    assert not fault
    return [
        {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def wandb_axes(path: Path) -> dict[str, str]:
    """The x-axis of each key that was given one by its full name."""
    return read_wandb(path).axes
