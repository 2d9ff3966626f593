"""The container's entry point: the Typer app, nothing else."""

from brats_inpainting.cli import main

if __name__ == "__main__":
    main()
