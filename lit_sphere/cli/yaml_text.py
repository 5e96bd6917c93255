"""What a YAML text may hold: each key once, no more than can be walked through, and nothing unreadable."""

from dataclasses import dataclass, field
from typing import Any

import yaml

from lit_sphere.cli.errors import CommandLineError

_DEEPEST = 50
_MOST = 100_000  # values, with what anchors repeat; a config has some hundred
_UNSERIALISED = "Unable to serialize instance "


@dataclass
class _Open:
    """A mapping or list that has not ended yet.

    Attributes:
        anchor: Its name, for aliases.
        is_mapping: Whether it is a mapping, in which every second child is a key.
        children: Keys and values that stand in it.
        nodes: All below it, what an alias repeats counted again.
        keys: Line of each key.
    """

    anchor: str | None
    is_mapping: bool
    children: int = 0
    nodes: int = 1
    keys: dict[str, int] = field(default_factory=dict)


def check_yaml(text: str, where: str) -> None:
    """Refuse what a reader would take in silence, or never come to an end with.

    Args:
        text: YAML or JSON; errors of the syntax are raised as PyYAML does.
        where: Where it stands, for the message.

    Raises:
        CommandLineError: If a key is given twice, an anchor refers to itself, or the text is nested or repeats itself
            beyond measure.
    """
    sizes: dict[str, int] = {}
    around: list[_Open] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line, anchor = event.start_mark.line + 1, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(around) == _DEEPEST:
                raise CommandLineError(
                    f"{where}, line {line}: nested more than {_DEEPEST} levels deep; make it flatter"
                )
            around.append(_Open(anchor, isinstance(event, yaml.MappingStartEvent)))
            continue
        nodes = 1
        if isinstance(event, yaml.CollectionEndEvent):
            ended = around.pop()
            anchor, nodes = ended.anchor, ended.nodes
        elif isinstance(event, yaml.AliasEvent):
            if any(each.anchor == anchor for each in around):
                raise CommandLineError(f"{where}, line {line}: *{anchor} stands within itself; leave it out")
            nodes = sizes.get(str(anchor), 1)
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor is not None:
            sizes[anchor] = nodes
        if around:
            _count(around[-1], nodes, event, where)


def _count(around: _Open, nodes: int, event: Any, where: str) -> None:
    line = event.start_mark.line + 1
    if around.is_mapping and around.children % 2 == 0 and isinstance(event, yaml.ScalarEvent):
        if event.value in around.keys:
            first = around.keys[event.value]
            lines = f"lines {first} and {line}" if first != line else f"line {line}"
            raise CommandLineError(f"{where}: {event.value} is given twice, {lines}; leave one out")
        around.keys[event.value] = line
    around.children += 1
    around.nodes += nodes
    if around.nodes > _MOST:
        raise CommandLineError(
            f"{where}, line {line}: its anchors repeat more than {_MOST} values; write out what is meant"
        )


def without_unserialised(text: str) -> str:
    """Leave out the defaults of which jsonargparse has only written that it cannot write them.

    Args:
        text: A config as jsonargparse dumps it.

    Returns:
        The same, which can be read again: what is left out takes its default.
    """
    if _UNSERIALISED not in text:
        return text
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    pruned: str = yaml.safe_dump(_pruned(yaml.safe_load(text)), sort_keys=False)
    return comments + pruned


def _pruned(value: Any) -> Any:
    if isinstance(value, list):
        return [_pruned(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if not (isinstance(v, str) and v.startswith(_UNSERIALISED))}
    return {name: _pruned(each) for name, each in kept.items()}
