"""Datasets, one file per family: ``Config``, ``load(cfg) -> Task``, ``images(cfg) -> ImageSet``."""
