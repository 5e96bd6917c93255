"""The file of a W&B run is read back whole; one that was cut or damaged, as far as it can be."""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from lit_sphere.report.runs import read_runs
from lit_sphere.report.wandb_files import read_records, read_wandb

_BLOCK = 32768


def item_of(items: Any, path: str, value: object) -> None:
    item = items.add()
    item.nested_key.extend(path.split("|"))
    item.value_json = value if isinstance(value, str) else json.dumps(value)


def run_record(**config: object) -> Record:
    record = Record()
    record.run.run_id, record.run.display_name, record.run.run_group, record.run.job_type = "id", "r", "grid", "sphere"
    record.run.tags.extend(["digits", "SIConvNet"])
    for name, value in {"_wandb": {}, **config}.items():
        item = record.run.config.update.add()
        item.key, item.value_json = name, json.dumps(value)
    return record


def row(**values: object) -> Record:
    record = Record()
    for name, value in values.items():
        item_of(record.history.item, name.replace("__", "/"), value)
    return record


def epochs(count: int) -> list[Record]:
    return [row(epoch=i, trainer__global_step=4 * i + 3, _step=i, train__loss=1 / (i + 1)) for i in range(count)]


def log_of(records: list[Record]) -> bytes:
    """LevelDB's log format, as W&B writes it."""
    data = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        rest, kind = record.SerializeToString(), 1
        while True:
            room = _BLOCK - len(data) % _BLOCK
            if room < 7:
                data += bytes(room)
                continue
            piece, rest = rest[: room - 7], rest[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[kind == 1, not rest]
            checked = bytes([kind]) + piece
            data += zlib.crc32(checked).to_bytes(4, "little") + len(piece).to_bytes(2, "little") + checked
            if not rest:
                break
    return bytes(data)


def written(folder: Path, records: list[Record], name: str = "run-id.wandb") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(log_of(records))
    return folder / name


def test_a_run_is_read_back(tmp_path: Path) -> None:
    summary, end = Record(), Record()
    item_of(summary.summary.update, "val/error|min", 0.25)
    item_of(summary.summary.update, "regime", '"convergence"')
    end.exit.exit_code = 1
    picture = row(pictures__curves='"x"', _step=9)
    del picture.history.item[0]
    item_of(picture.history.item, "pictures/curves|_type", '"images/separated"')
    item_of(picture.history.item, "pictures/curves|width", 400)
    odd = row(epoch=7, _step=8, name='"words"', flag=True, nan="NaN", far="Infinity", user__deep=3)
    path = written(tmp_path, [run_record(model={"elr": 0.1}, seed=3), *epochs(3), odd, picture, summary, end])
    for given in (path, tmp_path, str(tmp_path)):
        run = read_wandb(given)
        assert (run.name, run.group, run.job_type, run.tags) == ("r", "grid", "sphere", ["digits", "SIConvNet"])
        assert run.config == {"model": {"elr": 0.1}, "seed": 3}
        assert run.series.keys() == {"train/loss", "user/deep"}
        assert run.series["train/loss"] == ([0, 1, 2], [3, 7, 11], [1, 1 / 2, 1 / 3])
        assert run.series["user/deep"] == ([7], [8], [3])
        assert run.summary == {"val/error": {"min": 0.25}, "regime": "convergence"}
        assert run.objects == {"pictures/curves": "images/separated"}
        assert (run.exit_code, run.fault) == (1, "")


def test_records_that_are_longer_than_a_block(tmp_path: Path) -> None:
    config = {"text": "a" * (3 * _BLOCK)}
    records = [run_record(**config), *epochs(2000)]
    run = read_wandb(written(tmp_path, records))
    assert run.config == config
    assert len(run.series["train/loss"].values) == 2000
    assert read_records(tmp_path / "run-id.wandb") == (records, "")


def test_of_a_file_that_was_cut_what_is_there_is_read(tmp_path: Path) -> None:
    records = [run_record(seed=0), *epochs(100)]
    path = written(tmp_path, records)
    whole, begin = path.read_bytes(), len(log_of(records[:1]))
    ends = [len(log_of(records[: i + 1])) for i in range(len(records))] + [len(whole) + 1]
    seen = set()
    for size in range(begin, len(whole) + 1, 31):
        path.write_bytes(whole[:size])
        run = read_wandb(path)
        losses = run.series["train/loss"].values if run.series else []
        assert losses == [1 / (i + 1) for i in range(len(losses))]
        assert ends[len(losses)] <= size < ends[len(losses) + 1]
        assert run.exit_code is None
        assert ("is cut at byte" in run.fault) == (size != ends[len(losses)])
        seen.add(len(losses))
    assert {0, 50, 99} <= seen


def test_a_report_says_that_a_file_was_cut(tmp_path: Path) -> None:
    path = written(tmp_path / "run-1", [run_record(seed=0), *epochs(100)])
    path.write_bytes(path.read_bytes()[:-5])
    runs, left_out = read_runs([tmp_path])
    assert len(runs[0].series["train/loss"].values) == 99
    (line,) = left_out
    assert re.fullmatch(rf"{path.parent}: its file of W&B is cut at byte \d+ of \d+; the rest of it is left out", line)


def test_after_a_damage_it_goes_on_at_the_next_block(tmp_path: Path) -> None:
    path = written(tmp_path, [run_record(seed=0), *epochs(2000)])
    data = bytearray(path.read_bytes())
    assert len(data) > 3 * _BLOCK
    data[_BLOCK + 100] ^= 255
    path.write_bytes(data)
    run = read_wandb(path)
    steps = run.series["train/loss"].steps
    assert 1000 < len(steps) < 2000
    assert steps[-1] == 4 * 1999 + 3
    assert "is damaged at byte" in run.fault
    data[_BLOCK : 2 * _BLOCK] = bytes(_BLOCK)  # as a crashed file system leaves it
    path.write_bytes(data)
    assert read_wandb(path).series["train/loss"].steps[-1] == 4 * 1999 + 3


def test_what_is_none_of_it_is_refused_in_words(tmp_path: Path) -> None:
    foreign, empty = tmp_path / "a.wandb", tmp_path / "b.wandb"
    foreign.write_bytes(b"epoch,step\n" * 100)
    empty.touch()
    inner = tmp_path / "wandb" / "offline-run-1-a"
    inner.parent.mkdir()
    written(inner, [run_record()])
    cut = tmp_path / "cut"
    written(cut, [run_record()])
    (cut / "run-id.wandb").write_bytes(log_of([run_record()])[:30])
    for path, words in (
        (foreign, "is no file of a W&B run"),
        (empty, "is empty"),
        (tmp_path / "none", "is not there"),
        (tmp_path, "holds 2 W&B runs; name one of them"),
        (inner.parent, f"there is one below it: {inner}"),
        (cut, "holds no run (is cut at byte 7 of 30)"),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
            read_wandb(path)
        assert words in str(error.value)
        assert str(path) in str(error.value)
