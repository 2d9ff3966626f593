"""A Dask cluster writes the bytes of one process, and no case is lost when a worker, scheduler or client dies."""

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import distributed
import psutil
import pytest
import torch

from brats_inpainting import cluster
from brats_inpainting.data import cases
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.errors import ConfigError, InpaintingError
from brats_inpainting.fill import Options, fill_case, fill_folder
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.layouts import CaseFolder
from brats_inpainting.plan import Plan

from .conftest import write_cases

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
LONG = ("--sampler", "ddim", "--steps", "40")  # long enough to kill something in the middle


def command(data, root, name, *args):
    """The command that fills the cases of a folder into ``root / name``."""
    places = {"data-path": data, "output-path": root / name, "report-path": root / f"{name}-report"}
    given = [word for key, path in places.items() for word in (f"--{key}", str(path))]
    weights = ("--weights", str(root / "tiny.safetensors"))
    return [sys.executable, "-m", "brats_inpainting", "infer", "--no-images", *given, *weights, *args]


def infer(*args):
    with running(*args) as run:
        output = run.communicate(timeout=200)[1]
    return run.returncode, output


def filled(folder):
    """Every file of an output folder with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recorded_cases(folder):
    """The cases that run.json lists as finished."""
    file = folder / "run.json"
    return json.loads(file.read_text())["cases"] if file.exists() else {}


def wait_for(what, seconds=200):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def stopped_while_filling(pid, all_recorded):
    """Halt a worker; let it continue if it has written a result that run.json does not list yet."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(all_recorded, seconds=1)
    except AssertionError:
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
        return False
    return True


@contextmanager
def hpc(root, workers=2, **environment):
    """A scheduler and its workers as separate processes that share a scheduler file, as on an HPC cluster."""
    file = root / "scheduler.json"
    file.unlink(missing_ok=True)
    settings = os.environ | {f"DASK_DISTRIBUTED__{name}": value for name, value in environment.items()}

    def start(what, *args):
        words = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(file), *args]
        with (root / f"{what}.log").open("a") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=settings, start_new_session=True)

    here = ("--host", cluster.LOOPBACK)
    processes = [start("scheduler", *here, "--port", "0", "--no-dashboard")]
    wait_for(file.exists)
    processes += [start("worker", *here, "--nthreads", "1", "--no-dashboard") for _ in range(workers)]
    try:
        with distributed.Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(workers, timeout=60)
        yield file, processes
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def running(*args):
    """Start a run in the background; kill it on exit."""
    two = set(sorted(os.sched_getaffinity(0))[:2])  # so that workers get a thread each on larger machines too
    settings = {"env": ONE_THREAD, "preexec_fn": lambda: os.sched_setaffinity(0, two)}
    with subprocess.Popen(command(*args), stderr=subprocess.PIPE, text=True, **settings) as run:
        try:
            yield run
        finally:
            run.kill()


def pids(file):
    with distributed.Client(scheduler_file=str(file)) as client:
        return list(client.run(os.getpid).values())


@pytest.fixture
def root(tmp_path, tiny_weights):
    return write_cases(tmp_path, tiny_weights, 6)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_weights):
    """What one process makes of the same cases in a long run that nothing disturbs."""
    root = write_cases(tmp_path_factory.mktemp("unbroken"), tiny_weights, 6)
    assert infer(root / "data", root, "one", *LONG)[0] == 0
    assert len(filled(root / "one")) == 6
    return filled(root / "one")


def test_paths_are_those_of_the_client_wherever_a_worker_was_started(root, client, monkeypatch):
    def submit(self, function, case, target, order, **settings):
        assert all(path.is_absolute() for path in (case.image, case.mask, target, order.options.report_path))
        return really_submit(self, function, case, target, order, **settings)

    really_submit = distributed.Client.submit
    monkeypatch.setattr(distributed.Client, "submit", submit)
    monkeypatch.chdir(root)
    loading = {"weights": Path("tiny.safetensors"), "device": "cpu", "batch_size": 2}
    machine, options = Inpainter.load(**loading), Options(report_path=Path("report"))
    with cluster.connect(client.scheduler.address, loading) as workers:
        settings = {"options": options, "workers": workers, "quiet": True}
        record = fill_folder(machine, CaseFolder(Path("data")), Path("out"), **settings)
    assert not [name for name in next(iter(client.cluster.workers.values())).plugins if len(name) == 32]  # let go
    assert not record.failed
    for number, case in enumerate(cases.find(root / "data")):
        assert case.id == f"case-{number}"
        target = root / cases.output_name(case.id)
        fill_case(machine, case, target, Options())
        assert target.read_bytes() == (root / "out" / target.name).read_bytes()
    assert set(recorded_cases(root / "report")) == {f"case-{number}" for number in range(6)}


