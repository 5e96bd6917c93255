"""Runs ``fit`` in a process of its own and prints its peak memory, in bytes, above importing torch.

The process's own high-water mark, not getrusage's ru_maxrss: that one starts at the peak of whatever
process started it.
"""

import json
import re
import resource
import sys
from pathlib import Path

import torch


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    importing_torch = peak_bytes()
    from fitted import fit

    device, *args = sys.argv[1:]
    fit(args, device)
    print(json.dumps({
        "importing_torch": importing_torch, "peak": peak_bytes(),
        "gpu": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    }))  # fmt: skip
