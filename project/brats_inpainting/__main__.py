"""``python -m brats_inpainting``."""

from brats_inpainting.cli import main

main()
