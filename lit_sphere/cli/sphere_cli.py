"""The Lightning CLI of lit-sphere: one run folder, default callbacks, and what is typed wins."""

import logging
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import lit_sphere.data
import lit_sphere.modules  # noqa: F401  (makes the short class names known)
from lit_sphere.callbacks import (
    EffectiveLearningRateMonitor,
    GracefulStop,
    RunProgressBar,
    RunSummary,
    StopOnNonFinite,
)
from lit_sphere.cli.checkpoints import base_config, check_architecture, checkpoint_of, read_checkpoint
from lit_sphere.cli.config_names import replace_config_names
from lit_sphere.cli.run_folder import RecordRun, WandbMode, make_loggers, run_folder, take_history

_TRAINER_DEFAULTS = {
    "max_epochs": 100,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    # The data modules give each rank its share themselves, so that a resumed run repeats it.
    "use_distributed_sampler": False,
}
_CHECKPOINT_DEFAULTS = {
    "checkpoint.save_last": True,
    "checkpoint.save_top_k": 0,
    "checkpoint.every_n_epochs": 1,
}


class SphereCLI(LightningCLI):
    """``fit``, ``validate`` and ``test`` with lit-sphere's models, data and run folder."""

    def __init__(self, args: list[str]) -> None:
        quiet: dict[str, Any] = {"allow_abbrev": False, "exit_on_error": False}
        commands = {
            name: {**quiet, "usage": f"lit-sphere {name} --config NAME [options]"} for name in self.subcommands()
        }
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_kwargs={"prog": "lit-sphere", **quiet, **commands},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name the subcommands, and the arguments of the trainer's methods that are no options.

        Returns:
            Arguments to skip by subcommand.
        """
        inherited = LightningCLI.subcommands()
        return {name: inherited[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run, and tell the model what the data look like.

        Args:
            parser: Of one subcommand.
        """
        parser.add_argument(
            "--run", type=str | None, default=None,
            help="Folder of the run; must not hold another one. Default: runs/CONFIG-DATE-TIME.",
        )
        parser.add_argument(
            "--wandb", type=WandbMode | None, default=None,
            help="W&B mode: offline (no account, no network), online or disabled. Default: WANDB_MODE, or offline.",
        )
        parser.add_argument("--project", type=str, default="lit-sphere", help="W&B project.")
        parser.add_lightning_class_args(EffectiveLearningRateMonitor, "monitor")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(_CHECKPOINT_DEFAULTS)
        for name in ("num_classes", "in_channels"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; without Lightning's warning that arguments were given from Python."""
        self.config: Namespace = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyperparameters over what the user typed; here they are
        # the base of the configuration, see `run`.
        pass

    def before_instantiate_classes(self) -> None:
        """Read the checkpoint and choose the folder, before anything is made."""
        config = self.config[self.subcommand]
        self.checkpoint = read_checkpoint(config.ckpt_path) if config.get("ckpt_path") else None
        if self.subcommand == "fit":
            name = Path(str(config.config[-1])).stem if config.get("config") else "run"
            self.folder = run_folder(config.run, name, config.ckpt_path, rank_zero_only.rank == 0)
            if config.checkpoint.dirpath is None:
                config.checkpoint.dirpath = str(self.folder / "checkpoints")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's loggers and callbacks to the user's.

        Args:
            **kwargs: More arguments of the trainer.

        Returns:
            The trainer.
        """
        if self.checkpoint is not None:
            check_architecture(self.checkpoint, self.model, self.config[self.subcommand].ckpt_path)
        trainer = self.config_init[self.subcommand].trainer
        callbacks: list[Callback] = [RunProgressBar()] if trainer.enable_progress_bar is not False else []
        if self.subcommand == "fit":
            callbacks += self._record(kwargs)
            callbacks += [StopOnNonFinite(), RunSummary(self.folder), GracefulStop(self.folder / "checkpoints")]
        else:
            kwargs["logger"] = False
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        return super().instantiate_trainer(**kwargs)

    def _record(self, kwargs: dict[str, Any]) -> list[Callback]:
        config = self.config[self.subcommand].clone()
        config.run = config.checkpoint.dirpath = None
        text = self._parser(self.subcommand).dump(config, skip_none=False)
        asked = config.trainer.logger
        if asked in (None, True):
            kwargs["logger"] = make_loggers(self.folder, config.wandb, config.project, yaml.safe_load(text))
        in_place = self.checkpoint is not None and rank_zero_only.rank == 0
        history = take_history(self.folder, self.checkpoint["global_step"]) if in_place else []
        return [RecordRun(self.folder, text, history)] if asked is not False else []


def run(args: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test``.

    Without ``--config``, ``fit`` takes elr.yaml, and a checkpoint its run's config.yaml (or, where that is
    missing, its own hyperparameters); everything typed comes after it and wins.

    Args:
        args: Command line, the subcommand first.
    """
    _quiet_lightning()
    args = replace_config_names(args)
    if not {"-h", "--help"} & set(args) and not any(".help" in arg for arg in args):
        has_config = any(arg.partition("=")[0] in ("--config", "-c") for arg in args)
        base = base_config(checkpoint_of(args), has_config)
        args[1:1] = ["--config", base] if base else []
    SphereCLI(args)


def _quiet_lightning() -> None:
    """Keep what concerns the user: not which accelerators are absent, nor what Lightning advertises."""
    noise = ("GPU available: False", "TPU available", "HPU available", "💡 Tip", "`Trainer.fit` stopped", "Seed set")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(noise)
    )
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    # The folder is ours: config.yaml and checkpoints stand in it before the CSV logger opens.
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
