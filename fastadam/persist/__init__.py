"""Files: checkpoints, and state that is mapped from a file. Loaded when the first of them is asked for."""
