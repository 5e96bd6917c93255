"""The parser of a subcommand that needs no Lightning, and whose options may stand among those of ``fit``."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lit_sphere.cli.subcommands import SUBCOMMANDS


class _Help(DefaultHelpFormatter):
    """Keeps the lines of what has several: the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def make_subcommand_parser(name: str, usage: str, examples: str = "") -> ArgumentParser:
    """Make the parser of a subcommand.

    Args:
        name: Such as ``report``.
        usage: What stands after ``lit-sphere NAME``.
        examples: Lines at the end of its help.

    Returns:
        The parser, without options.
    """
    return ArgumentParser(
        prog=f"lit-sphere {name}",
        usage=f"lit-sphere {name} {usage}",
        description=SUBCOMMANDS[name].description,
        epilog=examples or None,
        formatter_class=_Help,
        allow_abbrev=False,
        exit_on_error=False,
    )


def split_arguments(args: Sequence[str], parser: ArgumentParser) -> tuple[list[str], list[str], list[str]]:
    """Tell what is a command's own from what goes to the runs.

    Args:
        args: Command line after the subcommand.
        parser: Of the options that are the command's own.

    Returns:
        Words that are no values of options, at the beginning or after options of the command; its own options with
        their values; and the rest.
    """
    own = {option: action for action in parser._actions for option in action.option_strings}
    words, mine, others, rest = list[str](), list[str](), list[str](), list(args)
    is_mine = True
    while rest:
        if is_mine and not rest[0].startswith("-"):  # else it may be the value of an option of the runs
            words.append(rest.pop(0))
            continue
        option, equals, _ = rest[0].partition("=")
        is_mine = option in own
        takes_value = is_mine and not equals and own[option].nargs != 0
        count = 2 if takes_value else 1
        (mine if is_mine else others).extend(rest[:count])
        rest = rest[count:]
    return words, mine, others
