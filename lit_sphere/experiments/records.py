"""What reproductions came to: a small file for each, and a shipped record of our own."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from lit_sphere.experiments.experiment import Finding, Verdict
from lit_sphere.files import write_whole

RECORD_FILE = "finding.json"
"""Name of a reproduction's record in its folder."""

SHIPPED_FILE = "evidence.json"


@dataclass(frozen=True)
class Record:
    """What a reproduction came to.

    Attributes:
        id: Of the experiment.
        verdict: Of its check.
        text: Why.
        seconds: Of all runs together.
        command: That made it.
        date: When, as ``2026-11-28``.
        hardware: On what, in words.
        versions: Of the packages that matter, by name.
    """

    id: str
    verdict: Verdict
    text: str
    seconds: float
    command: str
    date: str
    hardware: str
    versions: Mapping[str, str]

    @property
    def finding(self) -> Finding:
        """The finding of the check."""
        return Finding(self.verdict, self.text)


def write_record(folder: Path, record: Record) -> None:
    """Write the record of a reproduction.

    Args:
        folder: Of the reproduction.
        record: What it came to.
    """
    text = json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / RECORD_FILE, lambda file: file.write(text.encode()))


def read_record(folder: Path) -> Record | None:
    """Read the record of a reproduction.

    Args:
        folder: Of the reproduction.

    Returns:
        The record; None where there is none, or the file is none.
    """
    try:
        return _record(json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def shipped_records() -> dict[str, Record]:
    """Give the records of our own last check, by id.

    Returns:
        Those that there are.
    """
    text = files("lit_sphere.experiments").joinpath(SHIPPED_FILE).read_text(encoding="utf-8")
    found = [record for each in json.loads(text) if (record := _record(each)) is not None]
    return {record.id: record for record in found}


def _record(content: Any) -> Record | None:
    if not isinstance(content, dict) or content.get("verdict") not in get_args(Verdict):
        return None
    try:
        return Record(**content)
    except TypeError:
        return None
