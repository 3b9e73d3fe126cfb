"""RootSIFT: keypoints and descriptors of one image (Lowe, 2004; Arandjelović & Zisserman, CVPR 2012)."""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_retrieval.types import VectorArray

ByteArray = NDArray[np.uint8]

DIM = 128
"""Values of a descriptor: 4 × 4 cells of 8 directions."""

_LEAST_SIDE = 8
"""OpenCV leaves a margin of 5 pixels at each border of the doubled image: nothing smaller has a keypoint."""

# Images are handled side by side, in threads or processes: threads of OpenCV's own would stand in each
# other's way, and a process that is forked does not inherit them, so that it would wait for ever.
cv2.setNumThreads(1)


def sift(
    image: Image.Image,
    *,
    max_keypoints: int = 1000,
    contrast_threshold: float = 0.04,
    min_side: int = 128,
    max_side: int = 1024,
) -> ByteArray:
    """Describe the strongest keypoints of an image.

    A small image is enlarged first until its short side is ``min_side``: SIFT finds next to nothing within
    some ten pixels of a border, which in a picture of 32 pixels is nearly all of it. A large one is reduced
    until its long side is ``max_side``, which goes before.

    Args:
        image: Any PIL image; its grey values count.
        max_keypoints: At most so many, those of the highest contrast.
        contrast_threshold: Keypoints of lower contrast are dropped (OpenCV's ``contrastThreshold``).
        min_side: Short side in pixels to which smaller images are enlarged.
        max_side: Long side in pixels to which larger images are reduced.

    Returns:
        uint8 [n, 128], strongest first; n = 0 for an image without a keypoint. OpenCV rounds the values of a
        descriptor to whole numbers of 0 to 255, so nothing is lost.

    >>> sift(Image.new("RGB", (40, 30), "grey")).shape
    (0, 128)
    """
    small = sized(image.convert("L"), min_side, max_side)
    return sift_with_places(small, max_keypoints, contrast_threshold)[1]


def sift_with_places(
    image: Image.Image, max_keypoints: int, contrast_threshold: float = 0.04
) -> tuple[VectorArray, ByteArray]:
    """Find and describe the strongest keypoints of an image as it is.

    Args:
        image: Grey.
        max_keypoints: See `sift`.
        contrast_threshold: See `sift`.

    Returns:
        Places in pixels, x before y: float32 [n, 2]; and descriptors as those of `sift`.
    """
    nothing = np.empty((0, 2), np.float32), np.empty((0, DIM), np.uint8)
    grey = np.asarray(image)
    if min(grey.shape) < _LEAST_SIDE:
        return nothing
    detector = cv2.SIFT.create(nfeatures=max_keypoints, contrastThreshold=contrast_threshold)
    keypoints, descriptors = detector.detectAndCompute(grey, None)
    if descriptors is None:
        return nothing
    # OpenCV keeps all that are as strong as the last one. A place with several directions has as many equally
    # strong keypoints: their order is settled too.
    order = np.array([(k.angle, k.size, *k.pt, -k.response) for k in keypoints])
    strongest = np.lexsort(order.T)[:max_keypoints]
    places = np.array([k.pt for k in keypoints], np.float32)
    return places[strongest], descriptors[strongest].astype(np.uint8)


def root_sift(descriptors: ByteArray) -> VectorArray:
    """Divide each descriptor by its sum and take the square root, so that dot products compare histograms.

    The dot product of two results is the Hellinger kernel of the two SIFT histograms.

    Args:
        descriptors: uint8 [n, 128].

    Returns:
        float32 [n, 128], rows of length 1; a row of zeros stays zero.

    >>> root_sift(np.array([[4, 0, 12]], np.uint8)).round(4).tolist()
    [[0.5, 0.0, 0.8659999966621399]]
    """
    sums = descriptors.sum(axis=1, keepdims=True, dtype=np.float32)
    return np.sqrt(descriptors / np.maximum(sums, 1))


def sized(image: Image.Image, min_side: int, max_side: int) -> Image.Image:
    """Resize an image as `sift` does: sides in pixels, proportions kept."""
    width, height = image.size
    scale = min(max(1.0, min_side / min(width, height)), max_side / max(width, height))
    if scale == 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)