@pytest.mark.slow
def test_local_workers_write_the_bytes_of_one_process_on_the_loopback_alone_and_a_bad_case_harms_none(root):
    (root / "data" / "case-3" / "case-3-mask.nii.gz").write_bytes(b"no scan")
    assert infer(root / "data", root, "one", "--samples", "2")[0] == 3
    with running(root / "data", root, "of3", "--samples", "2", "--cluster", "local:3") as run:
        wait_for(lambda: list((root / "of3").glob("case*")))
        everyone = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        heard = {at.laddr.ip for one in everyone for at in one.net_connections() if at.status == psutil.CONN_LISTEN}
        output = run.communicate(timeout=200)[1]
    assert heard == {cluster.LOOPBACK}
    assert run.returncode == 3, output
    assert "3 worker(s) have loaded the network" in output
    assert "dashboard at http://127.0.0.1:" in output
    assert "1 failed:\ncase-3: cannot be read" in output
    assert filled(root / "of3") == filled(root / "one")
    assert len(filled(root / "one")) == 5
    record, alone = (json.loads((root / f"{name}-report" / "run.json").read_text()) for name in ("of3", "one"))
    for report in (record, alone):
        report["cases"] = {name: noted | {"seconds": 0} for name, noted in sorted(report["cases"].items())}
    assert record == alone
    for path in (root / "one-report").glob("*.nii.gz"):
        assert path.read_bytes() == (root / "of3-report" / path.name).read_bytes()


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_no_case_and_none_is_written_twice(root, unbroken):
    with hpc(root) as (file, _):
        doomed, _ = pids(file)
        seen = set()

        def look():
            seen.update((path.name, path.stat().st_ino) for path in (root / "many").glob("case*"))
            return seen

        with running(root / "data", root, "many", *LONG, "--cluster", str(file)) as run:
            wait_for(look)
            while not stopped_while_filling(doomed, lambda: len(look()) == len(recorded_cases(root / "many-report"))):
                assert len(look()) < 6
            os.kill(doomed, signal.SIGKILL)
            wait_for(lambda: look() and run.poll() is not None)
            assert run.returncode == 0, run.stderr.read()
        assert doomed not in pids(file)
    assert filled(root / "many") == unbroken
    assert len(seen) == 6


@pytest.mark.slow
def test_a_case_that_kills_its_workers_fails_alone(root):
    with (
        hpc(root, workers=1, SCHEDULER__ALLOWED_FAILURES="0") as (file, _),
        running(root / "data", root, "many", *LONG, "--cluster", str(file)) as run,
    ):
        wait_for(lambda: list((root / "many").glob("case*")))
        os.kill(pids(file)[0], signal.SIGKILL)
        output = run.communicate(timeout=200)[1]
    assert run.returncode == 3, output
    reason = r"1 failed:\ncase-\d: workers died while filling it, the last at .*\n  Give the workers more memory"
    assert re.search(reason, output)
    assert len(filled(root / "many")) == 5


@pytest.mark.slow
def test_when_the_scheduler_and_then_the_client_die_resume_completes_the_run_on_other_workers(root, unbroken):
    def made():
        return {path: path.stat().st_mtime_ns for path in (root / "many").glob("case*")}

    with hpc(root) as (file, processes):
        with running(root / "data", root, "many", *LONG, "--cluster", str(file)) as run:
            wait_for(lambda: len(made()) > 1)
            processes[0].kill()
            output = run.communicate(timeout=200)[1]
        assert run.returncode == 2, output
        assert "--resume" in output.splitlines()[-1]
        assert "Traceback" not in output
    before, recorded = made(), recorded_cases(root / "many-report")
    assert 0 < len(before) < 6
    again = (root / "data", root, "many", *LONG, "--cluster", str(file), "--resume")
    with hpc(root):
        with running(*again):
            wait_for(lambda: made() != before)
        kept = recorded_cases(root / "many-report")
        code, output = infer(*again)
    assert code == 0, output
    assert f"{len(kept)} finished cases kept" in output
    assert filled(root / "many") == unbroken
    for path, when in before.items():
        assert (path.stat().st_mtime_ns == when) == (path.name.removesuffix("-t1n-inference.nii.gz") in recorded)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("local:0", "--cluster local:0: not a number of workers from 1 to 999 after local:\n  Use local, local:4 for"),
        ("", "--cluster : no such file\n  Use local, local:4 for 4 workers, tcp://host:port, or the file"),
        ("absent.json", "--cluster absent.json: no such file"),
        ("data/case-0/case-0-mask.nii.gz", "-mask.nii.gz: no scheduler answers"),
        ("nonsense://here", "--cluster nonsense://here: no scheduler answers"),
    ],
)
def test_a_cluster_that_does_not_exist_is_refused_with_what_to_use(root, where, said):
    where = str(root / where) if where.startswith("data") else where
    code, output = infer(root / "data", root, "out", "--cluster", where)
    assert (code, output.partition(said)[1]) == (2, said), output


