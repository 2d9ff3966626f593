"""Seconds from `docker run` to the first denoising step, COUNT (5) times: first_step.py IMAGE DATA [COUNT]"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

image, data = sys.argv[1], Path(sys.argv[2]).resolve()
for _ in range(int(sys.argv[3]) if sys.argv[3:] else 5):
    with tempfile.TemporaryDirectory() as output:
        owner = f"{os.getuid()}:{os.getgid()}"
        command = ["docker", "run", "--rm", "--network=none", f"--user={owner}", f"-v={data}:/input:ro"]
        command += [f"-v={output}:/output", image, "-v", "infer", "--input-dir=/input", "--output-dir=/output"]
        started = time.monotonic()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in run.stdout:  # the first batch is reported when it is done, with the seconds that it took
            if batch := re.match(r"\d+ windows of .* in ([\d.]+) s", line):
                sys.stdout.write(f"{time.monotonic() - started - float(batch[1]):.1f} s\n")
                break
        else:
            sys.exit("the container reported no batch")
        run.wait()
