"""MAE against a loop over images and patches, and what its gradients reach."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from ssl_retrieval import backbones
from ssl_retrieval.augment import Augment, Noise, View
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import mae
from ssl_retrieval.methods.mae import Config, Method

SIZE, PATCH = 32, 8
SMALL = {"decoder_dim": 32, "decoder_depth": 2}


def make(backbone: Any = None, **settings: Any) -> Method:
    if backbone is None:
        torch.manual_seed(1)
        size: dict[str, Any] = {"img_size": SIZE, "patch_size": PATCH, "dynamic_img_size": False}
        backbone = timm.create_model("test_vit", num_classes=0, **size)
    torch.manual_seed(0)
    method = Method(fill_method(mae, Config(**SMALL | settings), Facts()), backbone)
    method.set_mode("train")
    return method


def averaging() -> Any:
    """Give a ViT that pools the mean of its patches, then normalises, and takes views of any size."""
    torch.manual_seed(1)
    size: dict[str, Any] = {"img_size": SIZE, "patch_size": PATCH, "dynamic_img_size": True}
    return timm.create_model("test_vit", num_classes=0, global_pool="avg", reg_tokens=2, **size)


@pytest.fixture
def views() -> list[Tensor]:
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    return [images, uniform(0, 0, torch.arange(3), 1, 16)]


def patch_of(image: Tensor, number: int) -> Tensor:
    """Cut a patch out: [PATCH, PATCH, 3], as the predictions are laid out."""
    row, column = divmod(number, SIZE // PATCH)
    rows = slice(row * PATCH, (row + 1) * PATCH)
    return image[:, rows, column * PATCH : (column + 1) * PATCH].permute(1, 2, 0)


def naive(method: Method, images: Tensor, hidden: list[list[int]], norm_pix: bool) -> float:
    """Section 3 of the paper, image by image, with timm's parts of the network."""
    vit: Any = method.encoder
    decoder = method.decoder
    prefix, errors = vit.num_prefix_tokens, []
    for image, away in zip(images, hidden, strict=True):
        tokens = vit._pos_embed(vit.patch_embed(image[None]))[0]
        visible = [i for i in range(16) if i not in away]
        kept = torch.stack([*tokens[:prefix], *(tokens[prefix + i] for i in visible)])[None]
        encoded = method.embed(vit.norm(vit.blocks(vit.norm_pre(kept))))[0]
        full = [*encoded[:prefix]]
        for i in range(16):
            full.append(encoded[prefix + visible.index(i)] if i in visible else decoder.mask_token[0, 0])
        decoded = decoder.norm(decoder.blocks(torch.stack(full)[None] + decoder.pos_embed))
        guesses = method.predict(decoded)[0, prefix:]
        for i in away:
            wanted = patch_of(image, i).flatten()
            if norm_pix:
                wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
            errors.append(float((guesses[i] - wanted).square().mean()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("average", [True, False])
@torch.no_grad()
def test_the_loss_is_the_papers(norm_pix: bool, average: bool, views: list[Tensor]) -> None:
    method = make(averaging() if average else None, norm_pix=norm_pix)
    images, noise = views
    hidden = [sorted(row.argsort()[:12].tolist()) for row in noise]
    loss = method.step(views, 0.0).loss.item()
    assert loss == pytest.approx(naive(method, images, hidden, norm_pix), rel=1e-4)


def test_normalised_patches_have_mean_0_and_variance_1_and_plain_ones_are_0() -> None:
    patches = torch.stack([torch.randn(192) * 3 + 5, torch.full((192,), 0.7)])
    normal = mae.normalise(patches)
    assert float(normal[0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(normal[0].var()) == pytest.approx(1, abs=1e-4)
    assert normal[1].abs().max() == 0


def test_the_decoder_knows_places_by_sines_and_cosines() -> None:
    positions = make().decoder.pos_embed
    assert not positions.requires_grad
    assert positions.shape == (1, 17, 32)
    assert not positions[0, 0].any(), "the class token has no place"
    for number in (0, 5, 14):
        row, column = divmod(number, 4)
        expected = []
        for place in (column, row):
            angles = [place / 10000 ** (i / 8) for i in range(8)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        torch.testing.assert_close(positions[0, 1 + number], torch.tensor(expected), atol=1e-5, rtol=0)


def test_guesses_do_not_depend_on_hidden_pixels_and_the_loss_not_on_visible_guesses(
    views: list[Tensor],
) -> None:
    method = make()
    guesses: list[Tensor] = []
    method.predict.register_forward_hook(lambda _, __, output: guesses.append(output))
    images, noise = views
    changed = images.clone()
    for image, row in zip(changed, noise, strict=True):
        for number in row.argsort()[:12].tolist():
            patch_of(image, number).add_(torch.randn(PATCH, PATCH, 3))
    losses = [method.step([view, noise], 0.0).loss.item() for view in (images, changed)]
    assert losses[0] != losses[1]
    assert torch.equal(guesses[0], guesses[1])
    assert guesses[0].shape == (3 * 12, 3 * PATCH**2), "only hidden patches are guessed"


@pytest.mark.parametrize("average", [True, False])
def test_gradients_reach_every_trained_parameter(average: bool, views: list[Tensor]) -> None:
    method = make(averaging() if average else None)
    method.step(views, 0.0).loss.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    frozen = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
    after_pooling = {"encoder.fc_norm.weight", "encoder.fc_norm.bias"} if average else set()
    assert frozen == after_pooling | {"decoder.pos_embed"}


def test_the_loss_is_fp32_under_bf16(views: list[Tensor]) -> None:
    method = make()
    guesses: list[Tensor] = []
    method.predict.register_forward_hook(lambda _, __, output: guesses.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views, 0.0).loss
    assert guesses[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    patches = [
        patch_of(image, number).flatten()
        for image, row in zip(*views, strict=True)
        for number in sorted(row.argsort()[:12].tolist())
    ]
    wanted = torch.stack([(patch - patch.mean()) / (patch.var() + 1e-6).sqrt() for patch in patches])
    expected = torch.nn.functional.mse_loss(guesses[0].float(), wanted)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_encoder_is_the_backbone_itself_and_stored_once(views: list[Tensor]) -> None:
    backbone = backbones.make("test_vit", image_size=SIZE, patch_size=PATCH, seed=1)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    method = make(backbone)
    method.step(views, 0.0)
    assert method.encoder is backbone
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    stored = [tensor.data_ptr() for tensor in method.state_dict().values()]
    assert len(stored) == len(set(stored))
    assert method.networks() == {"student": backbone}


def test_one_view_by_crop_and_flip_and_a_number_per_patch() -> None:
    view, noise = make().views(SIZE)
    assert isinstance(view, View)
    assert (view.size, view.augment.crop_min, view.augment.flip) == (SIZE, 0.2, 0.5)
    others = ("jitter", "grayscale", "blur", "solarize", "affine")
    assert all(getattr(view.augment, name) == 0 for name in others)
    assert noise == Noise(16)


def test_fewer_images_get_a_smaller_decoder() -> None:
    sizes = []
    for images in (5_000, 100_000, 1_280_000):
        chosen = mae.defaults(Facts(num_images=images, transformer=True))
        sizes.append((chosen["method.decoder_dim"][0], chosen["method.decoder_depth"][0]))
    assert sizes == [(128, 2), (256, 4), (512, 8)]


def test_the_recipe_is_the_papers_unless_weights_were_learned() -> None:
    names = ("name", "lr", "scale", "weight_decay", "beta2", "warmup")
    for pretrained, expected in (
        (False, ("adamw", 1.5e-4, "linear", 0.05, 0.95, 40 / 800)),
        (True, ("adamw", 3e-4, "none", 1e-4, 0.95, 40 / 800)),
    ):
        chosen = mae.defaults(Facts(transformer=True, pretrained=pretrained))
        assert tuple(chosen[f"optimizer.{name}"][0] for name in names) == expected


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"mask_ratio": 0.99}, "method.mask_ratio=0.99 hides 16 of 16"),
        ({"mask_ratio": 0.01}, "method.mask_ratio=0.01 hides 0 of 16"),
        ({"decoder_dim": 48}, "method.decoder_dim=48"),
        ({"decoder_depth": 0}, "decoder_depth=0"),
        ({"augment": Augment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)


def test_networks_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match=r"method.name=mae masks patches.*ResNet.*model.name"):
        make(backbones.make("resnet10t"))
    with pytest.raises(UserError, match=r"model.image_size=32 makes 1 patches.*model.patch_size"):
        make(timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=32))
    with pytest.raises(UserError, match=r"model.image_size=64: the network was built for 32 px"):
        make(averaging()).views(64)
