"""Settings that depend on the data: what a config leaves open is chosen here, with a reason in words."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from ssl_retrieval.types import Choices

Value = TypeVar("Value")
Config = TypeVar("Config")

SMALL, LARGE = 20_000, 1_280_000
"""Numbers of images between which settings are interpolated: a small set, and ImageNet."""


@dataclass(frozen=True)
class Facts:
    """What defaults depend on.

    Attributes:
        num_images: Readable training images.
        batch_size: Images per step, over all processes.
        image_size: Side of the views in pixels.
        pretrained: Whether training starts from learned weights.
        transformer: Whether the network is a ViT.
        num_steps: Steps of the whole run; known once epochs are.
        num_classes: Classes in the training labels, for methods that get them.
        own_labels: Whether the run makes its labels itself.
    """

    num_images: int = 50_000
    batch_size: int = 256
    image_size: int = 32
    pretrained: bool = False
    transformer: bool = False
    num_steps: int = 10_000
    num_classes: int = 10
    own_labels: bool = False

    @property
    def epochs(self) -> float:
        """Give the passes over the images."""
        return self.num_steps * self.batch_size / self.num_images

    def between(self, small: float, large: float) -> float:
        """Interpolate by the logarithm of the number of images.

        >>> [round(Facts(n).between(0.99, 0.996), 4) for n in (5_000, 160_000, 10_000_000)]
        [0.99, 0.993, 0.996]
        """
        share = math.log(max(self.num_images, 1) / SMALL) / math.log(LARGE / SMALL)
        return small + (large - small) * min(1.0, max(0.0, share))

    def step_limit(self, large: int, by_images: dict[int, int]) -> int:
        """Give the value of the first bound that is not below the number of images, else ``large``.

        >>> Facts(50_000).step_limit(65536, {20_000: 1024, 50_000: 2048})
        2048
        """
        return next((value for bound, value in by_images.items() if self.num_images <= bound), large)

    def momentum(self, usual: float) -> float:
        """Give the momentum that a teacher starts with, lower than usual when there are few steps.

        In few steps the teacher must still leave its start behind. Along a cosine up to 1, what is left of
        its first weights at the end is about exp(-(1 - momentum) · steps / 2): from 27 steps on at most
        e⁻⁴, a fiftieth.

        Args:
            usual: The momentum for trainings that are long enough.

        >>> [Facts(num_steps=steps).momentum(0.996) for steps in (10, 200, 1000, 10_000)]
        [0.7, 0.96, 0.992, 0.996]
        """
        return round(min(usual, 1 - min(0.3, 8 / self.num_steps)), 5)


def common(facts: Facts) -> Choices:
    """Choose what every method shares: the number of epochs.

    From random weights small sets need many passes: about 400 up to 20,000 images, 100 at a million (lightly
    and solo-learn publish 200 to 1000 for the 50,000 images of CIFAR-10). From learned weights a few are
    enough, and more of them forget what was learned: about 30,000 images seen, between 1 and 20 passes.
    """
    images = f"{facts.num_images:,} images"
    if facts.pretrained:
        passes = min(20, max(1, round(30_000 / facts.num_images)))
        return {"epochs": (passes, f"{images} from learned weights: about 30,000 seen are enough")}
    return {"epochs": (round(facts.between(400, 100)), f"{images} from random weights")}


def optimizer(why: str, name: str, lr: float, scale: str, weight_decay: float) -> Choices:
    """Give an optimizer with its four main settings, all for one reason."""
    values = {"name": name, "lr": lr, "scale": scale, "weight_decay": weight_decay}
    return {f"optimizer.{key}": (value, why) for key, value in values.items()}


def gentle() -> Choices:
    """Give the optimizer for going on from learned weights: there is more to lose than to win."""
    return optimizer("gentle, for learned weights", "adamw", 3e-4, "none", 1e-4)


def cifar() -> Choices:
    """Give the optimizer of lightly's benchmarks on CIFAR-10, for small images."""
    return optimizer("as lightly's benchmarks on CIFAR-10", "sgd", 0.12, "linear", 5e-4)


def given(value: Value | None) -> Value:
    """Insist that a setting was filled in before it is used."""
    assert value is not None, "a setting was left open: call defaults.fill first"
    return value


def fill(cfg: Config, choices: Choices) -> tuple[Config, Choices]:
    """Put choices where a config says None.

    Args:
        cfg: A config object.
        choices: Dotted key -> (value, reason).

    Returns:
        A filled copy, and the choices that were needed.
    """
    used = {}
    for key, (value, reason) in choices.items():
        cfg, changed = _put(cfg, key.split("."), value)
        if changed:
            used[key] = (value, reason)
    return cfg, used


def fill_method(module: Any, cfg: Any, facts: Facts) -> Any:
    """Fill a method's config alone, for use without the training loop.

    Args:
        module: A file of ``ssl_retrieval.methods``.
        cfg: Its ``Config``.
        facts: What the defaults depend on.
    """
    own = {key.removeprefix("method."): choice for key, choice in module.defaults(facts).items()}
    return fill(cfg, own)[0]


def _put(cfg: Any, path: list[str], value: Any) -> tuple[Any, bool]:
    name, *rest = path
    if not hasattr(cfg, name):
        return cfg, False
    old = getattr(cfg, name)
    if rest:
        new, changed = _put(old, rest, value)
    else:
        new, changed = (value, True) if old is None else (old, False)
    return (dataclasses.replace(cfg, **{name: new}), True) if changed else (cfg, False)
