"""Times the search for scale-invariant groups on networks at their real size, each in a process of its own.

Time is given in seconds and as a ratio to one training step (forward and backward of the same batch in float32);
memory in use as the growth of the process beyond the model, over the model's own size in float32. What glibc would keep
of freed memory for later (with its defaults another half of a large model's size) is given back, so that it does not
count.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from machine import hardware, versions
from torch import Tensor, nn

BATCH = 8


class GPT(nn.Module):
    """A pre-norm transformer of GPT-2's size, with a head of its own: 163 M parameters."""

    def __init__(self, width: int = 768, layers: int = 12, words: int = 50257, length: int = 1024) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(
            width, 12, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Any:
        length = tokens.shape[1]
        x = self.words(tokens) + self.places(torch.arange(length, device=tokens.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, tokens.device, x.dtype)
        return self.head(self.blocks(x, mask, is_causal=True))


def _images() -> Tensor:
    return torch.randn(BATCH, 3, 224, 224)


def _tokens(length: int) -> Tensor:
    return torch.randint(50257, (BATCH, length))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet50": (torchvision.models.resnet50, _images),
    "vit_b_16": (torchvision.models.vit_b_16, _images),
    "gpt": (GPT, lambda: _tokens(32)),
    "gpt256": (GPT, lambda: _tokens(256)),
    "swin_t": (torchvision.models.swin_t, _images),
    "convnext_tiny": (torchvision.models.convnext_tiny, _images),
    "vgg16": (torchvision.models.vgg16, _images),
    "densenet121": (torchvision.models.densenet121, _images),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, _images),
}


def _peak() -> int:
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(name: str) -> str:
    """Search one network's groups.

    Args:
        name: Of ``NETWORKS``.

    Returns:
        A row of the table.
    """
    from lit_sphere.groups import search_groups

    make, example = NETWORKS[name]
    torch.manual_seed(0)
    model, batch = make(), example()
    count = sum(parameter.numel() for parameter in model.parameters())
    before = _peak()
    started = time.perf_counter()
    found = search_groups(model, batch, progress=False)
    seconds, memory = time.perf_counter() - started, _peak() - before
    started = time.perf_counter()
    model(batch).float().square().mean().backward()
    step = time.perf_counter() - started
    tensors = sum(1 for _ in model.parameters())
    covered = sum(group.numel for group in found.groups) / count
    return (
        f"{name:14s} {count / 1e6:6.1f} M {tensors:4d} tensors {len(found.groups):4d} groups, {covered:6.1%} of the "
        f"weights {seconds:7.1f} s = {seconds / step:5.1f} steps {memory / count / 4:5.2f} x the model's size"
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; all if none is named")
    names = parser.parse_args().networks or list(NETWORKS)
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"no network {unknown[0]!r}: there are {', '.join(NETWORKS)}")
    print(hardware("cpu"), versions(), sep="\n")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # read by the processes that are started
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(measure, names):
            print(row, flush=True)


if __name__ == "__main__":
    main()
