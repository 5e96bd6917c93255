"""Times lit-sphere against plain PyTorch in one process and one run; see ``overhead.py --help``.

Every ratio is the median over pairs of measurements taken one right after the other, with the smallest and
largest; see the sections' modules for what is timed.
"""

from arguments import parse_arguments


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run."""
    args = parse_arguments(argv)
    from sections import run_sections  # seconds of imports

    run_sections(args)


if __name__ == "__main__":
    main()
