"""Audio on disk as training data: manifests, the layouts of known corpora, batches."""
