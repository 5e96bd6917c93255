"""jsonargparse's accounts of all that it tried, in one line: what was meant, what is wanted, what was given."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import NamedTuple

from lit_sphere.cli.suggestions import did_you_mean


def _has_no_option(option: str, class_path: str, name: str) -> str:
    """A class without this option: the nearest that it has, and where they are listed."""
    from lit_sphere.cli.shipped_classes import option_names  # not for `lit-sphere --help`

    module, _, short = class_path.rpartition(".")
    if name in ("class_path", "init_args"):
        return f"{short}: its options belong under init_args, beside class_path, and nothing else"
    listed = f"{option}.help {short} lists them"
    if not option.startswith(("--trainer.callbacks", "--data")) and option != "--model":
        listed = "--model.help CLASS and --data.help CLASS list them"
    prefix = "" if option.startswith("--trainer.callbacks") else f"{option}."
    known = option_names(getattr(import_module(module), short))
    near = did_you_mean(prefix + name, [prefix + each for each in known])
    return f"{short} has no option {name!r}{near or ';'} {listed}"


def _has_no_option_of_a_class(option: str, match: re.Match[str]) -> str:
    return _has_no_option(option, match["path"], match["name"])


def _classes(option: str) -> str:
    """Short names of the classes that an option takes."""
    from lit_sphere.cli.shipped_classes import shipped_classes  # not for `lit-sphere --help`

    option = "--trainer.callbacks" if option.startswith("--trainer.callbacks") else option
    names = ", ".join(shipped_classes(option))
    if option == "--trainer.callbacks":
        names += ", and those of lightning.pytorch.callbacks"
    elif option == "--model.optimizer":
        names += ", and those of torch.optim, such as torch.optim.SGD"
    return names or "those of import paths such as torch.optim.SGD"


_A_CLASS = "expected a class, or class_path and init_args"


class Example(NamedTuple):
    """A mistake, jsonargparse's account of all that it tried, and what the user sees.

    Args:
        typed: A command line.
        message: What jsonargparse prints for it, and :mod:`lit_sphere.cli.suggestions` adds.
        line: What is left of that, after ``lit-sphere:``.
    """

    typed: str
    message: str
    line: str


class Rewording(NamedTuple):
    """One phrase of jsonargparse's, and ours.

    Args:
        pattern: A regular expression.
        replacement: A template, or a function of the option that was meant and of the match.
        example: Where it is needed.
    """

    pattern: str
    replacement: str | Callable[[str, re.Match[str]], str]
    example: Example


_NO_INT = Example(
    "fit --trainer.max_epochs x",
    'Parser key "trainer.max_epochs": Does not validate against any of the Union subtypes Subtypes: '
    "[<class 'int'>, <class 'NoneType'>] Errors: - Expected a <class 'int'> - Expected a <class 'NoneType'> "
    "Given value type: <class 'str'> Given value: x",
    "--trainer.max_epochs: expected int, got x",
)
_NO_FLOAT = Example(
    "fit --model.elr fast",
    'Parser key "model": Problem with given class_path \'lit_sphere.modules.SIConvNet\': Parser key "elr": Expected a '
    "<class 'float'>. Got value: fast",
    "--model.elr: expected float, got fast",
)
_NO_OPTION = Example(
    "fit --data.bogus 3",
    'Parser key "data": Does not validate against any of the Union subtypes Subtypes: '
    "[<class 'lit_sphere.data.resident.ResidentDataModule'>, <class 'NoneType'>] Errors: - Problem with given "
    "class_path 'lit_sphere.data.Digits': Option 'bogus' is not accepted - Expected a <class 'NoneType'> "
    "Given value type: <class 'jsonargparse._util.NestedArg'> Given value: NestedArg(key='bogus', val='3')",
    "--data: Digits has no option 'bogus'; --data.help Digits lists them",
)
_NO_OPTION_OF_A_CALLBACK = Example(
    "fit --trainer.callbacks+=RegimeMonitor --trainer.callbacks.bogus 3",
    'Parser key "trainer.callbacks": Does not validate against any of the Union subtypes Subtypes: '
    "[list[lightning.pytorch.callbacks.callback.Callback], <class 'lightning.pytorch.callbacks.callback.Callback'>, "
    "<class 'NoneType'>] Errors: - Problem with given class_path 'lit_sphere.callbacks.RegimeMonitor': Option 'bogus' "
    "is not accepted - Problem with given class_path 'lightning.Callback': Option 'bogus' is not accepted - Expected "
    "a <class 'NoneType'> Given value type: <class 'jsonargparse._util.NestedArg'> Given value: "
    "NestedArg(key='bogus', val='3')",
    "--trainer.callbacks: RegimeMonitor has no option 'bogus'; --trainer.callbacks.help RegimeMonitor lists them",
)
_NO_NETWORK = Example(
    "fit --model SphereModule --model.network cli_networks.Nope",
    'Parser key "model": Does not validate against any of the Union subtypes Subtypes: '
    "[<class 'lit_sphere.modules.sphere_module.SphereModule'>, <class 'NoneType'>] Errors: - Problem with given "
    "class_path 'lit_sphere.modules.SphereModule': Parser key \"network\": - Expected a path but cli_networks.Nope "
    "either not accessible or invalid - Problem with given class_path 'cli_networks.Nope': module 'cli_networks' has "
    "no attribute 'Nope' - Expected a <class 'NoneType'> Given value type: <class 'jsonargparse._util.NestedArg'> "
    "Given value: NestedArg(key='network', val='cli_networks.Nope')",
    "--model.network: there is no class 'cli_networks.Nope': module 'cli_networks' has no attribute 'Nope'",
)
_NO_OPTION_OF_AN_OPTIMIZER = Example(
    "fit --model.elr null --model.optimizer SGD --model.optimizer.bogus 3",
    'Parser key "model": Problem with given class_path \'lit_sphere.modules.SIConvNet\': Parser key "optimizer": '
    "- Type "
    "collections.abc.Callable[[collections.abc.Iterable[typing.Any]], torch.optim.optimizer.Optimizer] expects a "
    "function or a callable class: Option 'bogus' is not accepted. Got value: Namespace(class_path='torch.optim.SGD', "
    "init_args=Namespace(bogus='3')) - Expected a <class 'NoneType'>",
    "--model.optimizer: SGD has no option 'bogus'; --model.help CLASS and --data.help CLASS list them",
)
_OUT_OF_RANGE = Example(
    "fit --trainer.callbacks CheckpointSimilarity --trainer.callbacks.keep 1",
    "CheckpointSimilarity: keep must be at least 2, got 1 - Not a valid subclass of Callback Subclass types "
    "expect one of: - a class path (str) - a dict with class_path entry - a dict without class_path but with "
    "init_args entry (class path given previously) - a dict with parameters accepted by the base class (implicit "
    "class_path) - Expected a <class 'NoneType'>",
    "CheckpointSimilarity: keep must be at least 2, got 1",
)
_NO_WORD = Example(
    "fit --monitor.per x",
    "Parser key \"monitor.per\": Expected a typing.Literal['epoch', 'step']. Got value: x",
    "--monitor.per: expected one of 'epoch', 'step', got x",
)
_NO_INIT_ARGS = Example(
    'fit --trainer.callbacks [{"class_path":"RegimeMonitor","keep":1}]',
    'Parser key "trainer.callbacks": - Expected a path but [{"class_path":"RegimeMonitor","keep":1}] '
    "either not accessible or invalid - Does not validate against any of the Union subtypes Subtypes: "
    "[list[lightning.pytorch.callbacks.callback.Callback], <class "
    "'lightning.pytorch.callbacks.callback.Callback'>, <class 'NoneType'>] Errors: - Problem with given "
    "class_path 'lightning.Callback': Option 'class_path' is not accepted - Not a valid subclass of "
    "Callback Subclass types expect one of: - a class path (str) - a dict with class_path entry - a dict "
    "without class_path but with init_args entry (class path given previously) - a dict with parameters "
    "accepted by the base class (implicit class_path) - Expected a <class 'NoneType'> Given value type: "
    "<class 'list'> Given value: [{'class_path': 'RegimeMonitor', 'keep': 1}]",
    "--trainer.callbacks: a callback's options belong under init_args, beside class_path, got "
    "[{'class_path': 'RegimeMonitor', 'keep': 1}]",
)
_NO_CALLBACK = Example(
    "fit --trainer.callbacks [RegimeMonitor,5]",
    'Parser key "trainer.callbacks": - Expected a path but [RegimeMonitor,5] either not accessible or '
    "invalid - Does not validate against any of the Union subtypes Subtypes: "
    "[list[lightning.pytorch.callbacks.callback.Callback], <class "
    "'lightning.pytorch.callbacks.callback.Callback'>, <class 'NoneType'>] Errors: - Not a valid subclass"
    " of Callback. Got value: 5 Subclass types expect one of: - a class path (str) - a dict with "
    "class_path entry - a dict without class_path but with init_args entry (class path given previously) "
    "- a dict with parameters accepted by the base class (implicit class_path) - Not a valid subclass of "
    "Callback Subclass types expect one of: - a class path (str) - a dict with class_path entry - a dict "
    "without class_path but with init_args entry (class path given previously) - a dict with parameters "
    "accepted by the base class (implicit class_path) - Expected a <class 'NoneType'> Given value type: "
    "<class 'list'> Given value: [Namespace(class_path='lit_sphere.callbacks.RegimeMonitor'), 5]",
    "--trainer.callbacks: expected a class, or class_path and init_args, got 5",
)
_NO_SECTION = Example(
    "fit --trainer 5",
    'Parser key "trainer": Unable to load config \'5\' - Parser key "trainer": Unable to load config "5"',
    "--trainer: expected a file of options, or --trainer.OPTION VALUE, got '5'",
)
_NO_RATE = Example(
    "fit --model.elr null --model.optimizer SGD --model.optimizer.lr x",
    'Parser key "model": Does not validate against any of the Union subtypes Subtypes: [<class '
    "'lit_sphere.modules.sphere_module.SphereModule'>, <class 'NoneType'>] Errors: - Problem with given "
    "class_path 'lit_sphere.modules.SIConvNet': Parser key \"optimizer\": Does not validate against any of "
    "the Union subtypes Subtypes: [collections.abc.Callable[[collections.abc.Iterable[typing.Any]], "
    "torch.optim.optimizer.Optimizer], <class 'NoneType'>] Errors: - Type "
    "collections.abc.Callable[[collections.abc.Iterable[typing.Any]], torch.optim.optimizer.Optimizer] "
    'expects a function or a callable class: Parser key "lr": - Expected a path but x either not '
    "accessible or invalid - Does not validate against any of the Union subtypes Subtypes: [<class "
    "'float'>, <class 'torch.Tensor'>] Errors: - Expected a <class 'float'> - Expected a dot import path "
    "string: x Given value type: <class 'str'> Given value: x. Got value: "
    "Namespace(class_path='torch.optim.SGD', init_args=Namespace(lr='x')) - Expected a <class 'NoneType'>"
    " Given value type: <class 'jsonargparse._util.NestedArg'> Given value: NestedArg(key='lr', val='x') "
    "- Expected a <class 'NoneType'> Given value type: <class 'jsonargparse._util.NestedArg'> Given "
    "value: NestedArg(key='optimizer.lr', val='x')",
    "--model.optimizer.lr: expected float, got x",
)

REWORDINGS = (
    Rewording(
        r"Does not validate against any of the Union subtypes Subtypes: \[<class 'float'>, <class 'torch.Tensor'>\] "
        r"Errors: - (Expected a <class 'float'>) - Expected a dot import path string: (\S+) .*",
        r"\1. Got value: \2",
        _NO_RATE,
    ),
    Rewording(
        "argument -c/--config: expected one argument",
        "--config needs the name of a config, e.g. elr.yaml; lit-sphere --help lists them",
        Example(
            "fit --config",
            "argument -c/--config: expected one argument",
            "--config needs the name of a config, e.g. elr.yaml; lit-sphere --help lists them",
        ),
    ),
    Rewording(
        r"Option '[^']+' is not accepted before subcommand '(\w+)'",
        r"\1 comes first: lit-sphere \1 --config …",
        Example(
            "--config elr.yaml fit",
            "Option 'model.init_args.width' is not accepted before subcommand 'fit'",
            "fit comes first: lit-sphere fit --config …",
        ),
    ),
    Rewording(
        r"Subcommand '(\w+)' does not accept option '([^']+)'(; did you mean [^?]+\?)?",
        lambda _, match: (
            f"{match[1]} has no option {match[2]!r}{match[3] or ';'} lit-sphere {match[1]} --help lists them"
        ),
        Example(
            'fit --config {"modle":8}',
            "Subcommand 'fit' does not accept option 'modle'; did you mean model?",
            "fit has no option 'modle'; did you mean model? lit-sphere fit --help lists them",
        ),
    ),
    Rewording(
        ".*Expected a dot import path string: (.+?)(?: - .*|$)",
        lambda option, match: f"there is no class {match[1]!r}; there are {_classes(option)}",
        Example(
            "fit --trainer.logger.help Nope",
            "--trainer.logger.help: Expected a dot import path string: Nope",
            "--trainer.logger: there is no class 'Nope'; there are those of import paths such as torch.optim.SGD",
        ),
    ),
    Rewording(
        r'(Parser key "(\w+)": )Unable to load config (\S+) - \1Unable to load config .*',
        r"expected a file of options, or --\2.OPTION VALUE. Got value: \3",
        _NO_SECTION,
    ),
    Rewording(
        r"the following arguments are required: \w+\.(model|data)",
        r"no \1 is given: name a class, --\1 CLASS, or take a config that does, --config elr.yaml",
        Example(
            "fit --config {}",
            "the following arguments are required: fit.model",
            "no model is given: name a class, --model CLASS, or take a config that does, --config elr.yaml",
        ),
    ),
    # What was tried in vain, beside what the user meant.
    Rewording("(- )?Expected a path but .*? either not accessible or invalid", "", _NO_NETWORK),
    Rewording("Does not validate against any of the Union subtypes Subtypes: .*? Errors:", "", _NO_INT),
    Rewording("- Expected an? <class 'NoneType'>", "", _NO_INT),
    Rewording(
        r"Not a valid subclass of \w+\. (Got value: .*?) Subclass types expect one of: .*?\(implicit class_path\)",
        rf"{_A_CLASS}. \1",
        _NO_CALLBACK,
    ),
    Rewording(
        r"- Not a valid subclass of \w+ Subclass types expect one of: .*?\(implicit class_path\)", "", _OUT_OF_RANGE
    ),
    Rewording(
        "Problem with given class_path 'lightning.Callback': Option 'class_path' is not accepted",
        "a callback's options belong under init_args, beside class_path",
        _NO_INIT_ARGS,
    ),
    Rewording(
        "- Problem with given class_path 'lightning.Callback': Option '[^']+' is not accepted",
        "",
        _NO_OPTION_OF_A_CALLBACK,
    ),
    # What the user meant.
    Rewording(
        r"Type [^<]*? expects a function or a callable class: Option '(?P<name>[^']+)' is not accepted\. "
        r"Got value: Namespace\(class_path='(?P<path>[\w.]+)'.*?\)\)",
        _has_no_option_of_a_class,
        _NO_OPTION_OF_AN_OPTIMIZER,
    ),
    Rewording(r"Type [^<]*? expects a function or a callable class:", "", _NO_RATE),
    Rewording(
        r"Problem with given class_path '(?P<path>[\w.]+)': Option '(?P<name>[^']+)' is not accepted",
        _has_no_option_of_a_class,
        _NO_OPTION,
    ),
    Rewording(
        r"Problem with given class_path ('[\w.]+'):(?= (module|No module) )", r"there is no class \1:", _NO_NETWORK
    ),
    Rewording(
        r"Problem with given class_path '[\w.]*?(\w+)':(?= the following arguments are required)",
        r"\1:",
        Example(
            "fit --model SphereModule",
            "Parser key \"model\": Problem with given class_path 'lit_sphere.modules.SphereModule': the following "
            "arguments are required: network",
            "--model: SphereModule: the following arguments are required: network",
        ),
    ),
    Rewording(r"Problem with given class_path '[\w.]+':", "", _NO_FLOAT),
    Rewording(r'Parser key "[^"]+"( element \d+)?:', "", _NO_INT),
    Rewording(r"Expected (?:a )?<class '(?:\w+\.)*(\w+)'>", r"expected \1", _NO_INT),
    Rewording(r"Expected (?:a )?typing\.Literal\[(.*?)\]", r"expected one of \1", _NO_WORD),
    # What was given, if it can be read.
    Rewording(
        r"Given value type: <class '[^']+'> Given value: \[?(Namespace|NestedArg)\(.*?(?= Given value| - |$)",
        "",
        _NO_OPTION,
    ),
    Rewording(
        r"\s*Given value type: <class '[^']+'> Given value: (.*?)(?=\s+Given value|\s+- |\s*$)", r", got \1", _NO_INT
    ),
    Rewording(r"\. Got value: ", ", got ", _NO_WORD),
    Rewording(
        r"expected float, got ([ .+-]*(?i:nan|inf))\b",
        r"expected a finite number, got \1",
        Example(
            "toy --lr nan",
            "Parser key \"lr\": Expected a <class 'float'>. Got value: nan",
            "--lr: expected a finite number, got nan",
        ),
    ),
)


def in_one_line(message: str, rewordings: Sequence[Rewording] = REWORDINGS) -> str:
    """Shorten jsonargparse's account of all types that it tried to the option, what it wants and what it got.

    Args:
        message: An error of jsonargparse.
        rewordings: Applied in this order.

    Returns:
        One line.
    """
    text = " ".join(message.split())
    keys, wants_help = re.findall(r'Parser key "([^"]+)"', text), re.match(r"(--[\w.]+)\.help: ", text)
    option = "--" + ".".join(dict.fromkeys(keys)) if keys else wants_help[1] if wants_help else ""
    for pattern, replacement, _ in rewordings:
        text = re.sub(pattern, partial(replacement, option) if callable(replacement) else replacement, text)
    parts = [re.sub("^-(?=,|$)", "", part.strip(" :")) for part in re.split(r"(?:^|\s)- ", text)]
    reasons = [part for part in dict.fromkeys(parts) if part]
    if len(reasons) > 1:  # a list is expected, too, where one value was taken for one
        reasons = [part for part in reasons if part not in ("expected list", "expected Iterable")]
    reason = " or ".join(reasons).replace(" or expected ", " or ")
    given = list(re.finditer(r" ?, got .*?(?=$| or | ?, got )", reason))
    if len(given) > 1:  # as it was typed, and as it was read
        reason = re.sub(r" ?, got .*?(?=$| or | ?, got )", "", reason) + given[0][0]
    if not reason or reason.startswith(","):
        reason = _A_CLASS + reason
    return f"{option}: {reason}" if option else reason
