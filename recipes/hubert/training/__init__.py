"""Pre-training: configuration, workers, the update, checkpoints, logs (hubert.md 1.4 to 1.8)."""
