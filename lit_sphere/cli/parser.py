"""What our parsers do beside Lightning's: shipped configs by name, and a short help."""

import re
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser

from lit_sphere.cli.config_names import find_config, is_text, read_config


class Parser(LightningArgumentParser):
    """A parser whose help leaves out the dozens of classes that Lightning would accept."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Give the help without those classes."""
        text: str = super().format_help(*args, **kwargs)
        return re.sub(r",\s+known\s+subclasses:[^)]*?lightning[^)]*", "", text)


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
