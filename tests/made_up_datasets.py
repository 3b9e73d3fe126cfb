"""A small look-alike of every dataset, and the config sections that load it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import look_alike_classes
import look_alikes
from look_alikes import make
from made_up_photos import photo


def section_of_emoji(folder: Path) -> list[dict[str, Any]]:
    return [
        {"name": "emoji", "root": str(folder), "task": task} for task in ("instance", "moved", "category")
    ]


def section_of_folder(folder: Path) -> list[dict[str, Any]]:
    for split in ("train", "test"):
        for label in ("red", "blue"):
            (folder / "split" / split / label).mkdir(parents=True)
            for i in range(3):
                file = folder / "split" / split / label / f"{i}.png"
                photo((200, 0, 0) if label == "red" else (0, 0, 200), seed=i).save(file)
    train = {"name": "folder", "root": str(folder / "split" / "train")}
    return [
        train,
        train | {"labels": "folder", "limit_per_class": 2},
        {"name": "folder", "root": str(folder / "split"), "queries": "test", "gallery": "train"},
    ]


def section_of_copies(folder: Path) -> list[dict[str, Any]]:
    (folder / "photos").mkdir()
    for i in range(3):
        photo((i * 50, 90, 0), seed=i).save(folder / "photos" / f"{i}.png")
    return [{"name": "copies", "root": str(folder / "photos"), "copies": str(folder / "copies")}]


def section_of_manifest(folder: Path) -> list[dict[str, Any]]:
    rows = ["path,label"]
    for i in range(4):
        photo((i * 50, 0, 0), seed=i).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'even' if i % 2 == 0 else 'odd'}")
    (folder / "list.csv").write_text("\n".join(rows))
    return [{"name": "manifest", "root": str(folder), "file": str(folder / "list.csv")}]


def section_of_synthetic(folder: Path) -> list[dict[str, Any]]:
    common = {"name": "synthetic", "root": str(folder), "objects": 10, "views": 2, "size": 16}
    return [common | {"task": task} for task in ("object", "shape", "color", "pattern")]


def section_of_merged(folder: Path) -> list[dict[str, Any]]:
    look_alike_classes.cub200(folder / "birds")
    look_alike_classes.grocery(folder / "grocery")
    make(folder / "grocery", *GROCERY_PHOTOS)
    look_alikes.disc21(folder / "disc21")
    parts = {
        "birds": {"name": "cub200", "root": "birds"},
        "groceries": {"name": "grocery", "root": "grocery"},
        "copies": {"name": "disc21", "root": "disc21"},
    }
    domains = [{"domain": label} for label in ("birds", "groceries", "copies", "")]
    make(folder / "disc21", "train/T000000.jpg")
    return [{"name": "merged", "root": str(folder), "parts": parts} | domain for domain in domains]


def section_of_some_classes(folder: Path) -> list[dict[str, Any]]:
    look_alike_classes.cub200(folder / "birds")
    of = {"name": "cub200", "root": "birds", "split": "official"}
    birds = {"name": "some_classes", "root": str(folder), "of": of}
    return [birds, birds | {"begin": 0.5}]


GROCERY_PHOTOS = (
    *("train/a 1.jpg", "train/b.jpg", "train/c.jpg", "val/a.jpg", "test/b.jpg", "test/c.jpg"),
    *(f"iconic/{name}_Iconic.jpg" for name in ("Pink-Lady", "Granny", "Oatly")),
)


def section_of_grocery(folder: Path) -> list[dict[str, Any]]:
    make(look_alike_classes.grocery(folder / "grocery"), *GROCERY_PHOTOS)
    return [
        {"name": "grocery", "root": str(folder / "grocery"), "task": t} for t in ("fine", "coarse", "iconic")
    ]


def section_of_disc21(folder: Path) -> list[dict[str, Any]]:
    root = make(look_alikes.disc21(folder / "disc21"), "train/T000000.jpg")
    return [{"name": "disc21", "root": str(root)}]


def section_of_cars196(folder: Path) -> list[dict[str, Any]]:
    forms = [look_alike_classes.cars196(folder / "one"), look_alike_classes.cars196_devkit(folder / "two")]
    options: list[dict[str, Any]] = [{}, {"split": "official"}, {"query_crop": "box"}]
    return [{"name": "cars196", "root": str(root)} | option for root in forms for option in options]


def section_of_cifar100(folder: Path) -> list[dict[str, Any]]:
    forms = [look_alike_classes.cifar100(folder / "one"), look_alike_classes.cifar100_binary(folder / "two")]
    options: list[dict[str, Any]] = [{}, {"task": "coarse"}, {"mode": "test_to_train"}, {"split": "train"}]
    return [{"name": "cifar100", "root": str(root)} | option for root in forms for option in options]


def laid_out(
    name: str, maker: Callable[[Path], Path], *options: dict[str, Any]
) -> Callable[[Path], list[dict[str, Any]]]:
    """Make a look-alike and a section for each set of options."""

    def sections(folder: Path) -> list[dict[str, Any]]:
        root = maker(folder / name)
        return [{"name": name, "root": str(root)} | more for more in (options or ({},))]

    return sections


MADE_UP: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "emoji": section_of_emoji,
    "folder": section_of_folder,
    "copies": section_of_copies,
    "manifest": section_of_manifest,
    "synthetic": section_of_synthetic,
    "merged": section_of_merged,
    "some_classes": section_of_some_classes,
    "grocery": section_of_grocery,
    "cars196": section_of_cars196,
    "cifar100": section_of_cifar100,
    "disc21": section_of_disc21,
    "oxford_paris": laid_out("oxford_paris", look_alikes.oxford, {}, {"self_match": "ignored"}),
    "revisited": laid_out("revisited", look_alikes.revisited, *({"difficulty": d} for d in ("easy", "hard"))),
    "holidays": laid_out("holidays", look_alikes.holidays),
    "copydays": laid_out("copydays", look_alikes.copydays, {}, {"queries": "crops/80"}),
    "instre": laid_out("instre", look_alikes.instre),
    "gldv2": laid_out("gldv2", look_alikes.gldv2, {}, {"usage": "both"}),
    "ukbench": laid_out("ukbench", look_alikes.ukbench, {}, {"self_match": "counted"}),
    "cifar10": laid_out("cifar10", look_alike_classes.cifar10, {}, {"mode": "test_to_train"}),
    "cub200": laid_out("cub200", look_alike_classes.cub200, {}, {"split": "official"}, {"query_crop": "box"}),
    "stanford_online_products": laid_out(
        "stanford_online_products", look_alike_classes.stanford_online_products, {}, {"task": "kind"}
    ),
    "inshop": laid_out("inshop", look_alike_classes.inshop),
    "imagenet_folder": laid_out(
        "imagenet_folder", look_alike_classes.imagenet, {}, {"gallery": "val"}, {"queries_per_class": 1}
    ),
    "inaturalist": laid_out(
        "inaturalist", look_alike_classes.inaturalist, {}, {"rank": "genus"}, {"gallery": "train"}
    ),
}
"""All datasets but `packed`, which has no task."""
