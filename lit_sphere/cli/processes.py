"""A run of several processes: what it waits for, which of them ended, and that none is left behind."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    LSFEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from lit_sphere.callbacks import Interrupted
from lit_sphere.cli.checkpoints import newest_checkpoint
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.files import release_folders

_STARTED_BY = "LIT_SPHERE_STARTED_BY"  # process id of the first rank, for those that it starts
_GRACE = 5.0  # seconds for a process to fail by itself, with all that its callbacks leave behind, once another is gone
_OWN_ERROR = 10.0  # seconds in which an error that all ranks make is the first one's to tell
_END = 60.0  # seconds for the others to end after the first
_REMIND = 60.0
_POLL = 0.2
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK")


class ProcessLost(ConnectionError):
    """Another process of the run has ended, and this one cannot go on without it."""


class Processes:
    """The processes of a run on this machine, as one of them sees them.

    The first rank starts the others (as Lightning does) and speaks for all. Where it is the one that died, the second
    speaks. Each watches the others, since a process can wait for a dead one for ever.
    """

    def __init__(self) -> None:
        started_by = os.environ.pop(_STARTED_BY, None)
        self._parent = int(started_by) if started_by else None
        self._children: list[subprocess.Popen[Any]] = []
        self._trainer: Trainer | None = None
        self._checkpoints: Path | None = None
        self._is_over, self._speaking = threading.Event(), threading.Lock()
        self._interrupts = _Interrupts()
        self._threads: list[threading.Thread] = []

    def oversee(self, trainer: Trainer, checkpoints: Path | None) -> None:
        """Take the place of Lightning's launcher, which kills the first rank without a word when another dies.

        Args:
            trainer: Before it starts anything.
            checkpoints: Folder of the run's checkpoints, to go on from; None where nothing is trained.
        """
        self._trainer, self._checkpoints = trainer, checkpoints
        before = trainer.strategy.launcher
        if type(before) is _SubprocessScriptLauncher:
            trainer.strategy._launcher = _Launcher(
                before.cluster_environment, before.num_processes, before.num_nodes, self
            )

    def start(self, start_children: Callable[[], list[subprocess.Popen[Any]]] | None) -> None:
        """Start the others, if this process is to, and watch them.

        Args:
            start_children: Starts them.
        """
        if start_children is not None:
            os.environ[_STARTED_BY] = str(os.getpid())
            try:
                self._children = start_children()
            finally:
                del os.environ[_STARTED_BY]
        self._interrupts.listen()
        self._threads = [threading.Thread(target=task, daemon=True) for task in (self._announce_waiting, self._watch)]
        for thread in self._threads:
            thread.start()

    def _announce_waiting(self) -> None:
        trainer = self._trainer
        if trainer is None:
            return
        due = time.monotonic() + (0 if trainer.num_nodes > 1 else _REMIND)
        while not (dist.is_initialized() or self._is_over.wait(_POLL)):
            if self._interrupts.came():
                if self._parent is None:
                    print("lit-sphere: interrupted while waiting; nothing to save", file=sys.stderr, flush=True)
                self._kill_children()
                release_folders()
                os._exit(128 + signal.SIGINT)
            if trainer.local_rank == 0 and time.monotonic() >= due:
                print(f"lit-sphere: {self._awaited(trainer)}", file=sys.stderr, flush=True)
                due = time.monotonic() + _REMIND

    def _awaited(self, trainer: Trainer) -> str:
        address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "")
        if trainer.num_nodes == 1:
            return f"waits for the other {trainer.world_size - 1} processes, at {address}:{port}"
        if trainer.node_rank:
            return f"waits for node 0 at {address}:{port}; start the same command there with NODE_RANK=0"
        more = trainer.num_nodes - 1
        nodes, ranks = (f"{more} more nodes", f"1…{more}") if more > 1 else ("1 more node", "1")
        local = "; MASTER_ADDR is to be this machine's name" if address in ("127.0.0.1", "localhost") else ""
        return (
            f"waits for {nodes} at {address}:{port}; start the same command there with NODE_RANK={ranks} "
            f"MASTER_ADDR={address} MASTER_PORT={port}{local}"
        )

    def _watch(self) -> None:
        """End this process where its main thread waits for one that is gone."""
        while not self._is_over.wait(_POLL):
            if self._lost() is None and not self._is_orphan():
                continue
            if not self._is_over.wait(_GRACE):
                self._speak_and_leave()
            return

    def _speak_and_leave(self) -> None:
        error = self._of_lost()
        with self._speaking:
            if isinstance(error, ProcessLost):
                print(f"lit-sphere: {error}", file=sys.stderr, flush=True)
            self._kill_children()
            release_folders()
            os._exit(1)

    def _lost(self) -> tuple[int, int] | None:
        """Local rank and exit status of the first child that failed."""
        for rank, child in enumerate(self._children, start=1):
            if child.poll():
                return rank, child.returncode
        return None

    def _is_orphan(self) -> bool:
        return self._parent is not None and os.getppid() != self._parent

    def ended_by(self, error: BaseException) -> BaseException:
        """Find out what stands behind an error that ends this process.

        Args:
            error: What was raised here.

        Returns:
            What the user is to see: the same error, that another process was lost, or nothing (``SystemExit``),
            because another process speaks.
        """
        trainer = self._trainer
        if isinstance(error, (Interrupted, KeyboardInterrupt, SystemExit)) or trainer is None or trainer.world_size < 2:
            return error
        if not _is_of_connection(error):
            if self._parent is not None:
                self._wait_until(self._is_orphan, _OWN_ERROR)
            return SystemExit(1) if self._is_orphan() else error
        if self._children:
            self._wait_until(lambda: self._lost() is not None, _GRACE)
        elif self._parent is not None:
            self._wait_until(self._is_orphan, _GRACE)
        return self._of_lost()

    def _of_lost(self) -> BaseException:
        trainer, lost = self._trainer, self._lost()
        assert trainer is not None
        world = trainer.world_size
        if lost is not None:
            rank, status = lost
            if status > 0:  # its own error, which it has told
                return SystemExit(1)
            return self._told(f"rank {rank} of {world} was ended by {signal.Signals(-status).name}")
        if self._parent is not None:
            if not self._is_orphan() or os.environ.get("LOCAL_RANK") != "1":
                return SystemExit(1)
            return self._told(f"rank 0 of {world} was killed")
        if not dist.is_initialized():
            return ProcessLost(f"gave up: {self._awaited(trainer)}")
        return self._told(f"one of {world} ranks has ended, or its machine is out of reach")

    def _told(self, what: str) -> ProcessLost:
        newest = None if self._checkpoints is None else newest_checkpoint(self._checkpoints)
        if newest is not None:
            remedy = f"go on from the last checkpoint, --ckpt_path {newest}"
        elif self._checkpoints is not None:
            remedy = "there is no checkpoint yet, start anew"
        else:
            remedy = "start the command again"
        memory = " (out of memory?)" if what.endswith(("killed", "SIGKILL")) else ""
        return ProcessLost(f"{what}{memory}, and all others with it; {remedy}")

    @staticmethod
    def _wait_until(happened: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not happened() and time.monotonic() < until:
            time.sleep(_POLL / 4)

    def end(self, is_success: bool) -> None:
        """Let the others end, and end them where this process has failed.

        Args:
            is_success: Whether they are about to end by themselves.
        """
        self._is_over.set()
        for thread in self._threads:
            thread.join(_GRACE)
        self._interrupts.stop_listening()
        with self._speaking:
            if is_success:
                self._wait_until(lambda: all(child.poll() is not None for child in self._children), _END)
            self._kill_children()

    def _kill_children(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
                child.wait()


class _Interrupts:
    """Hears Ctrl-C while the main thread waits in torch for other processes, where Python's handlers do not run."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None
        self._before = -1

    def listen(self) -> None:
        """Begin; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._ends = os.pipe()
            for end in self._ends:
                os.set_blocking(end, False)
            self._before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)

    def came(self) -> bool:
        """Whether SIGINT came since the last call."""
        if self._ends is None or not select.select([self._ends[0]], [], [], 0)[0]:
            return False
        return signal.SIGINT in os.read(self._ends[0], 4096)

    def stop_listening(self) -> None:
        """Give the signals back as they were."""
        if self._ends is not None:
            signal.set_wakeup_fd(self._before)
            ends, self._ends = self._ends, None
            for end in ends:
                os.close(end)


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's, watched by :class:`Processes` in the place of its own observer."""

    def __init__(self, environment: Any, num_processes: int, num_nodes: int, processes: Processes) -> None:
        super().__init__(environment, num_processes, num_nodes)
        self._processes = processes

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other processes of this machine, then call the function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        outside = self.cluster_environment.creates_processes_externally
        self._processes.start(None if outside else self._start)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _start(self) -> list[subprocess.Popen[Any]]:
        self._call_children_scripts()
        return self.procs


