"""The Lightning CLI of lit-sphere: one run folder, default callbacks, and what is typed wins."""

import logging
import os
import warnings
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from lightning import __version__ as lightning_version
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch.optim import Optimizer

from lit_sphere.analysis import epochs_done
from lit_sphere.callbacks import (
    EffectiveLearningRateMonitor,
    GracefulStop,
    Interrupted,
    RunCheckpoint,
    RunProgressBar,
    RunSummary,
    StopOnNonFinite,
)
from lit_sphere.cli.base_config import arguments_below, look_ahead, parse_over_base
from lit_sphere.cli.checkpoints import (
    CKPT_WEIGHTS,
    BeginAtWeights,
    check_loadable,
    check_resumable,
    check_something_to_train,
    check_states,
    check_weights,
    read_checkpoint,
    unrestorable,
)
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.metrics_file import read_history
from lit_sphere.cli.old_names import drop_old_names, rename_arguments
from lit_sphere.cli.parser import ConfigFile, Parser
from lit_sphere.cli.processes import Processes, check_environment, check_processes
from lit_sphere.cli.run_folder import (
    RecordRun,
    forget_run_folder,
    goes_on_in,
    hold_checkpoint_folder,
    make_loggers,
    run_folder,
)
from lit_sphere.cli.shipped_classes import LINKED, class_options, classes_before_files
from lit_sphere.cli.streams import warnings_in_one_line
from lit_sphere.cli.subcommands import SUBCOMMANDS
from lit_sphere.cli.suggestions import option_strings, suggesting
from lit_sphere.cli.trainer_options import (
    check_monitored,
    check_something_to_measure,
    check_trainer_options,
    not_installed,
)
from lit_sphere.cli.values_given import check_linked, check_no_null, check_values
from lit_sphere.cli.wandb_run import WandbMode, check_given_wandb
from lit_sphere.data import ResidentDataModule
from lit_sphere.modules import SphereModule
from lit_sphere.modules.lightning_options import check_trainer
from lit_sphere.observe.publishing import ChecksRun, PlannedRun
from lit_sphere.observe.stopping import is_finding
from lit_sphere.switching.resume import stays_switched

# Defaults of some of Lightning's callbacks, which config.yaml holds by their values.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))

_TRAINER_DEFAULTS = {
    "max_epochs": 100,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    # The data modules give each rank its share themselves, so that a resumed run repeats it.
    "use_distributed_sampler": False,
}
NonFiniteIs = Literal["error", "finding"]
DESCRIPTIONS = {name: SUBCOMMANDS[name].description for name in ("fit", "validate", "test")}


