"""Fill cases with Dask workers that are jobs of a batch system: each worker a job, queued and started one by one.

    pip install 'brats-inpainting[cluster]' dask-jobqueue
    python dask_jobs.py --jobs 16 -- --data-path CASES --output-path FILLED --report-path REPORT
    python dask_jobs.py --kind PBSCluster --jobs 16 --queue long -- --data-path CASES --output-path FILLED

What stands behind ``--`` goes to ``brats-inpainting infer``. The work begins with the first worker; the others join
when the queue lets them, and one that ends is replaced. Start it where the nodes can reach it: in a job of one core, or
on a login node that allows it.
"""

import argparse
import subprocess
import sys

import dask_jobqueue


def main() -> int:
    """Start the workers, fill, and end them; the exit code is that of infer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="SLURMCluster", help="a class of dask_jobqueue: SLURMCluster, PBSCluster …")
    parser.add_argument("--jobs", type=int, default=4, help="workers, each a job")
    parser.add_argument("--cores", type=int, default=4, help="CPU cores of a worker")
    parser.add_argument("--memory", default="4GB", help="memory of a worker")
    parser.add_argument("--walltime", default="12:00:00", help="after it a worker ends, and its case goes to another")
    parser.add_argument("--queue", help="queue, or partition")
    parser.add_argument("--directive", action="append", default=[], help="e.g. --directive=--gres=gpu:1; repeatable")
    parser.add_argument("--show", action="store_true", help="print a worker's job and end")
    parser.add_argument("infer", nargs="*", help="options of infer, behind --")
    args = parser.parse_args()
    with getattr(dask_jobqueue, args.kind)(
        cores=args.cores,
        processes=1,  # all cores of a worker fill one case
        memory=args.memory,
        walltime=args.walltime,
        queue=args.queue,
        job_extra_directives=args.directive,
        scheduler_options={"dashboard_address": ":0"},
    ) as cluster:
        if args.show:
            sys.stdout.write(cluster.job_script())
            return 0
        cluster.adapt(minimum_jobs=args.jobs, maximum_jobs=args.jobs)  # scale() would not replace one that ends
        command = ["brats-inpainting", "infer", "--cluster", cluster.scheduler_address, "--resume", *args.infer]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