def check_environment(devices: Any, num_nodes: int) -> None:
    """Refuse variables that make this process one of several, where nobody has started the others.

    ``srun``, ``torchrun`` and Lightning's own launcher set them truly. One that was left over makes a process train
    without table and metrics, or wait for ever.

    Args:
        devices: ``--trainer.devices``.
        num_nodes: ``--trainer.num_nodes``.

    Raises:
        CommandLineError: Names the variable, and the remedy.
    """
    if _is_of_slurm():
        _check_slurm_tasks()
        return
    if TorchElasticEnvironment.detect() or LSFEnvironment.detect():
        return
    ranks = {name: _whole_number(name) for name in _RANKS if name in os.environ}
    is_one = devices in (1, "1") and num_nodes == 1
    for name, rank in ranks.items():
        last = max(num_nodes - 1, 0) if name == "NODE_RANK" else 0 if is_one else None
        is_beyond = last is not None and rank > last
        is_lost = "MASTER_PORT" not in os.environ and (rank > 0 or (name == "LOCAL_RANK" and not _may_be_one(devices)))
        if is_beyond or is_lost:
            raise CommandLineError(_stray(name, rank))


def _may_be_one(devices: Any) -> bool:
    return devices in (1, "1", "auto", -1, "-1")


def _stray(name: str, rank: int) -> str:
    return (
        f"{name}={rank} is in the environment, but nobody has started the other processes: this one would train "
        f"unseen or wait for ever; take it out (unset {name}), or start all by torchrun, srun or --trainer.devices"
    )


