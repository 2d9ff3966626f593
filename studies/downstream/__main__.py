"""``python -m studies.downstream``."""

from studies.downstream.run import main

if __name__ == "__main__":
    main()
