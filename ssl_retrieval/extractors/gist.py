"""GIST, the spatial envelope: which frequencies and directions are where (Oliva & Torralba, 2001)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import fft2, ifft2
from torch import Tensor, nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import IntArray, VectorArray

_NUM_SCALES = 4
_NUM_ORIENTATIONS = 8

_STEPS = (1, 2, 4, 4)
"""How many pixels apart the response is needed at each scale, given the width of its pass band."""

_PREFILTER_CYCLES = 4
"""Per image: what is slower counts as illumination."""

_PREFILTER_MARGIN = 5


@dataclass
class Config:
    """What is looked at.

    Attributes:
        size: Side in pixels to which the image is squeezed.
        grid: Cells per side in which the response is averaged; ``size`` must be a multiple of ``4·grid``.
    """

    name: str = "gist"
    size: int = 128
    grid: int = 4


class Extractor(nn.Module):
    """Mean amplitudes of 32 Gabor filters in each cell: ``32·grid²`` values, 512 by default.

    After Oliva & Torralba (*Modeling the shape of the scene: a holistic representation of the spatial
    envelope*, 2001), with the constants of the authors' own program LMgist: grey levels stretched to
    0..255, logarithm, whitening and local contrast normalisation (`prefilter`), then the bank of
    `transfer_functions` on the image mirrored at its edges.

    The image is squeezed to a square as Douze et al. did for image search (*Evaluation of GIST descriptors
    for web-scale image search*, 2009); the authors cut out its centre, which loses what is at the ends. A
    uniform image gives the zero vector.
    """

    family = "hand-crafted"

    def __init__(self, cfg: Config) -> None:
        """Check the sizes and make the filters."""
        super().__init__()
        if not 1 <= cfg.grid <= 16:
            raise UserError(f"model.grid={cfg.grid}: GIST needs 1 to 16 cells per side")
        if not 32 <= cfg.size <= 512 or cfg.size % 16 or cfg.size % (4 * cfg.grid):
            raise UserError(
                f"model.size={cfg.size}: GIST needs a multiple of 16 and of 4 times model.grid={cfg.grid} "
                "from 32 to 512"
            )
        self.cfg = cfg
        self.dim = _NUM_SCALES * _NUM_ORIENTATIONS * cfg.grid**2
        self.weights_digest = "none"
        self._border = cfg.size // 4
        self._bands = _bands(cfg.size + 2 * self._border)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the vector: RGB image -> float32 [dim], from fine scales to coarse, then filter, then cell."""
        small = image.resize((self.cfg.size, self.cfg.size), Image.Resampling.BILINEAR)
        grey = np.asarray(small, dtype=np.float32).mean(axis=2)
        if grey.min() == grey.max():
            return torch.zeros(self.dim)
        spectrum = fft2(np.pad(prefilter(grey), self._border, mode="symmetric"))
        means = [self._cell_means(_amplitudes(spectrum, band), band.step) for band in self._bands]
        return torch.from_numpy(np.concatenate(means))

    def forward(self, batch: Tensor) -> Tensor:
        """Give the vectors back: float32 [B, dim]."""
        return batch

    def _cell_means(self, amplitudes: VectorArray, step: int) -> VectorArray:
        border, grid = self._border // step, self.cfg.grid
        inner = amplitudes[:, border:-border, border:-border]
        side = inner.shape[1] // grid
        return inner.reshape(len(inner), grid, side, grid, side).mean(axis=(2, 4)).ravel()


def prefilter(grey: VectorArray) -> VectorArray:
    """Take away illumination and even out contrast.

    The logarithm loses its low frequencies, and what remains is divided by its own local spread plus 0.2.

    Args:
        grey: float32 [N, N], even N, at least two different values.

    Returns:
        float32 [N, N], around 0.
    """
    stretched = (grey - grey.min()) * (255 / (grey.max() - grey.min()))
    padded = np.pad(np.log1p(stretched), _PREFILTER_MARGIN, mode="symmetric")
    cycles = np.fft.fftfreq(len(padded), 1 / len(padded))
    falloff = np.exp(-((cycles / _PREFILTER_CYCLES) ** 2) * np.log(2))
    low_pass = np.outer(falloff, falloff).astype(np.float32)
    details = padded - ifft2(fft2(padded) * low_pass).real
    spread = np.sqrt(np.abs(ifft2(fft2(details**2) * low_pass)))
    inner = slice(_PREFILTER_MARGIN, -_PREFILTER_MARGIN)
    return (details / (0.2 + spread))[inner, inner]


def transfer_functions(size: int) -> NDArray[np.float64]:
    """Make the bank of Gabor filters in the frequency plane.

    A filter passes frequencies around 0.3 / 1.85^scale cycles per pixel, from one side only, so that the
    response is complex and its absolute value is the local amplitude. Filter j of a scale has its centre at
    the angle −j·π/8: filter 0 answers to vertical stripes.

    Args:
        size: N, side of the image.

    Returns:
        float64 [4, 8, N, N] in [0, 1], zero frequency at index 0.
    """
    frequencies = np.fft.fftfreq(size)
    radius = np.hypot(frequencies[:, None], frequencies)
    angle = np.arctan2(frequencies[:, None], frequencies)
    bank = np.empty((_NUM_SCALES, _NUM_ORIENTATIONS, size, size))
    for scale, centre in enumerate(_centres()):
        for j in range(_NUM_ORIENTATIONS):
            turned = np.angle(np.exp(1j * (angle + j * np.pi / _NUM_ORIENTATIONS)))
            bank[scale, j] = np.exp(-3.5 * (radius / centre - 1) ** 2 - 2 * np.pi * turned**2)
    return bank


class _Band(NamedTuple):
    """The filters of one scale: [8, M, 1] rows and [8, 1, M] columns of the spectrum, [8, M, M] factors."""

    rows: IntArray
    columns: IntArray
    gains: NDArray[np.complex64]
    step: int


def _bands(size: int) -> list[_Band]:
    """Cut out of the spectrum what each filter passes.

    The amplitude of a response does not change when its band is moved to frequency 0, and there it needs
    fewer samples: half the time and the means differ by some thousandths.
    """
    bands = []
    angles = -np.pi * np.arange(_NUM_ORIENTATIONS) / _NUM_ORIENTATIONS
    for filters, centre, step in zip(transfer_functions(size), _centres(), _STEPS, strict=True):
        offsets = np.fft.fftfreq(size // step, step / size).round().astype(np.int64)
        # With all frequencies there is nothing to move.
        centres = np.rint(centre * size * np.stack([np.sin(angles), np.cos(angles)])) * (step > 1)
        rows, columns = (centres.astype(np.int64)[:, :, None] + offsets) % size
        # Moves each sample to the middle of the pixels for which it stands.
        shift = np.exp(1j * np.pi * (step - 1) / size * offsets)
        which = np.arange(_NUM_ORIENTATIONS)[:, None, None]
        gains = filters[which, rows[:, :, None], columns[:, None, :]] * np.outer(shift, shift) / step**2
        bands.append(_Band(rows[:, :, None], columns[:, None, :], gains.astype(np.complex64), step))
    return bands


def _centres() -> list[float]:
    return [0.3 / 1.85**scale for scale in range(_NUM_SCALES)]


def _amplitudes(spectrum: NDArray[np.complex64], band: _Band) -> VectorArray:
    return np.abs(ifft2(spectrum[band.rows, band.columns] * band.gains))
