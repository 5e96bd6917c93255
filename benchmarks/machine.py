"""What the numbers were measured on: hardware and versions."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import lit_sphere


def hardware(device: str) -> dict[str, Any]:
    """Describe processor, memory, threads and load; the load tells whether others were at work."""
    cpu = _read("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpu)
    memory = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gb": round(int(memory[1]) / 2**20, 1) if memory else None,
        "amx_bf16": "amx_bf16" in cpu,
        "avx512_bf16": "avx512_bf16" in cpu,
        "torch_threads": torch.get_num_threads(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "device": device,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Give the versions of everything that the time is spent in."""
    names = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "wandb")
    found = {"python": platform.python_version(), "lit_sphere": lit_sphere.__version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # not Linux
        return ""
