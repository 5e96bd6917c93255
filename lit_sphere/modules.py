"""LightningModules that train a network on the sphere, or in the whole space for comparison."""

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import Metric

from lit_sphere.groups import Group, find_groups
from lit_sphere.networks import ConvNet, ResNet18
from lit_sphere.optim import SphereSGD

Loss = Literal["cross_entropy", "mse"]
Spheres = Literal["joint", "group", "filter"]
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]


class SphereModule(LightningModule):
    """Classification by any network, its scale-invariant parameters on the sphere.

    With ``elr`` set, :class:`~lit_sphere.optim.SphereSGD` trains the scale-invariant parameters, which
    :func:`~lit_sphere.groups.find_groups` finds, on one joint sphere with a fixed effective learning rate
    (TR eq. (2)); otherwise ``optimizer`` trains all parameters in the whole space.

    Logged once an epoch: ``train/loss`` and ``train/error`` (means over the training steps, as the weights
    move), ``val/…`` and ``test/…`` in eval mode. Errors are fractions in [0, 1].

    Args:
        network: Maps a batch of inputs to logits (N, num_classes).
        elr: Effective learning rate η̃ > 0 of the sphere (dimensionless). None: train in the whole space.
        spheres: ``joint``: one sphere for all scale-invariant parameters (the papers' setting). ``group``: one
            for each scale-invariant group; ``filter``: one for each filter, where filters are scale-invariant.
            All have the same ``elr``.
        lr: Learning rate of plain SGD for trainable parameters that are not scale-invariant. None: such
            parameters are refused when ``elr`` is set.
        optimizer: Optimizer of the whole space when ``elr`` is not set, e.g. ``torch.optim.SGD`` with
            ``lr`` and ``weight_decay``.
        loss: ``cross_entropy``, or ``mse``: mean over samples and classes of (output − one-hot)² (KT).
        num_classes: Classes.
        input_shape: Channels, height and width of one input, for the search of scale-invariant groups.
        compile: Compile the network in place with ``torch.compile`` (needs a C++ compiler on a CPU).

    Raises:
        ValueError: If both ``elr`` and ``optimizer`` are given, if ``elr`` or ``lr`` is not
            positive and finite, or ``loss`` or ``spheres`` unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        elr: float | None = None,
        spheres: Spheres = "joint",
        lr: float | None = None,
        optimizer: OptimizerCallable | None = None,
        loss: Loss = "cross_entropy",
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        compile: bool = False,
    ) -> None:
        super().__init__()
        _check_training_options(elr, lr, spheres, optimizer, loss)
        if type(self) is SphereModule:
            self.save_hyperparameters(logger=False, ignore=_unsaved("network", "optimizer"))
        self.automatic_optimization = False
        # Faster convolutions on CPUs and tensor cores; images come in this layout too.
        self.network = network.to(memory_format=torch.channels_last)
        self.elr, self.lr, self.spheres = elr, lr, spheres
        self.loss, self.num_classes = loss, num_classes
        self.example_input_array = torch.zeros(2, *input_shape)
        self._optimizer = optimizer
        self._compile = compile
        self._sphere_names: list[list[str]] = []  # parameters of each sphere
        self._changed: dict[str, tuple[Any, Any]] = {}
        self._metrics_epoch = -1  # Lightning does not always end an epoch whose last batch was saved
        self.train_metrics = _LossAndError()
        self.val_metrics = _LossAndError()
        self.test_metrics = _LossAndError()

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (N, …) to logits (N, num_classes)."""
        logits: Tensor = self.network(x)
        return logits

    def setup(self, stage: str) -> None:
        """Find what is scale-invariant, for training on the sphere, and compile the network if asked to.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ValueError: If neither ``elr`` nor ``optimizer`` is given, if trainable parameters are not
                scale-invariant and ``lr`` is not given, if ``spheres`` asks for filters that are not
                scale-invariant, or if the strategy shards parameters.
        """
        if stage != "fit":
            return
        if self.elr is not None:
            if isinstance(self.trainer.strategy, FSDPStrategy):
                raise ValueError("FSDP1 would normalise each shard by itself; use --trainer.strategy ddp")
            self._find_sphere()
        elif self._optimizer is None:
            raise ValueError(
                "neither elr nor optimizer is given: --model.elr trains on the sphere, --model.optimizer SGD "
                "--model.optimizer.lr … in the whole space"
            )
        if self._compile:
            self.network.compile()

    def _find_sphere(self) -> None:
        assert isinstance(self.example_input_array, Tensor)
        groups = find_groups(self.network, self.example_input_array, "filter" if self.spheres == "filter" else "tensor")
        if self.spheres == "filter":
            whole = [group for group in groups if sum(_filters(group, p) for p in group.parameters) > 1]
            if whole:
                raise ValueError(
                    f"spheres filter: {whole[0].name} is scale-invariant only as a whole, no filter by itself; take "
                    "--model.spheres group or joint"
                )
        names = list(dict.fromkeys(name for group in groups for name in group.names))
        self._sphere_names = [list(group.names) for group in groups] if self.spheres == "group" else [names]
        trainable = [name for name, p in self.network.named_parameters() if p.requires_grad]
        others = sorted(set(trainable) - set(names))
        if others and self.lr is None:
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            raise ValueError(
                f"{len(others)} of {len(trainable)} trainable tensors are not scale-invariant ({shown}): give lr "
                "(--model.lr) to train them by plain SGD, or freeze them"
            )

    def configure_optimizers(self) -> Optimizer:
        """Make one optimizer: a sphere and, with ``lr``, plain SGD for the rest; or the one asked for.

        Returns:
            The optimizer.

        Raises:
            RuntimeError: If ``setup("fit")`` has not been called.
        """
        trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        if self.elr is None:
            assert self._optimizer is not None
            return self._optimizer(trainable.values())
        if not self._sphere_names:
            raise RuntimeError("configure_optimizers was called before setup('fit'), which finds the sphere")
        kind = "filter" if self.spheres == "filter" else "joint"
        groups: list[dict[str, Any]] = [
            {"params": [trainable.pop(name) for name in names], "spheres": kind} for names in self._sphere_names
        ]
        if trainable:
            groups.append({"params": list(trainable.values()), "elr": None, "lr": self.lr})
        return SphereSGD(groups, elr=self.elr)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Take one step of manual optimisation.

        Args:
            batch: Inputs (N, …) and labels (N,).
            batch_idx: Index in the epoch; unused.

        Returns:
            ``loss``, detached.
        """
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        logits, labels = self(batch[0]), batch[1]
        loss = self.criterion(logits, labels)
        self.manual_backward(loss)
        optimizer.step()
        if self._metrics_epoch != self.current_epoch:
            self._metrics_epoch = self.current_epoch
            self.train_metrics.reset()
        self.train_metrics.update(loss.detach(), logits.detach(), labels)
        return {"loss": loss.detach()}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to ``val/loss`` and ``val/error``."""
        self._evaluate(self.val_metrics, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to ``test/loss`` and ``test/error``."""
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: "_LossAndError", batch: tuple[Tensor, Tensor]) -> None:
        logits, labels = self(batch[0]), batch[1]
        metrics.update(self.criterion(logits, labels), logits, labels)

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the loss of a batch; callbacks that evaluate the network elsewhere look for it under this name.

        Args:
            logits: Outputs of the network, shape (N, num_classes).
            labels: Classes, shape (N,).

        Returns:
            The mean loss over the batch, a scalar.
        """
        if self.loss == "cross_entropy":
            return F.cross_entropy(logits, labels)
        return F.mse_loss(logits, F.one_hot(labels, self.num_classes).to(logits.dtype))

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        self._log("train", self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log loss and error of the validation images."""
        self._log("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss and error of the test images."""
        self._log("test", self.test_metrics)

    def _log(self, stage: str, metrics: "_LossAndError") -> None:
        # torchmetrics has reduced over the ranks: to average equal values changes nothing but Lightning's mind.
        # The batch size is a weight in Lightning's mean of this one value, and would cost a rounding.
        values = {f"{stage}/{name}": value for name, value in metrics.compute().items()}
        self.log_dict(values, sync_dist=True, batch_size=1)
        metrics.reset()

    def on_validation_start(self) -> None:
        """Give all ranks rank 0's batch norm statistics, which the checkpoints hold."""
        self._broadcast_buffers()

    def on_test_start(self) -> None:
        """Give all ranks rank 0's batch norm statistics, which the checkpoints hold."""
        self._broadcast_buffers()

    def _broadcast_buffers(self) -> None:
        if dist.is_available() and dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running means of an unfinished epoch (rank 0's)."""
        checkpoint["train_metrics"] = {"epoch": self._metrics_epoch, **self.train_metrics.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the running means, and note which options differ from the checkpoint's."""
        if "train_metrics" in checkpoint:
            self.train_metrics.load_state(checkpoint["train_metrics"])
            self._metrics_epoch = checkpoint["train_metrics"]["epoch"]
        saved = _optimizer_options(checkpoint.get("hyper_parameters", {}))
        given = _optimizer_options(dict(self.hparams))
        self._changed = {
            key: (saved[key], value) for key, value in given.items() if key in saved and saved[key] != value
        }

    def on_train_start(self) -> None:
        """Apply the options that differ from a resumed checkpoint's: its optimizer state has brought back the old."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for key, (old, new) in self._changed.items():
            for group in optimizer.param_groups:
                if group.get(key) is not None:
                    group[key] = new
            rank_zero_info(f"{key}: {old} in the checkpoint, {new} from now on")
        self._changed = {}


class _LossAndError(Metric):
    """Mean loss over samples and fraction of wrong predictions, without host synchronisation."""

    loss_sum: Tensor
    wrong: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "wrong", "count"):
            self.add_state(name, default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss_sum += loss * len(labels)
        self.wrong += (logits.argmax(1) != labels).sum()
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        return {"loss": self.loss_sum / self.count, "error": self.wrong / self.count}

    def state(self) -> dict[str, Any]:
        return dict(self.metric_state)

    def load_state(self, state: dict[str, Any]) -> None:
        for name in self.metric_state:
            setattr(self, name, state[name].to(self.device))


class _SIModule(SphereModule):
    """A scale-invariant network of the papers with flat options.

    Args:
        width: Channels of the first convolution; 32 or 64 in the papers, 8 for digits.
        num_classes: Classes; taken from the data on the command line.
        in_channels: Channels of the images; taken from the data on the command line.
        head_norm: Frobenius norm of the frozen head.
        eps: Added to the variance by the batch norms.
        **training: Options of :class:`SphereModule`: ``elr``, ``spheres``, ``optimizer``, ``loss``, ``compile``.
    """

    network_class: ClassVar[type[ConvNet] | type[ResNet18]]

    def __init__(
        self,
        width: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        head_norm: float = 10.0,
        eps: float = 1e-5,
        **training: Any,
    ) -> None:
        network = self.network_class(width, num_classes, in_channels, True, head_norm, eps)
        super().__init__(network, num_classes=num_classes, input_shape=(in_channels, 32, 32), **training)
        self.save_hyperparameters(logger=False, ignore=_unsaved("optimizer"))


class SIConvNet(_SIModule):
    """The papers' scale-invariant ConvNet (see :class:`~lit_sphere.networks.ConvNet`), frozen head."""

    network_class = ConvNet


class SIResNet18(_SIModule):
    """The papers' scale-invariant ResNet-18 (see :class:`~lit_sphere.networks.ResNet18`), frozen head."""

    network_class = ResNet18


def _filters(group: Group, parameter: nn.Parameter) -> int:
    """Number of a parameter's filters (rows) in a group."""
    return len(parameter) if group.rows is None else group.rows.stop - group.rows.start


def _check_training_options(
    elr: float | None, lr: float | None, spheres: str, optimizer: OptimizerCallable | None, loss: str
) -> None:
    for name, value in (("elr", elr), ("lr", lr)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} (--model.{name}) must be positive and finite, got {value}")
    if elr is not None and optimizer is not None:
        raise ValueError(
            "both elr and optimizer are given: elr trains on the sphere by SphereSGD; set --model.elr null to "
            "train in the whole space"
        )
    for name, choice, known in (("loss", loss, get_args(Loss)), ("spheres", spheres, get_args(Spheres))):
        if choice not in known:
            raise ValueError(f"{name} (--model.{name}) must be one of {', '.join(known)}, got {choice!r}")


def _unsaved(*names: str) -> list[str]:
    """Which of these arguments a checkpoint cannot hold as plain data: all, but for the command line's."""
    return list(names) if _given_hyperparameters.get() is None else []


def _optimizer_options(hparams: dict[str, Any]) -> dict[str, Any]:
    """Options of the optimizer among the hyperparameters, under their names in its parameter groups."""
    options = {key: hparams[key] for key in ("elr", "lr") if hparams.get(key) is not None}
    optimizer = hparams.get("optimizer")
    return {**options, **optimizer.get("init_args", {})} if isinstance(optimizer, dict) else options
