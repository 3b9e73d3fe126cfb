"""Self-supervised image embeddings and offline baselines in one retrieval harness."""

__version__ = "0.1.0"
