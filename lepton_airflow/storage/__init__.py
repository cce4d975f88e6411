"""Datasets in encrypted, erasure-coded shards over several storage nodes: some nodes may be lost, and none can read anything."""
