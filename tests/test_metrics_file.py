"""metrics.csv: as Lightning writes it, but whole after a kill or on a full disk."""

import csv
import math
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.metrics_file import MetricsFile, read_history, set_aside

_ROWS = st.lists(
    st.dictionaries(st.sampled_from(["a", "b/c", "d e", "epoch"]), st.floats(width=32), min_size=1), max_size=8
)


def _log(logger: CSVLogger, rows: Sequence[Mapping[str, float]], first: int = 0) -> None:
    for step, row in enumerate(rows, first):
        values: dict[str, Tensor | float] = {**row}
        logger.log_metrics(values, step)
        logger.save()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@settings(deadline=None)  # a disk that is waited for
@given(rows=_ROWS)
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_the_file_is_that_of_lightning(rows: list[dict[str, float]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("files")
    _log(MetricsFile(folder / "ours"), rows)
    _log(CSVLogger(folder, name="theirs", version=""), rows)
    ours, theirs = folder / "ours" / "metrics.csv", folder / "theirs" / "metrics.csv"
    assert ours.exists() == theirs.exists() == bool(rows)
    if rows:
        assert ours.read_bytes() == theirs.read_bytes()


@settings(deadline=None)
@given(rows=_ROWS, more=_ROWS, cut=st.integers(0, 9))
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_run_that_goes_on_has_the_rows_of_one_that_never_stopped(
    rows: list[dict[str, float]], more: list[dict[str, float]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("files")
    _log(MetricsFile(folder / "a"), rows)
    path = folder / "a" / "metrics.csv"
    history = read_history(path, cut)
    again = MetricsFile(folder / "a")
    if history is not None:
        again.go_on(history)
    _log(again, more, cut)
    _log(MetricsFile(folder / "whole"), [*rows[:cut], *more], 0)
    whole = folder / "whole" / "metrics.csv"
    kept = [{k: v for k, v in row.items() if v and k != "step"} for row in (_rows(path) if path.exists() else [])]
    wanted = [{k: v for k, v in row.items() if v and k != "step"} for row in (_rows(whole) if whole.exists() else [])]
    assert kept == wanted


def test_a_row_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "a")
    _log(logger, [{"a": 1.0}] * 3)
    before = (tmp_path / "a" / "metrics.csv").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for key, value in (("a", 1 / 3), ("new column", 1.0)):
        logger.log_metrics({key: value}, 3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                logger.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "a" / "metrics.csv").read_bytes() == before
    logger.save()  # there is space again
    assert [row["a"] for row in _rows(tmp_path / "a" / "metrics.csv")] == ["1.0"] * 3 + [str(1 / 3), ""]


def test_a_row_that_was_cut_off_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.csv"
    text = "a,epoch,step\r\n1.5,0,0\r\n,0,1\r\n2.5,1,2\r\n"
    path.write_text(text, newline="")
    whole = read_history(path, 10)
    assert whole == (["a", "epoch", "step"], [["1.5", "0", "0"], ["", "0", "1"], ["2.5", "1", "2"]])
    assert not caplog.records
    for cut in range(text.index("2.5") + 1, len(text)):
        caplog.clear()
        path.write_text(text[:cut], newline="")
        history = read_history(path, 10)
        assert history is not None
        assert history.rows == [["1.5", "0", "0"], ["", "0", "1"]]
        assert "cut off" in caplog.text
        assert str(path) in caplog.text
    history = read_history(path, 1)
    assert history is not None
    assert history.rows == [["1.5", "0", "0"]]


@pytest.mark.parametrize("text", ["", "a,st", "\r\n"])
def test_no_history(text: str, tmp_path: Path) -> None:
    assert read_history(tmp_path / "metrics.csv", 1) is None
    (tmp_path / "metrics.csv").write_text(text, newline="")
    assert read_history(tmp_path / "metrics.csv", 1) is None


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"hello\nworld\n", 1),
        (b"a,b\n1,2\n", 1),
        (b"a,a,step\n1,2,3\n", 1),
        (b"a,step\n1,2\nx,3\n1,4\n", 3),
        (b"a,step\n1,2\n1,2,3\n", 3),
        (b"a,step\n1\n", 2),
        (b"a,step\n1,\n", 2),
        (b"a,step\n1,nan\n", 2),
        (b"a,step\n1,2\n\xff\xfe\n", 3),
        (b"a,step\n1,\x002\n", 2),
    ],
)
def test_other_content_names_file_and_line(content: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(CommandLineError, match=rf"metrics\.csv: line {line} .*move the file away"):
        read_history(path, 10)
    assert path.read_bytes() == content


def test_what_was_set_aside_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    for text in ("one", "two", "three"):
        path.unlink(missing_ok=True)
        path.write_text(text)
        set_aside(path, 7)
        assert path.read_text() == text
        monkeypatch.setattr("os.link", _no_links)  # from now on a file system without
    names = ["metrics-before-step-7.csv", "metrics-before-step-7-2.csv", "metrics-before-step-7-3.csv"]
    assert [(tmp_path / name).read_text() for name in names] == ["one", "two", "three"]


def _no_links(*_: object) -> None:
    raise OSError(1, "Operation not permitted")


def test_nan_and_infinity_come_back(tmp_path: Path) -> None:
    _log(MetricsFile(tmp_path / "a"), [{"a": math.nan}, {"a": math.inf}])
    history = read_history(tmp_path / "a" / "metrics.csv", 2)
    assert history is not None
    assert [row[0] for row in history.rows] == ["nan", "inf"]
