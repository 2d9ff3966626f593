"""Filling a folder on a Dask cluster: one case per task; workers read and write a shared file system."""

from __future__ import annotations

import copy
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from brats_inpainting import container, files, fill, host, runtime
from brats_inpainting.config import BUNDLED, DEFAULT_PRESET, weights_path
from brats_inpainting.data.cases import Case
from brats_inpainting.errors import CaseError, ConfigError, InpaintingError
from brats_inpainting.fill import Options
from brats_inpainting.filler import Filler
from brats_inpainting.progress import ProgressBar
from brats_inpainting.record import Record

try:
    import distributed
    from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin
    from distributed.comm.core import CommClosedError
except ImportError as error:
    raise container.missing("--cluster needs Dask", "cluster") from error

if TYPE_CHECKING:
    from brats_inpainting.inpainter import Inpainter
    from brats_inpainting.plan import Plan

log = logging.getLogger(__name__)

NAME = "brats-inpainting"
LOOPBACK = "127.0.0.1"
CASE_LOCK = Lock()  # a worker fills one case at a time, with all of its threads
ADVICE = "Use local, local:4 for 4 workers, tcp://host:port, or the file that a scheduler wrote."
POLL_SECONDS = 5.0  # interval at which new workers are detected


@dataclass
class Loader(WorkerPlugin):
    """Checks versions and folders of each worker that joins, and loads the network there.

    Attributes:
        run: name of the plugin on the workers, which may serve several runs.
        sha256: hash of the weights.
        loading: arguments of ``Inpainter.load``.
        folders: must be visible to every worker.
        devices: GPUs to distribute among the workers of one machine, if any.
    """

    run: str
    sha256: str
    loading: dict[str, Any]
    folders: list[Path]
    devices: list[str]
    version: str = version(NAME)
    inpainter: Inpainter | None = field(default=None, init=False)  # None if setup failed

    def setup(self, worker: Worker) -> None:
        """Load the network.

        Raises:
            ConfigError: when the worker has another version of this package, other weights, or lacks a folder.
        """
        runtime.settle()
        runtime.keep_memory()  # override the malloc trimming that Dask's nanny configures: twice as fast
        logging.getLogger("brats_inpainting").setLevel(logging.ERROR)  # the client logs the rest
        from brats_inpainting.inpainter import Inpainter
        from brats_inpainting.plan import Plan

        on = f"worker {worker.name} on {socket.gethostname()}"
        if self.version != (own := version(NAME)):
            raise ConfigError(f"{on} has brats-inpainting {own}, not {self.version}\n  Install one version.")
        for folder in self.folders:
            if not folder.is_dir():
                raise ConfigError(f"{folder}: {on} cannot access it\n  Use a folder that all machines share.")
        device = {"device": self.devices[worker.name % len(self.devices)]} if self.devices else {}
        inpainter = Inpainter.load(**self.loading | device)
        if inpainter.weights.sha256 != self.sha256:
            raise ConfigError(f"{inpainter.weights.path}: {on} has a different file of this name\n  Share one file.")
        decided = {
            key: self.loading[key] for key in ("batch_size", "at_most", "precision", "replay") if key in self.loading
        }
        unet, where = inpainter.weights.network.config, inpainter.plan.device
        threads, limit = worker.state.nthreads, worker.memory_manager.memory_limit
        self.inpainter = replace(inpainter, plan=Plan.make(unet, where, **decided, threads=threads, limit=limit))


@dataclass(frozen=True)
class Order:
    """Settings that all workers share, sent with every case."""

    run: str
    plan: Plan
    options: Options


