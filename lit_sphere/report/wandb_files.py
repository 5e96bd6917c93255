"""The .wandb file of a W&B run, offline or online, as one series for each key and the run's configuration."""

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lit_sphere.report.metrics_csv import Series

_BLOCK, _HEAD = 32768, 7
_FULL, _FIRST, _LAST = 1, 2, 4  # kinds of pieces of a record; 3 in the middle


class WandbRun(NamedTuple):
    """What the file of a W&B run holds.

    Attributes:
        config: The configuration, nested as it was given.
        series: A series for each key that was logged with a finite number; pictures and tables are left out.
        summary: W&B's summary: the last value of each key, and what the run put there.
        objects: Kind of each key that was logged as something else than a number, such as ``images/separated`` or
            ``table-file``.
        axes: The key that is the x-axis of each key that was given one by its full name.
        name: Name of the run.
        group: Its group; empty if none.
        job_type: Its job type; empty if none.
        tags: Its tags.
        exit_code: How the run ended; None if the file does not say: it was killed, or goes on.
        fault: What was wrong with the file, in words; empty if nothing was.
    """

    config: dict[str, Any]
    series: dict[str, Series]
    summary: dict[str, Any]
    objects: dict[str, str]
    axes: dict[str, str]
    name: str
    group: str
    job_type: str
    tags: list[str]
    exit_code: int | None
    fault: str


def read_wandb(path: str | Path) -> WandbRun:
    """Read the file of a W&B run; of one that was cut or damaged, all that can be read.

    Args:
        path: The folder of the run (``…/wandb/offline-run-DATE-ID`` or ``…/wandb/run-DATE-ID``), or the
            ``run-ID.wandb`` in it.

    Returns:
        The run.

    Raises:
        ValueError: If there is no such file, or several, it is none of W&B, or the package ``wandb`` is not installed;
            one line.
    """
    path = _file_at(Path(path))
    records, fault = read_records(path)
    found, summary = WandbRun({}, {}, {}, {}, {}, "", "", "", [], None, fault), []
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            _update(found.config, run.config)
            known = {"name": run.display_name, "group": run.run_group, "job_type": run.job_type, "tags": list(run.tags)}
            found = found._replace(**{name: value for name, value in known.items() if value})
        elif kind == "config":
            _update(found.config, record.config)
        elif kind == "summary":
            summary.append(record.summary)
        elif kind == "metric" and record.metric.name:
            found.axes[record.metric.name] = record.metric.step_metric
        elif kind == "history":
            _add_row(found, record.history.item)
        elif kind == "exit":
            found = found._replace(exit_code=record.exit.exit_code)
    if not any(record.HasField("run") for record in records):
        raise ValueError(f"{path}: holds no run{f' ({fault})' if fault else ''}; it was cut before the run began")
    found.summary.update(_last_values(summary))
    for values in (found.config, found.summary):
        values.pop("_wandb", None)
    return found


