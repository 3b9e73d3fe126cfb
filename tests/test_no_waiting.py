"""Within a step nothing asks a GPU for a value: the answer would be waited for, and the GPU idle after it."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from method_makers import IMAGE_SIZE, method_of
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from ssl_retrieval import augment, plugins
from ssl_retrieval.augment import Augment, Noise, Output, View, finish_views, make_views
from ssl_retrieval.lars import LARS

GPU = torch.device("cuda")
EVERYTHING = Augment(blur=0.5, solarize=0.5, affine=0.5)


@pytest.fixture
def no_values() -> Iterator[None]:
    """Tensors that have shapes, types and a device, here one that need not exist, but no values."""
    augment._channels.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    augment._channels.cache_clear()


@pytest.mark.usefixtures("no_values")
def test_this_notices_questions() -> None:
    with pytest.raises(DynamicOutputShapeException):
        torch.rand(4, device=GPU)[torch.rand(4, device=GPU) > 0.5]


@pytest.mark.usefixtures("no_values")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_are_made_without_asking(dtype: torch.dtype) -> None:
    images, samples = torch.empty(8, 3, 64, 48, dtype=torch.uint8, device=GPU), torch.arange(8, device=GPU)
    views: list[View | Noise] = [View(EVERYTHING, 32), Noise(5), View(Augment(interpolation="bicubic"), 48)]
    output = Output(dtype=dtype, memory_format=torch.channels_last)
    made = make_views(images, views, seed=0, step=0, samples=samples, output=output)
    assert [view.device.type for view in made] == ["cuda"] * 3
    assert [view.dtype for view in made] == [dtype, torch.float32, dtype]
    crops = [images[:, :, :side, :side] for side in (32, 48)]
    (finished, *_) = finish_views(crops, views, seed=0, step=0, samples=samples, output=output)
    assert finished.shape == (8, 3, 32, 32)


WAITING = {"ibot": "it picks patches by masks of changing size", "swav": "it looks how full its queue is"}
WAITING |= dict.fromkeys(
    ("arcface", "cosface", "subcenter_arcface", "proxy_nca", "proxy_anchor"),
    "pytorch-metric-learning looks for the classes of a batch",
)
WAITING |= dict.fromkeys(
    ("contrastive", "triplet", "multi_similarity", "supcon", "nt_xent", "pair_contrastive", "pair_triplet"),
    "pytorch-metric-learning lists pairs",
)
"""Methods that still ask, and what for."""


@pytest.mark.parametrize("name", plugins.known("method"))
def test_a_step_is_taken_without_asking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Gradients need a device that torch has: tensors on "meta" have no values either.
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    method = method_of(name).to("meta")
    views = [
        torch.empty(8, view.num, device="meta")
        if isinstance(view, Noise)
        else torch.empty(8, 3, view.size, view.size, device="meta")
        for view in method.views(IMAGE_SIZE)
    ]
    if method.needs_labels:
        views.append(torch.empty(8, dtype=torch.int64, device="meta"))
    if name in WAITING:
        with pytest.raises((NotImplementedError, RuntimeError), match=r"nonzero|item"):
            method(views, 0.1)
        return
    loss, _ = method(views, 0.1)
    loss.backward()
    method.before_update(0.1)
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    LARS([{"params": parameters, "weight_decay": 1e-4}], lr=0.1).step()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    method.after_step(0.2)