@dataclass
class Workers:
    """The workers of a Dask cluster.

    Attributes:
        client: connection to the scheduler.
        loading: arguments of ``Inpainter.load`` on the workers.
        devices: GPUs to distribute among the workers of this machine.
        run: name of this run on the workers.
    """

    client: Client
    loading: dict[str, Any]
    devices: list[str]
    run: str = field(default_factory=lambda: uuid4().hex)

    def load(self, filler: Filler, jobs: dict[Path, Case], options: Options) -> Inpainter:
        """Load the network on all workers, including later ones; return it with a plan that fits all of them.

        Raises:
            ConfigError: when a worker cannot load it, or ``filler`` is not the network.
        """
        from brats_inpainting.inpainter import Inpainter
        from brats_inpainting.plan import Plan

        if not isinstance(filler, Inpainter):
            raise ConfigError("a cluster runs the network only\n  Run without a cluster.")
        inputs = [path.absolute().parent for case in jobs.values() for path in case.files]
        outputs = [target.absolute().parent for target in jobs]
        reports = [(options.report_path or outputs[0]).absolute()]
        folders = [Path(os.path.commonpath(paths)) for paths in (inputs, outputs, reports)]
        for folder in folders[1:]:
            files.make_writable(folder)
        loader = Loader(self.run, filler.weights.sha256, self.loading, folders, self.devices)
        try:
            self.client.register_plugin(loader, name=loader.run)
        except Exception as error:  # Dask raises a worker's ImportError as a plain Exception
            if isinstance(error, InpaintingError) or "ModuleNotFoundError" not in repr(error):
                raise
            raise ConfigError(f"a worker cannot import this package ({error})\n  Install it there, too.") from error
        if not (plans := list(self.client.run(_plan, self.run, on_error="ignore").values())):
            raise ConfigError("all workers have exited\n  Restart them, with more memory if they ran out of it.")
        plan = Plan.common(plans)
        log.info("%d worker(s) have loaded the network, the first on %s; more may join", len(plans), plan.device)
        joined = copy.copy(filler)  # not replace(), which would move the client's network to a worker's device
        joined.plan = plan
        return joined

    def fill(
        self, filler: Filler, jobs: dict[Path, Case], options: Options, record: Record, progress: ProgressBar
    ) -> None:
        """Submit one case per worker at a time, the largest first; Dask reassigns the case of a worker that dies."""
        from brats_inpainting.inpainter import Inpainter

        assert isinstance(filler, Inpainter)
        report_path = options.report_path and options.report_path.absolute()
        order = Order(self.run, filler.plan, replace(options, report_path=report_path))
        waiting = iter(sorted(jobs.items(), key=lambda job: _work(job[1]), reverse=True))
        running: dict[Future[Any], tuple[Path, Case]] = {}
        while True:
            room = max(1, len(self.client.nthreads())) - len(running)
            for target, case in islice(waiting, max(0, room)):
                running[self.client.submit(_fill, case.absolute(), target.absolute(), order, pure=False)] = target, case
            if not running:
                return
            for future in _done(running):
                _report(future, *running.pop(future), filler=filler, record=record, progress=progress)
                future.release()  # otherwise Dask repeats the case if its worker dies


@contextmanager
def connect(where: str, loading: dict[str, Any]) -> Iterator[Workers]:
    """Connect to a running cluster, or start a local one.

    Args:
        where: ``local``, ``local:N`` for N worker processes on this machine, a scheduler's address, or its file.
        loading: arguments of ``Inpainter.load`` for the workers.

    Raises:
        ConfigError: when ``where`` is none of these, or no scheduler can be reached.
        InpaintingError: when the connection to the scheduler is lost, or a folder becomes unusable.
    """
    local = re.fullmatch("local(?::([1-9][0-9]{0,2}))?", where)
    if not local and re.fullmatch("local(:.*)?", where):
        raise ConfigError(f"--cluster {where}: not a number of workers from 1 to 999 after local:\n  {ADVICE}")
    by_path = {path: name for name, path in BUNDLED.items()}  # workers load their own copies of bundled weights
    path = weights_path(loading.get("weights"), loading.get("preset", DEFAULT_PRESET))
    loading = loading | {"weights": by_path.get(path, path.absolute())}
    for name in ("distributed", "distributed.client"):  # this module logs what users need
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _local(local[1]) if local else _remote(where) as client:
        log.info("%d worker(s), dashboard at %s", len(client.nthreads()), client.dashboard_link)
        workers = Workers(
            client, loading, _gpus() if local and loading.get("device", "auto") in ("auto", "cuda") else []
        )
        try:
            yield workers
            client.unregister_worker_plugin(workers.run)
        except (distributed.CancelledError, CommClosedError, OSError) as error:
            if isinstance(error, OSError) and error.filename:  # not the network's
                advice = "Make it usable, then use --resume: finished cases are kept."
                raise InpaintingError(f"{error.filename}: {error.strerror}\n  {advice}") from error
            raise InpaintingError(
                f"lost the scheduler ({error})\n  Restart it and use --resume: finished cases are kept."
            ) from error


