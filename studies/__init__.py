"""Studies of speed, memory and quality: python -m studies.NAME, from the root of a clone."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does; OpenMP reads it when torch is imported
