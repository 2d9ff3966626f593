"""The same work on a Dask cluster: cases go out one by one, and workers write the results where all can see them."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from brats_inpainting import container, host, memory
from brats_inpainting.config import BUNDLED
from brats_inpainting.data import volume
from brats_inpainting.data.cases import Case
from brats_inpainting.errors import CaseError, ConfigError, InpaintingError
from brats_inpainting.progress import Watch

try:
    import distributed
    from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin
    from distributed.comm.core import CommClosedError
except ImportError as error:
    raise container.missing("--cluster needs Dask", "cluster") from error

if TYPE_CHECKING:
    import torch

    from brats_inpainting.device import Precision
    from brats_inpainting.folder import Run
    from brats_inpainting.infer import Inpainter

log = logging.getLogger(__name__)

NAME = "brats-inpainting"
LOOPBACK = "127.0.0.1"
ONE_CASE = Lock()  # all threads of a worker are the network's
LOOK_EVERY = 5.0  # seconds between looks for workers that have joined


@dataclass
class Loader(WorkerPlugin):
    """What a worker is given when it joins: the network, and a look at whether it can do the work.

    ``run`` is its name on the workers, which may serve several runs; ``sha256`` is that of the weights, ``loading`` are
    the arguments of ``Inpainter.load``, ``folders`` must be seen by every worker, and ``devices``, if any, are shared
    out among the workers of a machine.
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
        host.settle()
        host.keep_memory()  # whatever the nanny, which wants it back at once, has set: the network is twice as fast
        logging.getLogger("brats_inpainting").setLevel(logging.ERROR)  # the client tells, once
        from brats_inpainting.infer import Inpainter

        where = f"worker {worker.name} on {socket.gethostname()}"
        if self.version != (own := version(NAME)):
            raise ConfigError(f"{where} has brats-inpainting {own}, not {self.version}\n  Install one version.")
        for folder in self.folders:
            if not folder.is_dir():
                raise ConfigError(f"{folder}: {where} does not see it\n  Use a folder that all machines share.")
        device = {"device": self.devices[worker.name % len(self.devices)]} if self.devices else {}
        inpainter = Inpainter.load(**self.loading | device)
        if inpainter.device.type == "cpu":
            limit = worker.memory_manager.memory_limit
            if not self.loading["batch_size"]:
                inpainter.batch_size = memory.plan(inpainter.weights.network.config, inpainter.batch_size, limit)
            inpainter.spread(worker.state.nthreads, limit)
        if inpainter.weights.sha256 != self.sha256:
            raise ConfigError(f"{inpainter.weights.path}: {where} has another file by this name\n  Share one.")
        self.inpainter = inpainter


@dataclass(frozen=True)
class Order:
    """What a worker must know beside its network, so that all fill alike."""

    run: str
    batch_size: int
    most_voxels: int | None
    precision: Precision
    seed: int
    keep_dtype: bool
    report_path: Path | None


