"""The same work on a Dask cluster: cases go out one by one, and workers write the results where all can see them."""

from __future__ import annotations

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
from brats_inpainting.config import BUNDLED
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
ONE_CASE = Lock()  # all threads of a worker are the network's
LOOK_EVERY = 5.0  # seconds between looks for workers that have joined


@dataclass
class Loader(WorkerPlugin):
    """Loads the network on each worker that joins, after checking that the worker can do the work.

    Attributes:
        run: the plugin's name on the workers, which may serve several runs.
        sha256: hash of the weights.
        loading: arguments of ``Inpainter.load``.
        folders: must be visible to every worker.
        devices: GPUs to be shared out among the workers of a machine, if any.
    """

    run: str
    sha256: str
    loading: dict[str, Any]
    folders: list[Path]
    devices: list[str]
    version: str = version(NAME)
    inpainter: Inpainter | None = field(default=None, init=False)  # none while a worker cannot do the work

    def setup(self, worker: Worker) -> None:
        """Load the network.

        Raises:
            ConfigError: when the worker has another version of this software, other weights, or no such folders.
        """
        runtime.settle()
        runtime.keep_memory()  # override the malloc trimming that Dask's nanny configures: twice as fast
        logging.getLogger("brats_inpainting").setLevel(logging.ERROR)  # the client logs, once
        from brats_inpainting.inpainter import Inpainter
        from brats_inpainting.plan import Plan

        on = f"worker {worker.name} on {socket.gethostname()}"
        if self.version != (own := version(NAME)):
            raise ConfigError(f"{on} has brats-inpainting {own}, not {self.version}\n  Install one version.")
        for folder in self.folders:
            if not folder.is_dir():
                raise ConfigError(f"{folder}: {on} does not see it\n  Use a folder that all machines share.")
        device = {"device": self.devices[worker.name % len(self.devices)]} if self.devices else {}
        inpainter = Inpainter.load(**self.loading | device)
        if inpainter.weights.sha256 != self.sha256:
            raise ConfigError(f"{inpainter.weights.path}: {on} has another file by this name\n  Share one.")
        decided = {key: self.loading[key] for key in ("batch_size", "at_most", "precision") if key in self.loading}
        unet, where = inpainter.weights.network.config, inpainter.plan.device
        threads, limit = worker.state.nthreads, worker.memory_manager.memory_limit
        self.inpainter = replace(inpainter, plan=Plan.make(unet, where, **decided, threads=threads, limit=limit))


@dataclass(frozen=True)
class Order:
    """What a worker needs to know besides its network: all fill alike."""

    run: str
    plan: Plan
    options: Options


@dataclass
class Crew:
    """Workers that fill cases.

    Attributes:
        client: of the scheduler.
        loading: arguments of ``Inpainter.load`` on the workers.
        devices: GPUs to be shared out among the workers of this machine.
        run: name of this run on the workers.
    """

    client: Client
    loading: dict[str, Any]
    devices: list[str]
    run: str = field(default_factory=lambda: uuid4().hex)

    def load(self, filler: Filler, jobs: dict[Path, Case], options: Options) -> Inpainter:
        """Load the network on every worker, and on each that joins later; return it with the plan that fits all.

        Raises:
            ConfigError: when the workers cannot do the work.
        """
        from brats_inpainting.inpainter import Inpainter
        from brats_inpainting.plan import Plan

        if not isinstance(filler, Inpainter):
            raise ConfigError("a cluster fills with the network only\n  Leave the cluster out.")
        inputs = [path.absolute().parent for case in jobs.values() for path in (case.image, case.mask)]
        outputs = [target.absolute().parent for target in jobs]
        reports = [(options.report_path or outputs[0]).absolute()]
        folders = [Path(os.path.commonpath(paths)) for paths in (inputs, outputs, reports)]
        for folder in folders[1:]:
            files.make_writable(folder)
        loader = Loader(self.run, filler.weights.sha256, self.loading, folders, self.devices)
        try:
            self.client.register_plugin(loader, name=loader.run)
        except Exception as error:  # Dask wraps what a worker lacks into plain exceptions
            if isinstance(error, InpaintingError) or "ModuleNotFoundError" not in repr(error):
                raise
            raise ConfigError(f"a worker cannot load this software ({error})\n  Install it there as here.") from error
        if not (plans := list(self.client.run(_plan, self.run, on_error="ignore").values())):
            raise ConfigError(
                "all workers are gone\n  Start some again, with more memory if they ended for lack of it."
            )
        plan = Plan.common(plans)
        log.info("%d worker(s) have loaded the network, the first on %s; more may join", len(plans), plan.device)
        return replace(filler, plan=plan)

    def fill(
        self, filler: Filler, jobs: dict[Path, Case], options: Options, record: Record, progress: ProgressBar
    ) -> None:
        """Give each worker a case at a time, the largest first; a case whose worker dies goes to another."""
        from brats_inpainting.inpainter import Inpainter

        assert isinstance(filler, Inpainter)
        report_path = options.report_path and options.report_path.absolute()
        order = Order(self.run, filler.plan, replace(options, report_path=report_path))
        waiting = iter(sorted(jobs.items(), key=lambda job: _work(job[1]), reverse=True))
        running: dict[Future[Any], tuple[Path, Case]] = {}
        while True:
            room = max(1, len(self.client.nthreads())) - len(running)
            for target, case in islice(waiting, max(0, room)):
                seen = replace(case, image=case.image.absolute(), mask=case.mask.absolute())
                running[self.client.submit(_fill, seen, target.absolute(), order, pure=False)] = target, case
            if not running:
                return
            for future in _done(running):
                _report(future, *running.pop(future), filler=filler, record=record, progress=progress)
                future.release()  # else the case is done again when the worker that did it dies