def read_records(path: Path) -> tuple[list[Any], str]:
    """Read the protobuf records of a ``.wandb`` file.

    Seven bytes of header are followed by LevelDB's log format: blocks of 32 KiB, in them pieces of records, each with
    checksum, length and kind.

    Args:
        path: The file.

    Returns:
        The records in their order, of ``wandb.proto.wandb_internal_pb2.Record``; and what was wrong, in words, empty if
        nothing was.

    Raises:
        ValueError: If it is no file of W&B, it cannot be read, or the package ``wandb`` is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs W&B's package: pip install 'lit-sphere[cli]'") from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    if data[:4] != b":W&B":
        raise ValueError(f"{path}: {'is no file of a W&B run' if data else 'is empty'}")
    payloads, fault = _payloads(data)
    records = []
    for payload in payloads:
        try:
            records.append(Record.FromString(payload))
        except DecodeError:
            fault = "has records that cannot be read"
    return records, fault


def _file_at(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"{path}: is not there")
        return path
    files = sorted(path.glob("*.wandb"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(f"{path}: holds {len(files)} W&B runs; name one of them: {files[0]}, …")
    runs = sorted(path.glob("*run-*/*.wandb"))
    inside = f"; there is one below it: {runs[0].parent}" if runs else ""
    raise ValueError(f"{path}: is no folder of a W&B run, it holds no run-ID.wandb{inside}")


def _payloads(data: bytes) -> tuple[list[bytes], str]:
    """Put the pieces of each record together; after a damage go on at the next block."""
    payloads: list[bytes] = []
    parts: list[bytes] = []
    at, fault = _HEAD, ""
    while at + _HEAD <= len(data):
        rest = _BLOCK - at % _BLOCK
        if rest < _HEAD:
            at += rest
            continue
        checksum, length, kind = (int.from_bytes(data[at + i : at + j], "little") for i, j in ((0, 4), (4, 6), (6, 7)))
        end = at + _HEAD + length
        if not (checksum or length or kind):  # space that was reserved, and never written
            parts, at = [], at + rest
            continue
        is_whole = length + _HEAD <= rest and end <= len(data) and zlib.crc32(data[at + 6 : end]) == checksum
        if not is_whole:
            cut = end > len(data)
            fault = fault or f"is {'cut' if cut else 'damaged'} at byte {at} of {len(data)}"
            parts, at = [], at + rest
            continue
        if kind in (_FULL, _FIRST):
            parts = [data[at + _HEAD : end]]
        elif parts:  # else its first piece is lost
            parts.append(data[at + _HEAD : end])
        if kind in (_FULL, _LAST) and parts:
            payloads.append(b"".join(parts))
            parts = []
        at = end
    return payloads, fault or (f"is cut at byte {at} of {len(data)}" if parts or at < len(data) else "")


def _update(values: dict[str, Any], changes: Any) -> None:
    """Take a change of the configuration."""
    for item in changes.update:
        _set(values, _path(item), item.value_json)
    for item in changes.remove:
        values.pop(_path(item)[0], None)


def _set(values: dict[str, Any], path: Sequence[str], text: str) -> None:
    *outer, name = path
    for key in outer:
        inner = values.get(key)
        if not isinstance(inner, dict):
            inner = values[key] = {}
        values = inner
    try:
        values[name] = json.loads(text)
    except ValueError:
        values[name] = text


def _last_values(changes: Iterable[Any]) -> dict[str, Any]:
    """Read the summary as it was at last; of the many values that were replaced nothing is parsed."""
    texts: dict[tuple[str, ...], str] = {}
    for change in changes:
        for item in change.update:
            texts[_path(item)] = item.value_json
        for item in change.remove:
            texts.pop(_path(item), None)
    values: dict[str, Any] = {}
    for path, text in texts.items():
        _set(values, path, text)
    return values


def _add_row(run: WandbRun, items: Iterable[Any]) -> None:
    numbers: dict[str, float] = {}
    inside: list[tuple[str, str]] = []  # what pictures and tables say of themselves
    others = set()
    for item in items:
        path = _path(item)
        key = path[0] if len(path) == 1 else ".".join(path)
        if len(path) > 1:
            inside.append((path[0], key))
            if path[-1] == "_type":
                run.objects[path[0]] = item.value_json.strip('"')
                others.add(path[0])
        with suppress(ValueError):  # words, true
            numbers[key] = float(item.value_json)
    for root, key in inside:
        if root in others:
            numbers.pop(key, None)
    epoch = numbers.pop("epoch", math.nan)
    step = numbers.pop("trainer/global_step", numbers.get("_step", math.nan))
    for key, number in numbers.items():
        if not key.startswith("_") and math.isfinite(number):
            one = run.series.get(key)
            if one is None:
                one = run.series[key] = Series([], [], [])
            one.epochs.append(epoch)
            one.steps.append(step)
            one.values.append(number)


def _path(item: Any) -> tuple[str, ...]:
    return tuple(item.nested_key) or (item.key,)
