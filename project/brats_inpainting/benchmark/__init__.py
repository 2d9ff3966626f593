"""Speed and memory, always beside a measured limit and in turns with others in the same run."""