@contextmanager
def _local(number: str | None) -> Iterator[Client]:
    """Start workers that divide this machine's CPUs and listen on the loopback interface only."""
    workers = int(number or len(_gpus()) or max(1, host.cpus() // 2))
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=max(1, host.cpus() // workers),
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:0",
            silence_logs=logging.CRITICAL,
        ) as started,
        Client(started) as client,
    ):
        yield client


@contextmanager
def _remote(where: str) -> Iterator[Client]:
    """Connect to a running scheduler by address or file."""
    file = "://" not in where
    if file and not Path(where).is_file():
        raise ConfigError(f"--cluster {where}: no such file\n  {ADVICE}")
    try:
        client = Client(scheduler_file=where) if file else Client(where)
    except (OSError, ValueError, AssertionError) as error:  # AssertionError: not a scheduler's file
        raise ConfigError(f"--cluster {where}: no scheduler answers ({error})\n  Start one: dask scheduler.") from error
    with client:
        if not client.nthreads():
            log.info("waiting for workers")
            client.wait_for_workers(1)
        yield client


def _gpus() -> list[str]:
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def _plan(run: str, dask_worker: Worker) -> Plan:
    """Return the plan of a worker's inpainter."""
    loader = _loader(dask_worker, run)
    assert loader
    assert loader.inpainter
    return loader.inpainter.plan


def _work(case: Case) -> int:
    """Estimate a case's relative cost by the size of its mask file, which grows with the number of slices."""
    try:
        return case.mask.stat().st_size
    except OSError:
        return 0


def _done(futures: Iterable[Future[Any]]) -> Iterable[Future[Any]]:
    """Return finished futures, or none after a timeout, so that workers that joined meanwhile get a case."""
    try:
        return distributed.wait(list(futures), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        return ()


def _report(
    future: Future[Any], target: Path, case: Case, *, filler: Inpainter, record: Record, progress: ProgressBar
) -> None:
    """Record a case's result or failure."""
    try:
        report = future.result()
    except CaseError as error:
        fill.report_failed(case.id, error, record, progress)
    except distributed.KilledWorker as error:
        files.remove_leftovers(target.parent)
        advice = "Give the workers more memory, or use --batch-size 1."
        reason = f"{case.id}: workers died while filling it, the last at {error.last_worker}\n  {advice}"
        fill.report_failed(case.id, CaseError(reason), record, progress)
    else:
        for warning in report["warnings"]:
            log.warning("%s: %s", case.id, warning)
        passes = report["windows"] * filler.sampling.samples * filler.sampling.passes
        progress.open(passes)
        progress.advance(passes)
        fill.report_done(case.id, target, report, record, progress)


def _fill(case: Case, target: Path, order: Order) -> dict[str, Any]:
    """Fill a case with the network that this worker has loaded."""
    import torch

    worker = distributed.get_worker()
    loader = _loader(worker, order.run)
    if not loader or not loader.inpainter:  # setup failed on a worker that joined later; its log has the reason
        time.sleep(POLL_SECONDS)
        raise distributed.Reschedule
    with CASE_LOCK:
        torch.set_num_threads(worker.state.nthreads)
        own = loader.inpainter.plan
        plan = replace(order.plan, device=own.device, concurrent=own.concurrent, replay=own.replay)
        if plan != own:
            loader.inpainter = replace(loader.inpainter, plan=plan)
        return fill.fill_case(loader.inpainter, case, target, order.options)


def _loader(worker: Worker, run: str) -> Loader | None:
    return cast("Loader | None", worker.plugins.get(run))
