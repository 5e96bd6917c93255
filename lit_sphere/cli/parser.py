"""What our parsers do beside Lightning's: shipped configs by name, whole numbers that stay whole, a short help."""

import re
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser

from lit_sphere.cli.config_names import find_config, is_text, read_config
from lit_sphere.cli.old_names import rename_in_text
from lit_sphere.cli.shipped_classes import classes_in_text
from lit_sphere.cli.yaml_text import without_unserialised


class Parser(LightningArgumentParser):
    """A parser that keeps whole numbers whole, and whose help leaves out dozens of classes of Lightning's."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an argument; of a number that may be whole, ``1`` stays an int and ``1.0`` a float.

        jsonargparse makes the groups' method of this one's source, and the parsers of classes of this class.

        Args:
            *args: Names.
            **kwargs: As for argparse.

        Returns:
            The action.
        """
        action = super().add_argument(*args, **kwargs)
        if hasattr(action, "_typehint"):  # of a class's parameter, the type is in the action when it comes here
            action._typehint = int_before_float(action._typehint)
        return action

    def add_function_arguments(self, *args: Any, linked_targets: set[str] | None = None, **kwargs: Any) -> Any:
        """Add the options of a function that returns a network; jsonargparse hands it a link that only classes take.

        Args:
            *args: As for jsonargparse.
            linked_targets: Not used: no link reaches into the network.
            **kwargs: As for jsonargparse.

        Returns:
            The arguments added.
        """
        return super().add_function_arguments(*args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a config's text, whose options may have the names of earlier versions.

        Args:
            content: The text.
            *args: As for jsonargparse.
            **kwargs: As for jsonargparse.

        Returns:
            What is parsed.
        """
        return super().parse_string(classes_in_text(rename_in_text(content)), *args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Give the text of a config, which can be read again.

        Args:
            *args: As for jsonargparse.
            **kwargs: As for jsonargparse.

        Returns:
            YAML; without defaults that cannot be written, such as torchvision's layers with options filled in.
        """
        text: str = super().dump(*args, **kwargs)
        return without_unserialised(text)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Give the help without those classes."""
        text: str = super().format_help(*args, **kwargs)
        return re.sub(r",\s+known\s+subclasses:[^)]*?lightning[^)]*", "", text)


def int_before_float(annotation: Any) -> Any:
    """Put int before float in a union: jsonargparse takes the first type that fits, and float fits ``1`` too.

    The order that Lightning wrote is lost: ``typing`` takes ``Optional[Union[int, float]]`` for the
    ``Optional[Union[float, int]]`` that was made first.

    Args:
        annotation: Of a parameter.

    Returns:
        The same type, as far as Python can tell.

    Examples:
        >>> get_args(int_before_float(float | str | int))
        (<class 'int'>, <class 'float'>, <class 'str'>)
    """
    members = get_args(annotation)
    if get_origin(annotation) not in (Union, UnionType) or not {int, float} <= set(members):
        return annotation
    return Union[(int, *(member for member in members if member is not int))]


class ConfigFile(ActionConfigFile):
    """``--config``: a path, the name of a shipped config, or the text of a config in braces."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Lay the config over what came before it."""
        super().__call__(parser, namespace, self.resolve(values), option_string)  # type: ignore[no-untyped-call]

    def resolve(self, config: str) -> str:
        """Find what jsonargparse is to read.

        Args:
            config: As typed.

        Returns:
            Path or text.
        """
        read_config(config)  # refuses in one line what jsonargparse would take for something else
        return config if is_text(config) else find_config(config)
