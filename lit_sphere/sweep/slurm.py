"""Points of a sweep as jobs of Slurm, through submitit."""

import importlib.util
import os
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_sphere.sweep.grid import SweepError
from lit_sphere.sweep.point_run import LOG_FILE, Outcome, Task, forget_outcome, last_line, read_outcome, run_task

_FOLDER = "slurm"  # of submitit's files, in the sweep's
_POLL = 5.0  # seconds between two looks at the queue


@dataclass
class SlurmOptions:
    """What a job asks of Slurm.

    Attributes:
        partition: Partition, or several with commas between them; that of the cluster by default.
        gpus: GPUs of each run, each with a process of its own; give --trainer.devices as well where there are several.
        cpus: Cores of each process, which are its threads.
        time: Minutes of each run; when they are nearly over it stops with a checkpoint.
        memory: Memory of each node in gigabytes; that of the cluster by default.
        account: Account to charge.
        qos: Quality of service.
        more: Other options of sbatch, such as {constraint: a100}.
    """

    partition: str | None = None
    gpus: int = 1
    cpus: int = 4
    time: int = 240
    memory: int | None = None
    account: str | None = None
    qos: str | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def parameters(self, name: str) -> dict[str, Any]:
        """Give them by Slurm's names.

        Args:
            name: Of the jobs.

        Returns:
            As submitit's Slurm executor takes them.

        Raises:
            SweepError: If a number is out of its range.
        """
        for option, value, least in (("gpus", self.gpus, 0), ("cpus", self.cpus, 1), ("time", self.time, 1)):
            if value < least:
                raise SweepError(f"--slurm.{option} must be at least {least}, got {value}")
        if self.memory is not None and self.memory < 1:
            raise SweepError(f"--slurm.memory must be at least 1, got {self.memory}")
        given = {
            "job_name": name,
            "partition": self.partition,
            "time": self.time,
            "nodes": 1,
            "ntasks_per_node": max(1, self.gpus),
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus or None,
            "mem": f"{self.memory}GB" if self.memory else None,
            "account": self.account,
            "qos": self.qos,
            "additional_parameters": self.more or None,
        }
        return {option: value for option, value in given.items() if value is not None}


def check_submitit() -> None:
    """Refuse to submit without submitit.

    Raises:
        SweepError: Says how to install it.
    """
    if importlib.util.find_spec("submitit") is None:
        raise SweepError(
            "--launcher slurm needs submitit; install the extra, pip install 'lit-sphere[slurm]' or, in a checkout, "
            "pip install -e '.[slurm]'"
        )


def batch_script(folder: Path, options: SlurmOptions, command: str) -> str:
    """Give the script that would be submitted for a point.

    Args:
        folder: Of the sweep.
        options: Of Slurm.
        command: What the job runs.

    Returns:
        The text for sbatch.
    """
    from submitit.slurm import slurm

    text: str = slurm._make_sbatch_string(command, folder / _FOLDER, **options.parameters(folder.name))
    return text


def run_in_job(task: Task) -> int:
    """Run a point in a job.

    Args:
        task: The point.

    Returns:
        Exit status.
    """
    # Before the time is over the queue sends SIGUSR2, which submitit would answer by a new job without a checkpoint.
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return run_task(task)


class SlurmJobs:
    """Submits points as jobs. They outlive the sweep: the same command again watches those that still run.

    Args:
        folder: Of the sweep.
        options: Of Slurm.
        jobs: Jobs at once in the queue; None for all.
        cluster: submitit's name of the queue; ``local`` runs the same jobs here, without Slurm.

    Raises:
        SweepError: If there is no submitit, or no Slurm.
    """

    outlives = True

    def __init__(self, folder: Path, options: SlurmOptions, jobs: int | None = None, cluster: str = "slurm") -> None:
        check_submitit()
        import submitit

        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise SweepError("--launcher slurm: there is no sbatch here; log in to the cluster, or leave it out")
        self._folder, self._options, self._jobs = (folder / _FOLDER).resolve(), options, jobs
        self._executor: Any = {"slurm": submitit.SlurmExecutor, "local": submitit.LocalExecutor}[cluster](self._folder)
        parameters = options.parameters(folder.name)
        self._executor.update_parameters(**(parameters if cluster == "slurm" else {"timeout_min": options.time}))
        self._job_type: Any = self._executor.job_class
        self._running: dict[str, tuple[Any, Path]] = {}
        self._polled = 0.0

    @property
    def has_room(self) -> bool:
        """Whether another job may be submitted now."""
        return self._jobs is None or len(self._running) < self._jobs

    def prepare(self) -> None:
        """Nothing: jobs import for themselves."""

    def goes_on(self, name: str, folder: Path, job: str) -> bool:
        """Find out whether a job of an earlier command is still in the queue, and watch it then.

        Args:
            name: Of the point.
            folder: Of its run.
            job: Its id; may be empty.

        Returns:
            Whether it is.
        """
        if not job:
            return False
        found = self._job_type(self._folder, job)
        if found.done(force_check=True) or read_outcome(folder) is not None:
            return False
        self._running[name] = found, folder
        return True

    def start(self, name: str, task: Task) -> str:
        """Submit a point.

        Args:
            name: Of the point.
            task: What is to be run.

        Returns:
            The job's id.

        Raises:
            OSError: If the queue refuses it.
        """
        forget_outcome(task.folder)
        # Of the whole environment, only what the sweep adds: Slurm gives the rest.
        mine = {key: value for key, value in task.environment.items() if os.environ.get(key) != value}
        cpus = self._options.cpus
        mine["OMP_NUM_THREADS"] = str(cpus)
        mine.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        folder = task.folder.resolve()
        try:
            job = self._executor.submit(run_in_job, Task(folder, task.arguments, mine, cpus, task.command))
        except Exception as error:  # submitit has several of its own
            raise OSError(f"sbatch refuses the job: {' '.join(str(error).split())}") from error
        self._running[name] = job, task.folder
        return str(job.job_id)

    def wait(self, seconds: float) -> Mapping[str, Outcome]:
        """Wait for jobs to end.

        Args:
            seconds: At most.

        Returns:
            How those ended that have ended, by name.
        """
        time.sleep(seconds)
        asks = time.monotonic() - self._polled > _POLL
        if asks:
            self._polled = time.monotonic()
        ended = {}
        for name, (job, folder) in list(self._running.items()):
            outcome = read_outcome(folder)
            if outcome is None and asks and job.done():
                outcome = read_outcome(folder) or Outcome(1, 0.0, _why(job, folder))
            if outcome is not None:
                ended[name] = outcome
                del self._running[name]
        return ended

    def stop(self) -> None:
        """Nothing: jobs go on."""

    def close(self) -> None:
        """Nothing: jobs go on."""


def _why(job: Any, folder: Path) -> str:
    """Why a job ended without a word."""
    said = ""
    with suppress(Exception):  # what submitit raises of its own files
        said = " ".join(str(job.exception()).split())[:200]
    log = last_line(folder) if (folder / LOG_FILE).exists() else ""
    return "; last: ".join(each for each in (f"job {job.job_id} ended ({job.state}): {said}", log) if each)