@pytest.mark.parametrize("where", ["local:x", "local:", "local:-1", "local:1000", "local:2.5"])
def test_a_local_cluster_needs_a_number_of_workers(where):
    expected = (
        f"^--cluster {where}: not a number of workers from 1 to 999 after local:\n  Use local, local:4 for 4 workers"
    )
    with pytest.raises(ConfigError, match=expected), cluster.connect(where, {}):
        pass


@pytest.fixture(scope="module")
def client():
    """A client whose one worker is a thread of this process."""
    ours = logging.getLogger("brats_inpainting")
    before = ours.level
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as client:
        yield client
    ours.setLevel(before)


@pytest.fixture
def loader(root, tiny_weights):
    loading = {"weights": tiny_weights, "batch_size": 2}
    return cluster.Loader("this run", checkpoint.sha256(tiny_weights), loading, [root / "data"], [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "0.0"}, "has brats-inpainting .*, not 0.0\n  Install"),
        ({"sha256": "0" * 64}, "has a different file of this name\n  Share"),
        ({"folders": ["absent"]}, "absent: worker .* cannot access it\n  Use a folder that all machines share"),
    ],
)
def test_a_worker_that_cannot_do_the_work_refuses_it(client, loader, tmp_path, change, said):
    if "folders" in change:
        change = {"folders": [tmp_path / "absent"]}
    with pytest.raises(ConfigError, match=said):
        client.register_plugin(dataclasses.replace(loader, **change), name="unfit")


def test_a_worker_without_the_gpu_that_was_asked_for_refuses_the_work(client, loader, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    cuda = dataclasses.replace(loader, loading=loader.loading | {"device": "cuda"})
    with pytest.raises(ConfigError, match=r"device cuda: .*\n  Use --device cpu"):
        client.register_plugin(cuda, name="without a GPU")
    lenient = dataclasses.replace(cuda, loading=cuda.loading | {"fallback": "cpu"})
    client.register_plugin(lenient, name="on the CPU")


def test_a_folder_that_becomes_unusable_is_not_taken_for_a_lost_scheduler(client, root, tiny_weights):
    expected = "out: No such file or directory\n  Make it usable, then use --resume: finished cases are kept."
    with (
        pytest.raises(InpaintingError, match=expected),
        cluster.connect(client.scheduler.address, {"weights": tiny_weights}),
    ):
        list((root / "out").iterdir())
    lost = "lost the scheduler \\(Timed out trying to connect\\)\n  Restart it and use --resume"
    with (
        pytest.raises(InpaintingError, match=lost),
        cluster.connect(client.scheduler.address, {"weights": tiny_weights}),
    ):
        raise OSError("Timed out trying to connect")


def test_the_clients_network_stays_where_it_is_when_workers_have_gpus(root, tiny_weights, monkeypatch):
    plan = Plan(torch.device("cuda"), batch_size=3)
    monkeypatch.setattr(distributed.Client, "register_plugin", lambda *_, **__: None)
    monkeypatch.setattr(distributed.Client, "run", lambda *_, **__: {"tcp://worker": plan})
    machine = Inpainter.load(tiny_weights, device="cpu")
    jobs = CaseFolder(root / "data").jobs(root / "out")
    client = object.__new__(distributed.Client)
    client.status = "closed"  # nothing to close
    workers = cluster.Workers(client, {"weights": tiny_weights}, [])
    assert workers.load(machine, jobs, Options()).plan == plan
    assert next(machine.weights.network.parameters()).device.type == "cpu"


def test_workers_of_a_machine_share_out_its_devices(client, loader):
    with pytest.raises(ConfigError, match="no device named 'first'"):
        client.register_plugin(dataclasses.replace(loader, devices=["first", "second"]), name="first")
    client.register_plugin(dataclasses.replace(loader, devices=["cpu", "second"]), name="second")
    worker = next(iter(client.cluster.workers.values()))
    assert worker.plugins["second"].inpainter.plan.device.type == "cpu"


def test_a_worker_has_as_many_batches_side_by_side_as_threads(client, loader, monkeypatch):
    worker = next(iter(client.cluster.workers.values()))
    monkeypatch.setattr(worker.state, "nthreads", 3)
    client.register_plugin(loader, name="threads")
    assert worker.plugins["threads"].inpainter.plan.concurrent == 3


def test_a_worker_joined_unfit_passes_its_case_on_until_one_is_fit(root, client, loader, monkeypatch):
    worker = next(iter(client.cluster.workers.values()))
    monkeypatch.setitem(worker.plugins, "this run", loader)  # it has not loaded the network
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    case = cases.find(root / "data")[0]
    alone, shared = root / "alone.nii.gz", root / "shared.nii.gz"
    order = cluster.Order("this run", Plan(torch.device("cpu"), batch_size=2), Options(seed=3))
    future = client.submit(cluster._fill, case, shared, order, pure=False)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.5)
    assert not shared.exists()
    client.register_plugin(loader, name="this run")
    noted = future.result(timeout=60)
    expected = fill_case(Inpainter.load(**loader.loading), case, alone, Options(seed=3))
    assert noted["sha256"] == expected["sha256"] == checkpoint.sha256(shared)