@contextmanager
def crew(where: str, run: Run, loading: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Gather workers that have loaded the network, and yield what fills the cases of a run with them.

    Args:
        where: ``local``, ``local:N`` for N processes on this machine, a scheduler's address, or its file.
        run: the cases; its batch size and precision become those of the workers.
        loading: arguments of ``Inpainter.load`` for the workers.

    Raises:
        ConfigError: when there is no such cluster, or its workers cannot do the work.
    """
    run.jobs = {
        target.absolute(): replace(case, image=case.image.absolute(), mask=case.mask.absolute())
        for target, case in run.jobs.items()
    }
    run.report_path = run.report_path and run.report_path.absolute()
    by_path = {path: name for name, path in BUNDLED.items()}  # workers have their own copies of these
    loading = loading | {"weights": by_path.get(loading["weights"], loading["weights"].absolute())}
    for name in ("distributed", "distributed.client"):  # what concerns a user is told here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    local = re.fullmatch("local(?::([1-9][0-9]*))?", where)
    with _local(local[1]) if local else _remote(where) as client:
        log.info("%s, dashboard at %s", client, client.dashboard_link)
        try:
            loader = _equip(
                client, run, loading, devices=_gpus() if local and loading["device"] in ("auto", "cuda") else []
            )
            yield partial(_go, client, run, loader)
            client.unregister_worker_plugin(loader.run)
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


def _equip(client: Client, run: Run, loading: dict[str, Any], *, devices: list[str]) -> Loader:
    """Have every worker, and each that joins later, load the network; settle what all of them do alike."""
    inputs = [path.parent for case in run.jobs.values() for path in (case.image, case.mask)]
    outputs = [target.parent for target in run.jobs]
    folders = [Path(os.path.commonpath(paths)) for paths in (inputs, outputs, [run.report_path or outputs[0]])]
    for folder in folders[1:]:
        volume.make_writable(folder)
    loader = Loader(uuid4().hex, run.inpainter.weights.sha256, loading, folders, devices)
    try:
        client.register_plugin(loader, name=loader.run)
    except Exception as error:  # Dask wraps what a worker lacks into plain exceptions
        if isinstance(error, InpaintingError) or "ModuleNotFoundError" not in repr(error):
            raise
        raise ConfigError(f"a worker cannot load this software ({error})\n  Install it there as here.") from error
    if not (found := list(client.run(_described, loader.run, on_error="ignore").values())):
        raise ConfigError("all workers are gone\n  Start some again, with more memory if they ended for lack of it.")
    run.inpainter.batch_size = min(batch_size for batch_size, *_ in found)
    run.inpainter.most_voxels = min((most for _, most, *_ in found if most), default=None)
    _, _, run.inpainter.side_by_side, run.inpainter.precision, run.inpainter.device, run.threads = found[0]
    log.info("%d worker(s) have loaded the network, the first on %s; more may join", len(found), run.inpainter.device)
    return loader


def _described(run: str, dask_worker: Worker) -> tuple[int, int | None, int, Precision, torch.device, int]:
    """Tell what a worker would choose, and what it has."""
    loader = _loader(dask_worker, run)
    assert loader
    assert loader.inpainter
    inpainter = loader.inpainter
    threads = dask_worker.state.nthreads
    most = inpainter.most_voxels
    return inpainter.batch_size, most, inpainter.side_by_side, inpainter.precision, inpainter.device, threads


def _go(client: Client, run: Run, loader: Loader) -> None:
    """Give each worker a case at a time, the largest first; a case whose worker dies goes to another."""
    order = Order(
        loader.run,
        run.inpainter.batch_size,
        run.inpainter.most_voxels,
        run.inpainter.precision,
        run.seed,
        run.keep_dtype,
        run.report_path,
    )
    waiting = iter(sorted(run.jobs.items(), key=lambda job: _work(job[1]), reverse=True))
    under_way: dict[Future[Any], tuple[Path, Case]] = {}
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(len(run.jobs), quiet=run.quiet))
        stack.callback(run.record)  # whatever happens
        while True:
            room = max(1, len(client.nthreads())) - len(under_way)
            for target, case in islice(waiting, max(0, room)):
                future = client.submit(_fill, case, target, order, pure=False)
                under_way[future] = target, case
            if not under_way:
                break
            for future in _done(under_way):
                _tell(run, future, *under_way.pop(future), watch=watch)
                future.release()  # else the case is done again when the worker that did it dies


def _work(case: Case) -> int:
    """Guess how long a case takes: a mask that is larger on disk has more slices, or more in them."""
    try:
        return case.mask.stat().st_size
    except OSError:
        return 0


def _done(futures: Iterable[Future[Any]]) -> Iterable[Future[Any]]:
    """Wait until something is done, but never long: more workers may have come."""
    try:
        return distributed.wait(list(futures), timeout=LOOK_EVERY, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        return ()


def _tell(run: Run, future: Future[Any], target: Path, case: Case, *, watch: Watch) -> None:
    """Note what became of a case."""
    try:
        report = future.result()
    except CaseError as error:
        run.fail(case.id, error, watch)
    except distributed.KilledWorker as error:
        volume.drop_leftovers(target.parent, target.name)
        advice = "Give the workers more memory, or say --batch-size 1."
        run.fail(
            case.id, CaseError(f"{case.id}: workers died of it, the last at {error.last_worker}\n  {advice}"), watch
        )
    else:
        for warning in report["warnings"]:
            log.warning("%s: %s", case.id, warning)
        sampling = run.inpainter.sampling
        passes = report["windows"] * sampling.samples * sampling.passes
        watch.open(passes)
        watch.advance(passes)
        run.finished(case.id, target, report, watch)


def _fill(case: Case, target: Path, order: Order) -> dict[str, Any]:
    """Fill a case with this worker's network."""
    import torch

    from brats_inpainting.folder import Run

    worker = distributed.get_worker()
    loader = _loader(worker, order.run)
    if not loader or not loader.inpainter:  # it joined later, and its log says what it lacks
        time.sleep(LOOK_EVERY)
        raise distributed.Reschedule
    with ONE_CASE:
        torch.set_num_threads(worker.state.nthreads)
        loader.inpainter.batch_size, loader.inpainter.precision = order.batch_size, order.precision
        loader.inpainter.most_voxels = order.most_voxels
        run = Run(
            loader.inpainter,
            {target: case},
            seed=order.seed,
            keep_dtype=order.keep_dtype,
            report_path=order.report_path,
        )
        return run.fill(case, target)


def _loader(worker: Worker, run: str) -> Loader | None:
    return cast("Loader | None", worker.plugins.get(run))
