"""A run from its options to its last checkpoint: loop, stages, folder, states, history, signals."""
