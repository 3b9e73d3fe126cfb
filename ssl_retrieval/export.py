"""A trained encoder for other programs: a folder that timm loads, or a state dict, and a card beside it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn

from ssl_retrieval import __version__, backbones, checkpoint
from ssl_retrieval.atomic import require_writable
from ssl_retrieval.checkpoint import Card
from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.weight_interpolation import interpolated

FORMATS = ("timm", "torchvision", "plain")

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Networks whose layers and key names are the same in timm and torchvision."""


def export(source: Path, to: Path, format: str = "timm", interpolate: float = 1.0) -> Path:
    """Write an encoder in a form that needs nothing of ours.

    Beside the weights stand ``README.md``, with the code that loads them, and ``card.json``: recipe,
    fingerprint of the data, seeds, scores.

    Args:
        source: A ``.safetensors`` checkpoint of ours, or the folder of a run.
        to: Folder to write, whole or not at all; an earlier export there is replaced.
        format: ``timm`` for ``timm.create_model("local-dir:…", pretrained=True)``, ``torchvision`` for
            the ``load_state_dict`` of a torchvision ResNet, ``plain`` for a state dict in timm's names.
        interpolate: Share of the trained weights; the rest is the start's, as by ``anchor.interpolate``.

    Returns:
        The folder.

    Raises:
        UserError: Nothing to export, a format that cannot hold the network, a folder in use, or no start to
            interpolate with.
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r}: one of {', '.join(FORMATS)}")
    source, to = source.expanduser(), to.expanduser().resolve()
    file = source / "checkpoint.safetensors" if source.is_dir() else source
    _require_format(checkpoint.read_card(file), format)
    _require_free(to)
    model, card, spec = checkpoint.load(file)
    if interpolate != 1:
        model, card = _nearer_to_start(model, card, spec, file, interpolate)
    if card.head and (card.head["dim"] or card.head["pool"] != "model"):
        say(
            f"{file}: exported without the head ({card.head}): programs of others know the network alone; "
            "here model.name=checkpoint embeds with it"
        )
    with _whole_folder(to) as folder:
        if format == "timm":
            _write_timm(model, card, spec, folder)
            code = [
                "import timm",
                "",
                f'model = timm.create_model("local-dir:{to.name}", pretrained=True, num_classes=0).eval()',
                "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            ]
        else:
            name = f"{_architecture(card)}.pth"
            torch.save(model.state_dict(), folder / name)
            code = _loading_code(model, card, spec, format, f"{to.name}/{name}")
        files = sorted(path.name for path in folder.iterdir())
        facts = _facts(model, card, spec) | {"format": format, "files": [*files, "README.md", "card.json"]}
        (folder / "card.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")
        readme = _readme(card, spec, code, backbones.feature_dim(model))
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return to


def _nearer_to_start(
    trained: nn.Module, card: Card, spec: InputSpec, file: Path, share: float
) -> tuple[nn.Module, Card]:
    """Interpolate with the weights that training began with; the scores were those of the trained ones."""
    if not 0 < share < 1:
        raise UserError(f"interpolate={share}: must be above 0 and at most 1 (as trained)")
    if card.start in ("", "random"):
        raise UserError(f"{file}: began with {card.start or 'unknown'} weights: leave interpolate out")
    if "interpolate" in card.extra:
        raise UserError(
            f"{file}: was interpolated by anchor.interpolate={card.extra['interpolate']}: leave interpolate "
            "out"
        )
    start = backbones.make(
        card.backbone,
        card.start,
        image_size=spec.size,
        stem=card.stem,
        patch_size=card.patch_size,
        dynamic_size=card.dynamic_size,
    )
    if card.extra.get("start_digest") not in (None, backbones.weights_digest(start)):
        raise UserError(f"{file}: {card.start!r} holds other weights now than those that training began with")
    extra = card.extra | {"interpolate": share}
    return interpolated(start, trained, share), replace(card, extra=extra, scores={})


def _architecture(card: Card) -> str:
    return card.backbone.partition(".")[0]


def _require_format(card: Card, format: str) -> None:
    has_twin = _architecture(card) in TORCHVISION
    if format == "torchvision" and not has_twin:
        raise UserError(
            f"format=torchvision holds {', '.join(TORCHVISION)}, not {card.backbone!r}: use format=timm or "
            "format=plain"
        )
    if format == "timm" and card.stem == "small":
        raise UserError(
            f"format=timm cannot say that {card.backbone!r} has the small stem: use "
            f"format={'torchvision' if has_twin else 'plain'}"
        )


def _require_free(to: Path) -> None:
    """Refuse to replace anything but an export to which nothing was added."""
    require_writable(to)
    require_writable(to.parent)
    if not to.is_dir():
        return
    try:
        ours = set(json.loads((to / "card.json").read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    others = sorted({path.name for path in to.iterdir()} - ours)
    if others:
        raise UserError(f"{to} holds files that no export wrote ({others[0]}): give a new folder")


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; on success it takes its place."""
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.iterdir():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_timm(model: Any, card: Card, spec: InputSpec, folder: Path) -> None:
    own = model.pretrained_cfg
    # What else stands there (tag, licence, papers, labels) is about weights that these are not.
    about_the_network = ("architecture", "first_conv", "classifier", "fixed_input_size")
    model.pretrained_cfg = {key: own[key] for key in about_the_network} | {
        "num_classes": 0,
        "input_size": [3, spec.size, spec.size],
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop,
        "crop_mode": "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
    timm.models.save_for_hf(
        model, str(folder), model_args=_arguments(model, card, spec), safe_serialization=True
    )
    # timm rewrites the key names of some families while it loads; better to learn of it here than there.
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    except RuntimeError as error:
        raise UserError(
            f"timm {timm.__version__} cannot load {card.backbone!r} from a folder: use format=plain"
        ) from error
    assert backbones.weights_digest(loaded) == backbones.weights_digest(model)


def _arguments(model: nn.Module, card: Card, spec: InputSpec) -> dict[str, Any]:
    """Give what timm needs to be told beside the name."""
    fixed: Any = model.pretrained_cfg
    arguments: dict[str, Any] = {"num_classes": 0}
    if fixed["fixed_input_size"]:
        arguments["img_size"] = spec.size
        if card.dynamic_size:
            arguments["dynamic_img_size"] = True
    if card.patch_size is not None:
        arguments["patch_size"] = card.patch_size
    return arguments


def _loading_code(model: nn.Module, card: Card, spec: InputSpec, format: str, file: str) -> list[str]:
    """Write the lines of Python that load a state dict."""
    name = _architecture(card)
    weights = f'torch.load("{file}", weights_only=True)'
    if format == "torchvision":
        return [
            "import torch",
            "import torchvision",
            "",
            f"model = torchvision.models.{name}()",
            *_stem_code(model, card),
            f"model.load_state_dict({weights}, strict=False)  # all but fc, the classifier",
            "model.fc = torch.nn.Identity()",
            "model.eval()",
        ]
    arguments = "".join(f", {key}={value!r}" for key, value in _arguments(model, card, spec).items())
    return [
        "import timm",
        "import torch",
        "",
        f'model = timm.create_model("{name}"{arguments})',
        *_stem_code(model, card),
        f"model.load_state_dict({weights})",
        "model.eval()",
    ]


def _stem_code(model: nn.Module, card: Card) -> list[str]:
    if card.stem != "small":
        return []
    first: Any = model.pretrained_cfg["first_conv"]  # type: ignore[index]
    conv: Any = model.get_submodule(first)
    with torch.device("meta"):
        standard: Any = timm.create_model(_architecture(card)).get_submodule(first)
    if standard.kernel_size == conv.kernel_size:
        code = [f'model.get_submodule("{first}").stride = (1, 1)']
    else:
        layer = f"torch.nn.Conv2d({conv.in_channels}, {conv.out_channels}, 3, 1, 1, bias=False)"
        code = [f'model.set_submodule("{first}", {layer})']
    return [*code, "model.maxpool = torch.nn.Identity()"] if hasattr(model, "maxpool") else code


def _facts(model: nn.Module, card: Card, spec: InputSpec) -> dict[str, Any]:
    stored = asdict(card)
    return {
        "backbone": card.backbone,
        "dim": backbones.feature_dim(model),
        "input": spec.to_dict(),
        "seeds": {"run": stored.pop("seed")},
        **stored,
        "weights_digest": backbones.weights_digest(model),
        "versions": {"ssl_retrieval": __version__, "torch": torch.__version__, "timm": timm.__version__},
    }


def _readme(card: Card, spec: InputSpec, code: list[str], dim: int) -> str:
    short = max(spec.size, int(spec.size / spec.crop))
    recipe = (
        yaml.safe_dump(card.recipe, sort_keys=False, allow_unicode=True) if card.recipe else "not recorded\n"
    )
    scores = [f"| {name} | {value:.4g} |" for name, value in card.scores.items()]
    parts = [
        f"# {card.backbone}, trained {_how(card)} ({card.method or 'method not recorded'})",
        f"An image encoder: {dim} numbers per image, to be compared by their cosine.",
        "From the folder that holds this one (or with the full path):",
        "\n".join(["```python", *code, "```"]),
        f"Input: RGB, short side resized to {short} px ({spec.interpolation}), centre of {spec.size} × "
        f"{spec.size} px, values in [0, 1], minus {_numbers(spec.mean)}, divided by {_numbers(spec.std)}.",
        f"Kept: the {card.network} after {card.step} steps on {card.images} images (fingerprint "
        f"`{card.data or 'not recorded'}`), from {card.start or 'unknown'} weights, seed {card.seed}, "
        f"{card.train_s:.0f} s.{_mixture(card)}",
        "\n".join(["| Measure | Score |", "|---|---|", *scores]) if scores else "Scores: none recorded.",
        f"The recipe, with all that was chosen for it:\n\n```yaml\n{recipe}```",
    ]
    return "\n\n".join(parts) + "\n"


def _mixture(card: Card) -> str:
    share = card.extra.get("interpolate")
    return "" if share is None else f" Its weights: {share:g} · trained + {1 - share:g} · start."


def _how(card: Card) -> str:
    return "without labels" if card.family == "self-supervised" else "with labels"


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