@contextmanager
def crew(where: str, loading: dict[str, Any]) -> Iterator[Crew]:
    """Connect to workers, or start them.

    Args:
        where: ``local``, ``local:N`` for N processes on this machine, a scheduler's address, or its file.
        loading: arguments of ``Inpainter.load`` for the workers.

    Raises:
        ConfigError: when there is no such cluster.
        InpaintingError: when the scheduler goes away.
    """
    by_path = {path: name for name, path in BUNDLED.items()}  # workers have their own copies of these
    loading = loading | {"weights": by_path.get(loading["weights"], loading["weights"].absolute())}
    for name in ("distributed", "distributed.client"):  # what concerns a user is logged here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    local = re.fullmatch("local(?::([1-9][0-9]*))?", where)
    with _local(local[1]) if local else _remote(where) as client:
        log.info("%d worker(s), dashboard at %s", len(client.nthreads()), client.dashboard_link)
        joined = Crew(client, loading, _gpus() if local and loading["device"] in ("auto", "cuda") else [])
        try:
            yield joined
            client.unregister_worker_plugin(joined.run)
        except (distributed.CancelledError, CommClosedError, OSError) as error:
            raise InpaintingError(
                f"the scheduler is gone ({error})\n  Start it again, and say --resume: finished cases are kept."
            ) from error


@contextmanager
def _local(number: str | None) -> Iterator[Client]:
    """Start workers on this machine, which nothing beyond it can reach, and share its CPUs out among them."""
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
    """Connect to a scheduler that runs already."""
    file = "://" not in where
    if file and not Path(where).is_file():
        advice = "Say local, local:4, tcp://host:port, or the file that a scheduler wrote."
        raise ConfigError(f"--cluster {where}: no such file\n  {advice}")
    try:
        client = Client(scheduler_file=where) if file else Client(where)
    except (OSError, ValueError, AssertionError) as error:  # the last where a file is no scheduler's
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
    """Return the plan that a worker would follow."""
    loader = _loader(dask_worker, run)
    assert loader
    assert loader.inpainter
    return loader.inpainter.plan


def _work(case: Case) -> int:
    """Guess how long a case takes: a mask that is larger on disk has more slices, or more in them."""
    try:
        return case.mask.stat().st_size
    except OSError:
        return 0


def _done(futures: Iterable[Future[Any]]) -> Iterable[Future[Any]]:
    """Return what is done after a few seconds at most, as ``as_completed`` cannot: new workers get a case at once."""
    try:
        return distributed.wait(list(futures), timeout=LOOK_EVERY, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        return ()


def _report(
    future: Future[Any], target: Path, case: Case, *, filler: Inpainter, record: Record, progress: ProgressBar
) -> None:
    """Note what became of a case."""
    try:
        report = future.result()
    except CaseError as error:
        fill.report_failed(case.id, error, record, progress)
    except distributed.KilledWorker as error:
        files.remove_leftovers(target.parent)
        advice = "Give the workers more memory, or say --batch-size 1."
        reason = f"{case.id}: workers died of it, the last at {error.last_worker}\n  {advice}"
        fill.report_failed(case.id, CaseError(reason), record, progress)
    else:
        for warning in report["warnings"]:
            log.warning("%s: %s", case.id, warning)
        passes = report["windows"] * filler.sampling.samples * filler.sampling.passes
        progress.open(passes)
        progress.advance(passes)
        fill.report_done(case.id, target, report, record, progress)


def _fill(case: Case, target: Path, order: Order) -> dict[str, Any]:
    """Fill a case with this worker's network."""
    import torch

    worker = distributed.get_worker()
    loader = _loader(worker, order.run)
    if not loader or not loader.inpainter:  # it joined later, and its log says what it lacks
        time.sleep(LOOK_EVERY)
        raise distributed.Reschedule
    with ONE_CASE:
        torch.set_num_threads(worker.state.nthreads)
        own = loader.inpainter.plan
        plan = replace(order.plan, device=own.device, concurrent=own.concurrent)
        return fill.fill_case(replace(loader.inpainter, plan=plan), case, target, order.options)


def _loader(worker: Worker, run: str) -> Loader | None:
    return cast("Loader | None", worker.plugins.get(run))
