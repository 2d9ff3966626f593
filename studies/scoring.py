"""Comparison of our scoring with the official package's: scores, time and memory.

usage: python -m studies.scoring --predictions FOLDER --data-path FOLDER [--cases 10]

Each case is scored by both, alternately, each in a separate process that reads the files; memory is the process's peak.
"""

import argparse
import json
import statistics
import subprocess
import sys

OURS = """
from pathlib import Path
from brats_inpainting import evaluate
from brats_inpainting.metrics import score
def scores(case, filled):
    volumes = evaluate.read_volumes(case, {"m": filled})
    return score(volumes.fills["m"], volumes.truth_XYZ, volumes.voided_XYZ, volumes.healthy_XYZ)._asdict()
"""
THEIRS = """
import warnings; warnings.simplefilter("ignore")
from inpainting.challenge_metrics_2023 import compute_image_quality_metrics
from brats_inpainting.evaluate import sibling_path
def scores(case, filled):
    healthy, truth = sibling_path(case, "mask-healthy"), sibling_path(case, "t1n")
    return compute_image_quality_metrics(filled, healthy, truth, case.image)
"""
RUN = """
import json, resource, sys, time
from pathlib import Path
from brats_inpainting.data import cases
data, filled, name = map(Path, sys.argv[1:])
case = next(case for case in cases.find(data) if case.id == str(name))
started = time.perf_counter()
found = scores(case, filled / cases.output_name(case.id))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"scores": found, "seconds": time.perf_counter() - started, "GB": peak}))
"""


def main():
    from pathlib import Path

    from brats_inpainting.data import cases

    parser = argparse.ArgumentParser()
    for name in ("predictions", "data-path"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=10)
    args = parser.parse_args()
    results = {"ours": [], "official": []}
    worst = 0.0
    for case in cases.find(args.data_path)[: args.cases]:
        for name, code in (("ours", OURS), ("official", THEIRS)):
            command = [sys.executable, "-c", code + RUN, args.data_path, args.predictions, case.id]
            output = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
        ours, theirs = (results[name][-1]["scores"] for name in ("ours", "official"))
        difference = max(abs(ours[k] - theirs[k]) / max(1, abs(theirs[k])) for k in ours)
        worst = max(worst, difference)
        print(f"{case.id}: the scores differ by {difference:.1e} at most", flush=True)
    for name, runs in results.items():
        seconds, memory = ([run[key] for run in runs] for key in ("seconds", "GB"))
        print(f"{name:9} median {statistics.median(seconds):6.2f} s a case, at most {max(memory):.2f} GB")
    pairs = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(*results.values(), strict=True)]
    print(f"{statistics.median(pairs):.1f} times faster (median of {len(pairs)} pairs); largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
