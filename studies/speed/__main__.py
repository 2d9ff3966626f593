"""``python -m studies.speed``."""

from studies.speed.run import main

if __name__ == "__main__":
    main()
