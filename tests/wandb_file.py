"""Reads back what an offline W&B run has written."""

import json
import struct
from pathlib import Path
from typing import Any


def wandb_records(path: Path) -> list[Any]:
    """Read a .wandb file: a 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, at, part, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(part)
            records.append(record)
            part = b""
    return records


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """What was logged, row by row."""
    return [
        {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(path)
        if record.HasField("history")
    ]


def wandb_axes(path: Path) -> dict[str, str]:
    """The x-axis of each key that was given one by its full name."""
    return {r.metric.name: r.metric.step_metric for r in wandb_records(path) if r.HasField("metric")}
