"""Fills cases with the BraTS orchestrator; runs under the clients' Python, which has the package brats.

usage: orchestrate.py 2023|2025|BraTS23_2 IMAGE DATA OUTPUT [PARAMETERS]

The years are the orchestrator's two ways of calling a container. BraTS23_2 is the paper's own entry, left as it is but
for the image, the permission to run on a CPU, and the folder of PARAMETERS if given; the image must bear the entry's
name behind the last slash, and the weights must lie where the package keeps downloads.
"""

import sys
from pathlib import Path

from brats import Inpainter
from brats.constants import InpaintingAlgorithms
from brats.core import docker
from brats.utils.algorithm_config import AlgorithmData, MetaData, RunArgs
from brats.utils.logging import enable

PAPER = "brainles/brats23_inpainting_domaso"

enable()  # the package is silent otherwise, and its log files stay empty
mode, image = sys.argv[1:3]
data, output = map(Path, sys.argv[3:5])
inpainter = Inpainter(InpaintingAlgorithms.BraTS23_2, force_cpu=True)
if mode == "BraTS23_2":
    assert inpainter.algorithm.run_args.docker_image == PAPER
    inpainter.algorithm.run_args.docker_image = image
    inpainter.algorithm.run_args.cpu_compatible = True
    docker.PARAMETERS_DIR = Path(sys.argv[5]) if sys.argv[5:] else docker.PARAMETERS_DIR
else:
    inpainter.algorithm = AlgorithmData(
        meta=MetaData(
            authors="the developers",
            paper="N/A",
            challenge="Inpainting",
            challenge_manuscript="https://arxiv.org/abs/2305.08992",
            rank="1st",
            year=int(mode),
        ),
        run_args=RunArgs(
            docker_image=image,
            input_name_schema="BraTS-GLI-{id:05d}-000",
            parameters_file=True,
            requires_root=False,
            cpu_compatible=True,
            shm_size="1gb",
        ),
        additional_files=None,
    )

first = sorted(data.iterdir())[0]
inpainter.infer_single(
    t1n=first / f"{first.name}-t1n-voided.nii.gz",
    mask=first / f"{first.name}-mask.nii.gz",
    output_file=output / "single.nii.gz",
    log_file=output / "single.log",
)
if mode != "BraTS23_2":  # a second pass of the big network would show nothing new
    inpainter.infer_batch(data_folder=data, output_folder=output / "batch", log_file=output / "batch.log")
