"""Probes without a network: photos in groups, seen through features of known quality."""

import numpy as np

from ssl_retrieval.adaptation.probe import FAMILIES, IDENTITY, Probe
from ssl_retrieval.adaptation.rule import Comparison, Evidence
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import VectorArray

NAMES = [name for family in FAMILIES.values() for name in family]


def probe(
    groups: float, alteration: float = 0.6, num: int = 140, per_group: int = 7, dim: int = 24, seed: int = 0
) -> Probe:
    """Photos ``groups`` times as far apart between groups as within; altered, they move by ``alteration``."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num // per_group + 1, dim))
    within = rng.normal(size=(num, dim))
    photos = groups * centres[np.arange(num) // per_group] + within
    vectors = {IDENTITY: unit(photos)}
    for name in NAMES:
        vectors[name] = unit(photos + alteration * rng.normal(size=photos.shape))
    return Probe(vectors, tuple(map(str, range(num))))


def changed(start: Probe, noise: float, seed: int = 1) -> Probe:
    rng = np.random.default_rng(seed)
    moved = {
        name: unit(vectors + noise * rng.normal(size=vectors.shape) / np.sqrt(vectors.shape[1]))
        for name, vectors in start.vectors.items()
    }
    return Probe(moved, start.ids)


def evidence(start: Probe, adapted: Probe) -> Evidence:
    """What the rule sees of adapted features."""
    comparison = Comparison(start)
    comparison.add("adapted", adapted)
    found = comparison.found["adapted"]
    assert found is not None
    return found


def unit(vectors: np.ndarray) -> VectorArray:
    return l2_normalize(vectors.astype(np.float32))
