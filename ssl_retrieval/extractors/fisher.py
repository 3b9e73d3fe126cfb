"""Fisher vectors: how a mixture of Gaussians would have to change to fit an image's descriptors better.

Perronnin & Dance, CVPR 2007; power normalisation from Perronnin, Sánchez & Mensink, ECCV 2010; 64 Gaussians
over descriptors that PCA reduces to 64 dimensions, and the means alone, from Jégou et al., PAMI 2012.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.local_base import LocalConfig, LocalExtractor, drawn_from, whole_number
from ssl_retrieval.sift import DIM
from ssl_retrieval.vocabulary import fewer_if_short
from ssl_retrieval.whitening import Pca

_PER_GAUSSIAN = 1000
"""Descriptors to learn from, for each Gaussian."""


@dataclass
class Config(LocalConfig):
    """How large the mixture is, and what of it counts.

    Attributes:
        gaussians: Number of Gaussians.
        pca: Dimensions to which descriptors are reduced.
        variances: Whether the gradients by the variances join those by the means: twice the dimensions.
        power: Exponent of ``sign(v) |v|^power``; 1 = none.
    """

    name: str = "fisher"
    gaussians: int = 64
    pca: int = 64
    variances: bool = False
    power: float = 0.5


class Extractor(LocalExtractor):
    """Gradients of the mean log-likelihood of a diagonal mixture, whitened by its Fisher information.

    With ``p(x)`` the posterior of a Gaussian of weight ``w``, over the n descriptors of an image:
    ``1 / (n √w) Σ p(x) (x − μ) / σ`` by its mean, ``1 / (n √(2w)) Σ p(x) ((x − μ)² / σ² − 1)`` by its
    standard deviations.
    """

    cfg: Config
    mean: Tensor
    matrix: Tensor
    weights: Tensor
    means: Tensor
    deviations: Tensor

    def __init__(self, cfg: Config) -> None:
        """Check the options."""
        whole_number("gaussians", cfg.gaussians, 1, 4096)
        whole_number("pca", cfg.pca, 1, DIM)
        if not 0 < cfg.power <= 1:
            raise UserError(f"model.power={cfg.power}: must be above 0, at most 1")
        super().__init__(cfg)
        self.dim = cfg.gaussians * cfg.pca * (2 if cfg.variances else 1)

    def learn_from(self, materials: list[Tensor]) -> dict[str, Tensor]:
        """Learn the PCA (``mean`` [128], ``matrix`` [d, 128]) and the mixture, all float64.

        The mixture is ``weights`` [k], ``means`` and ``deviations`` [k, d].

        Raises:
            UserError: There is a single descriptor.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        drawn = drawn_from(materials, _PER_GAUSSIAN * self.cfg.gaussians, self.cfg.seed).numpy()
        if len(drawn) < 2:
            raise UserError(
                f"fisher: the {len(materials)} images to learn from have a single SIFT keypoint, too few for "
                "a mixture of Gaussians: give others as fit.name=… and fit.root=…"
            )
        pca = Pca(self.cfg.pca).fit(drawn)
        mixture = GaussianMixture(
            fewer_if_short(self.cfg.gaussians, len(drawn), "Gaussians"),
            covariance_type="diag",
            random_state=self.cfg.seed % 2**32,
        )
        with warnings.catch_warnings():
            # A mixture that still creeps after 100 steps serves as well.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(pca.apply(drawn).astype("float64"))
        arrays = {
            "mean": pca.mean,
            "matrix": pca.matrix,
            "weights": mixture.weights_,
            "means": mixture.means_,
            "deviations": mixture.covariances_**0.5,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def learned_dim(self, state: dict[str, Tensor]) -> int:
        """One dimension per mean, and one per variance if these count."""
        return state["means"].numel() * (2 if self.cfg.variances else 1)

    def aggregate(self, descriptors: Tensor) -> Tensor:
        """Make the vector: float32 [n, 128] -> float32 [dim], of length 1."""
        vector = self.gradients((descriptors.double() - self.mean) @ self.matrix.T)
        powered = vector.sign() * vector.abs() ** self.cfg.power
        return functional.normalize(powered, dim=0).float()

    def gradients(self, reduced: Tensor) -> Tensor:
        """Compute the whitened gradients: float64 [n, d] -> [dim], before power and length."""
        posteriors = self.posteriors(reduced)
        num = len(reduced)
        mass, first = posteriors.sum(dim=0)[:, None], posteriors.T @ reduced
        by_means = (first - mass * self.means) / self.deviations / (num * self.weights.sqrt()[:, None])
        if not self.cfg.variances:
            return by_means.flatten()
        second = posteriors.T @ reduced**2 - 2 * self.means * first + mass * self.means**2
        by_deviations = (second / self.deviations**2 - mass) / (num * (2 * self.weights).sqrt()[:, None])
        return torch.cat([by_means.flatten(), by_deviations.flatten()])

    def posteriors(self, reduced: Tensor) -> Tensor:
        """Tell how probably each Gaussian made each descriptor: float64 [n, d] -> [n, k], rows sum to 1."""
        precisions = self.deviations**-2
        squares = (
            reduced**2 @ precisions.T
            - 2 * reduced @ (self.means * precisions).T
            + (self.means**2 * precisions).sum(dim=1)
        )
        return (self.weights.log() - self.deviations.log().sum(dim=1) - squares / 2).softmax(dim=1)