def _whole_number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise CommandLineError(
            f"{name}={os.environ[name]} in the environment is no number; take it out (unset {name})"
        ) from None


def _is_of_slurm() -> bool:
    """As Lightning finds out; its own ``detect`` warns as well."""
    return "SLURM_NTASKS" in os.environ and SLURMEnvironment.job_name() not in ("bash", "interactive")


def _check_slurm_tasks() -> None:
    """Refuse the tasks of a batch job that nobody starts: Lightning would fail, or wait for them for ever."""
    tasks = _whole_number("SLURM_NTASKS")
    if tasks == 1:
        return
    if "SLURM_STEP_ID" not in os.environ:
        raise CommandLineError(
            f"SLURM_NTASKS={tasks}, but srun has not started this process: ask for the tasks by --ntasks-per-node and "
            "put srun before lit-sphere (with --trainer.devices and --trainer.num_nodes to match), or give sbatch "
            "--ntasks=1 to run one process"
        )
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise CommandLineError(
            f"SLURM_NTASKS={tasks} without --ntasks-per-node, which Lightning needs: give sbatch (or srun) "
            f"--ntasks-per-node={tasks} in the place of --ntasks={tasks} if all run on one node"
        )


def check_processes(trainer: Trainer) -> None:
    """Refuse what no machine bears, and a rank that Lightning does not know of.

    Args:
        trainer: Before it starts anything.

    Raises:
        CommandLineError: Names the option or the variable, and the remedy.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > max(4, 2 * cores):
        raise CommandLineError(
            f"--trainer.devices {trainer.num_devices}: so many processes on {cores} cores would hinder each other, if "
            f"the memory bears them at all; give at most {cores}"
        )
    name = next((name for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), None)
    if name is not None and trainer.global_rank == 0 and _whole_number(name) > 0:
        raise CommandLineError(_stray(name, _whole_number(name)))


def _is_of_connection(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached; gloo's has no type of its own."""
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
