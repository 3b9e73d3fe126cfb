"""Training objectives, one file each: ``Config`` and ``Method``."""
