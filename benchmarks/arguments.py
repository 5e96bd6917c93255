"""The benchmark's command line; imports nothing heavy, so that help and refusals come at once."""

import argparse
from pathlib import Path
from typing import NoReturn

_LETTERS = "abcdef"
_ABOUT = """\
sections:
  a  SphereSGD.step against torch.optim.SGD.step: back to back (a1), and inside training steps (a2)
  b  an epoch of `lit-sphere fit`, all default callbacks on, against a bare PyTorch loop with the same
     arithmetic: images of CIFAR-10's size (b1), digits (b2)
  c  images/s of `lit-sphere fit` against a conventional loop (PIL images and transforms in 2 workers,
     contiguous format, norms by .item()), both in fp32 (c1, c2); fit in bf16-mixed (c3)
  d  peak memory of training on 50 000 images, above importing torch
  e  seconds from the start of the process to the first training step
  f  an epoch with EffectiveLearningRateMonitor and online SharpnessMonitor against one without, both of one
     fit: images of CIFAR-10's size (f1), digits (f2); the first alone under AdamW, whose equilibrium it
     foretells: ResNet-18 (f3), digits (f4)

Takes about a quarter of an hour on two cores; run it on an idle machine."""


class _Parser(argparse.ArgumentParser):
    """Answers mistakes in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        description="Time lit-sphere against plain PyTorch; print ratios.",
        epilog=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes, to see that all works; the ratios mean nothing")
    add("--data", metavar="ROOT", help="folder with cifar-10-batches-py (default: random images)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)")
    add("--json", type=Path, metavar="OUT", help="write all pairs to this file")
    add("--trials", type=int, metavar="N", help="pairs in (b) and (c); (a) and (f) take more (default: 5, quick: 1)")
    add("--sections", default=_LETTERS, metavar="LETTERS", help="which to run (default: %(default)s)")
    args = parser.parse_args(argv)
    problem = _problem(args)
    if problem:
        parser.error(problem)
    return args


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, before minutes are spent."""
    if args.trials is not None and args.trials < 1:
        return f"--trials must be at least 1, got {args.trials}"
    if not args.sections or set(args.sections) - set(_LETTERS):
        return f"--sections takes letters among {_LETTERS}, got {args.sections!r}"
    if args.data is not None and not (Path(args.data).expanduser() / "cifar-10-batches-py").is_dir():
        return f"--data {args.data}: no folder cifar-10-batches-py in it; leave --data out for random images"
    if args.json is not None and args.json.is_dir():
        return f"--json {args.json}: is a folder; name a file"
    if args.json is not None and not args.json.absolute().parent.is_dir():
        return f"--json {args.json}: there is no folder {args.json.absolute().parent}"
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "--device cuda: torch finds no GPU here; use --device cpu"
    return None
