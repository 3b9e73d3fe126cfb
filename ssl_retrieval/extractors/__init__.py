"""Feature extractors, one file per family: ``Config`` and ``Extractor``."""
