"""jsonargparse's messages in one line: each row of the table by its example, and by what the parser really says."""

from pathlib import Path

import pytest
from conftest import LitSphere

from lit_sphere.cli import errors
from lit_sphere.cli.rewordings import REWORDINGS, Example, Rewording, in_one_line

_EXAMPLES = list(dict.fromkeys(rewording.example for rewording in REWORDINGS))


def _without(rewording: Rewording) -> list[Rewording]:
    return [each for each in REWORDINGS if each is not rewording]


@pytest.mark.parametrize("rewording", REWORDINGS, ids=lambda rewording: rewording.pattern)
def test_each_row_makes_its_example_the_line(rewording: Rewording) -> None:
    example = rewording.example
    assert in_one_line(example.message) == example.line
    assert in_one_line(example.message, _without(rewording)) != example.line, "the row is not needed"


@pytest.mark.parametrize("example", _EXAMPLES, ids=lambda example: example.typed)
def test_jsonargparse_words_it_so(
    example: Example, empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where another version of jsonargparse words a mistake otherwise."""
    said: list[str] = []

    def listen(message: str) -> str:
        said.append(message)
        return in_one_line(message)

    monkeypatch.setattr(errors, "in_one_line", listen)
    result = lit_sphere(*example.typed.split())
    assert result.status == 2
    assert result.err == f"lit-sphere: {example.line}\n"
    (message,) = said
    for rewording in REWORDINGS:
        if rewording.example is example:
            assert in_one_line(message, _without(rewording)) != example.line, f"{rewording.pattern} is not needed"
    assert not any(empty_folder.iterdir())
