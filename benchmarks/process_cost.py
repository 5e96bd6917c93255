"""(d) The memory and (e) the start-up time of whole processes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from comparison import Comparison
from run_probes import MARK_FILE
from settings import Settings

_HERE = Path(__file__).resolve().parent
_LIMIT_GB = 1.5


def measure_memory(settings: Settings) -> Comparison:
    """(d): one epoch of ConvNet on 50 000 images, against the limit."""
    args = [
        "--model=SIConvNet", f"--model.width={settings.width}", "--trainer.max_epochs=1",
        *settings.images_arguments(None, 10_000),
    ]  # fmt: skip
    if settings.memory_batches is not None:
        args += [f"--trainer.limit_{stage}_batches={settings.memory_batches}" for stage in ("train", "val")]
    printed = _python([str(_HERE / "memory_probe.py"), settings.device, *args])
    found = json.loads(printed.splitlines()[-1])
    above = (found["peak"] - found["importing_torch"]) / 1e9
    capped = "" if settings.memory_batches is None else f", {settings.memory_batches} batches of it"
    what = f"peak memory above importing torch, an epoch on 50 000 images{capped}"
    comparison = Comparison("d", what, "fit", "limit", "GB", ("<=", 1.0), [(above, _LIMIT_GB)])
    comparison.notes["importing torch, GB"] = found["importing_torch"] / 1e9
    if settings.device == "cuda":
        comparison.notes["GPU memory, GB"] = found["gpu"] / 1e9
    return comparison


def measure_start(settings: Settings) -> Comparison:
    """(e): from the start of the process to the first training step, against the imports it cannot avoid."""
    what = "from process start to the first step of `lit-sphere fit --config elr.yaml`"
    comparison = Comparison("e", what, "fit", f"importing {settings.imports}", "s")
    return comparison.measure(_first_step, lambda: _imports(settings.imports), max(1, settings.trials // 2))


def _first_step() -> float:
    with tempfile.TemporaryDirectory(prefix="lit-sphere-benchmark-") as folder:
        mark = Path(folder) / "mark"
        args = [
            "-m", "lit_sphere", "fit", "--config", "elr.yaml", "--trainer.max_epochs", "1", "--wandb=offline",
            "--run", str(Path(folder) / "run"), "--trainer.callbacks=run_probes.FirstStepMark",
        ]  # fmt: skip
        start = time.time()
        _python(args, {MARK_FILE: str(mark)})
        return float(mark.read_text()) - start


def _imports(modules: str) -> float:
    start = time.time()
    _python(["-c", f"import {modules}"])
    return time.time() - start


def _python(args: list[str], extra: dict[str, str] | None = None) -> str:
    path = os.pathsep.join(filter(None, [str(_HERE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **(extra or {}), "PYTHONPATH": path}
    command = [sys.executable, *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(args)} failed:\n{done.stderr[-3000:]}")
    return done.stdout