class SphereCLI(LightningCLI):
    """``fit``, ``validate`` and ``test`` with lit-sphere's models, data and run folder."""

    weights: dict[str, Any] | None = None

    def __init__(self, args: list[str], processes: Processes | None = None) -> None:
        self._processes = processes or Processes()
        quiet: dict[str, Any] = {"allow_abbrev": False, "exit_on_error": False}
        self._commands = args[:1] if args and args[0] in DESCRIPTIONS else list(DESCRIPTIONS)  # each parser takes time
        commands = {
            name: {**quiet, "usage": f"lit-sphere {name} [--config NAME] [options]", "description": DESCRIPTIONS[name]}
            for name in self._commands
        }
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "lit-sphere", **quiet, **commands},
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Name the subcommands that have a parser, and the arguments of the trainer's methods that are no options.

        Returns:
            Arguments to skip by subcommand.
        """
        inherited = LightningCLI.subcommands()
        return {name: inherited[name] for name in self._commands}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser, with our ``--config``.

        Args:
            **kwargs: Of the parser.

        Returns:
            The parser.
        """
        parser = Parser(dump_header=[f"lightning.pytorch=={lightning_version}"], **kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="Path of a YAML file, or name of a shipped one.")
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add model and data before the trainer, whose options fill pages.

        Args:
            parser: Of one subcommand.
        """
        parser.add_lightning_class_args(SphereModule, "model", subclass_mode=True)
        parser.add_lightning_class_args(ResidentDataModule, "data", subclass_mode=True)
        parser.set_defaults({"data": {"class_path": "lit_sphere.data.Digits"}})
        self._add_run_arguments(parser)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in _TRAINER_DEFAULTS.items()})

    def _add_run_arguments(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Folder of the run; must not hold another one. Default: runs/CONFIG-DATE-TIME.",
        )
        parser.add_argument(
            "--wandb",
            type=WandbMode | None,
            default=None,
            help="W&B mode: offline (no account, no network), online or disabled. Default: WANDB_MODE, or offline.",
        )
        parser.add_argument(
            CKPT_WEIGHTS,
            type=str | None,
            default=None,
            help="Checkpoint of another run: a new run begins at its weights, buffers and radius, with the model and "
            "data of that run where nothing else is given.",
        )
        parser.add_argument("--project", type=str, default="lit-sphere", help="W&B project.")
        parser.add_argument(
            "--non_finite",
            type=NonFiniteIs,
            default="error",
            help="What it is that loss or gradients become NaN or infinite: an error, which ends the command with "
            "status 1, or the finding that the run diverges, as at a learning rate too high for the whole space, which "
            "ends it with status 0, its summary, tables and pictures whole.",
        )
        parser.add_lightning_class_args(EffectiveLearningRateMonitor, "monitor")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def option_names(self) -> dict[str, list[str]]:
        """List the options of each subcommand's parser.

        Returns:
            Option strings, such as ``--trainer.max_epochs``, by subcommand.
        """
        return {name: option_strings(self._parser(name)) for name in self.subcommands()}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; without Lightning's warning that arguments were given from Python."""
        assert isinstance(args, list)
        check_values(args[1:])
        args = [args[0], *classes_before_files(rename_arguments(args[1:]))]
        below = arguments_below(args[0], args[1:]) if args[0] in DESCRIPTIONS else []
        typed = look_ahead(args[1:])
        with suggesting(lambda: self._known_options(args[0])):
            self.config: Namespace = parse_over_base(
                parser.parse_args, args[:1], below, args[1:], typed.ckpt_path or typed.ckpt_weights
            )
        config = self.config[args[0]]
        check_trainer_options(config)
        check_no_null(config)
        check_linked(args[1:], config)

    def _known_options(self, subcommand: str) -> list[str]:
        if subcommand not in DESCRIPTIONS:
            return []
        return [*option_strings(self._parser(subcommand)), *class_options()]

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyperparameters over what the user typed; here they lie
        # under it, see `arguments_below`.
        pass

    def before_instantiate_classes(self) -> None:
        """Read the checkpoint and choose the folder, before anything is made."""
        config = self.config[str(self.subcommand)]
        check_environment(config.trainer.devices, config.trainer.num_nodes)
        self.checkpoint = read_checkpoint(config.ckpt_path) if config.get("ckpt_path") else None
        if self.subcommand != "fit":
            check_something_to_measure(config, str(self.subcommand))
        if self.checkpoint is None and self.subcommand != "fit":
            raise CommandLineError(f"{self.subcommand} needs a checkpoint: --ckpt_path runs/NAME/checkpoints/last.ckpt")
        if self.checkpoint is not None:
            (check_resumable if self.subcommand == "fit" else check_loadable)(self.checkpoint, config.ckpt_path)
        if self.subcommand == "fit":
            check_something_to_train(self.checkpoint, config)
            if config.ckpt_weights is not None:
                config.ckpt_weights = str(
                    Path(config.ckpt_weights).resolve()
                )  # also where config.yaml is used elsewhere
                if self.checkpoint is None:
                    self.weights = read_checkpoint(config.ckpt_weights, CKPT_WEIGHTS)
                    check_states(self.weights, config.ckpt_weights, CKPT_WEIGHTS)
            files = [file for file in config.get("config") or [] if file is not None]  # not the text of a config
            path = Path(str(files[-1])) if files else Path("run")
            name = path.stem if path.stem != "config" else path.resolve().parent.name  # of the run that goes on
            self.folder = run_folder(config.run, name, config.ckpt_path, _is_first_rank())
            if config.checkpoint.dirpath is None:
                config.checkpoint.dirpath = str(self.folder / "checkpoints")
            elif _is_first_rank():
                hold_checkpoint_folder(Path(config.checkpoint.dirpath), config.ckpt_path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's loggers and callbacks to the user's.

        Args:
            **kwargs: More arguments of the trainer.

        Returns:
            The trainer.

        Raises:
            CommandLineError: If an option needs a package that is not installed, or nothing can be trained.
        """  # noqa: DOC501, DOC502
        config = self.config[str(self.subcommand)]
        for checkpoint in (self.checkpoint, self.weights):
            if checkpoint is not None:
                self.model.restore_structure(checkpoint)
        if self.checkpoint is not None:
            check_weights(self.checkpoint, self.model, config.ckpt_path)
        if self.weights is not None:
            check_weights(self.weights, self.model, config.ckpt_weights, CKPT_WEIGHTS)
        trainer = self.config_init[str(self.subcommand)].trainer
        given = trainer.callbacks or []
        given = given if isinstance(given, list) else [given]
        if self.subcommand == "fit":
            on_sphere = self.model.elr is not None
            check_trainer(given, trainer.gradient_clip_val, trainer.accumulate_grad_batches, on_sphere)
        callbacks: list[Callback] = [RunProgressBar()] if trainer.enable_progress_bar is not False else []
        if self.subcommand == "fit":
            text, has_own_loggers = self._config_text(), trainer.logger in (None, True)
            if has_own_loggers:
                kwargs["logger"] = False  # until the trainer is found sound
            record = self._record(text) if trainer.logger is not False else []
            # RecordRun ends the W&B run: after RunSummary has sent it the picture.
            stop = StopOnNonFinite(is_finding=config.non_finite == "finding")
            callbacks += [stop, RunSummary(self.folder), *record]
            callbacks += [GracefulStop(self.folder / "checkpoints"), *self._begin_at()]
            if self.checkpoint is not None:
                callbacks += stays_switched(self.checkpoint, given)
        else:
            kwargs["logger"] = False
            # States of callbacks that watch a fit: an evaluation needs none of them.
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        try:
            made = super().instantiate_trainer(**kwargs)
        except ImportError as error:
            raise not_installed(error, config) from error
        check_processes(made)
        if self.subcommand == "fit":
            self._check_before_loggers(made)
            if has_own_loggers:
                made.loggers = make_loggers(self.folder, config.wandb, config.project, yaml.safe_load(text))
        self._processes.oversee(made, Path(config.checkpoint.dirpath) if self.subcommand == "fit" else None)
        return made

    def _check_before_loggers(self, trainer: Trainer) -> None:
        """Refuse what Lightning would find out once the run's loggers have begun."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and _is_first_rank():
                check_given_wandb(logger)
        check_monitored(trainer.callbacks, self.model)  # type: ignore[attr-defined]
        data = self.datamodule
        if isinstance(data, ResidentDataModule) and not getattr(data, "download", False):
            data.setup("fit")  # once: what is read is kept
        self.model.check_trainable(data, trainer.max_epochs)
        self._ask_callbacks(trainer)

    def _ask_callbacks(self, trainer: Trainer) -> None:
        """Let callbacks refuse what they cannot watch, as they would when the run has begun."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        run = PlannedRun(trainer, self.model, self.datamodule, self._make_optimizers)
        for callback in callbacks:
            if isinstance(callback, ChecksRun):
                callback.check_run(run)

    def _make_optimizers(self) -> list[Optimizer]:
        made = self.model.configure_optimizers()
        return list(made[0]) if isinstance(made, tuple) else [made]

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; errors that Lightning wraps in many words are told in few."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if is_finding(error):
                return
            path = self.config[subcommand].get("ckpt_path")
            told = unrestorable(error, path, subcommand == "fit") if path else None
            if told is None:
                raise
            raise told from error

    def _begin_at(self) -> list[Callback]:
        if self.weights is None:
            return []
        path = self.config["fit"].ckpt_weights
        self.model.load_state_dict(self.weights["state_dict"])
        return [BeginAtWeights(path, self.weights)]

    def _config_text(self) -> str:
        """What config.yaml is to hold: a run that is repeated from it chooses its folder anew."""
        config = self.config["fit"].clone()
        config.run = config.checkpoint.dirpath = None
        drop_old_names(config)
        if self._is_in_place():
            config.ckpt_path = None  # the run repeated from its start passes the checkpoint by itself
        text: str = self._parser("fit").dump(config, skip_none=False)
        return text

    def _record(self, text: str) -> list[Callback]:
        history, steps = None, 0 if self.checkpoint is None else self.checkpoint["global_step"]
        if self._is_in_place() and _is_first_rank():
            table = self.folder / "metrics.csv"
            history = read_history(table, steps)
            if (history is None or not history.rows) and epochs_done(self.checkpoint or {}):
                rank_zero_info(f"{table} holds no row of the run so far: only new ones will be in it")
        return [RecordRun(self.folder, text, history, steps)]

    def _is_in_place(self) -> bool:
        ckpt_path = self.config[str(self.subcommand)].get("ckpt_path")
        return goes_on_in(self.folder, ckpt_path)


def _is_first_rank() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def run(args: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test``.

    Args:
        args: Command line, the subcommand first.
    """
    _quiet_lightning()
    processes, is_success = Processes(), True
    try:
        with warnings_in_one_line():
            SphereCLI(args, processes)
    except BaseException as error:
        is_success = isinstance(error, Interrupted)
        shown = processes.ended_by(error)
        if shown is error:
            raise
        raise shown from error
    finally:
        processes.end(is_success)
        forget_run_folder()


def _quiet_lightning() -> None:
    """Keep what concerns the user: not which accelerators are absent, nor what Lightning advertises."""
    noise = (
        "GPU available: False",
        "TPU available",
        "HPU available",
        "💡 Tip",
        "`Trainer.fit` stopped: `max_",
        "Seed set",
        "Restoring states from the checkpoint",  # it says so again when they are restored
        f"{'-' * 100}\ndistributed_backend=",
    )
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(noise)
    )
    logging.getLogger("lightning.fabric.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(noise)
    )
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    # The folder is ours: config.yaml and checkpoints stand in it before the CSV logger opens.
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: not record.getMessage().startswith("`weights_only` was not set")
    )
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    # The device among the options of StochasticWeightAveraging.
    warnings.filterwarnings("ignore", message=r"\s*Unable to serialize instance")
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="You called `self.log.* but have no logger")  # --trainer.logger false
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
