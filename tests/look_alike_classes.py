"""Small folders laid out like published sets of classes; the images are empty files, but for CIFAR-100."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from look_alikes import cells, make
from scipy.io import savemat


def cifar10(root: Path) -> Path:
    names = [f"{s}/{c}/{i:04d}.png" for s in ("train", "test") for c in ("cat", "dog") for i in range(3)]
    return make(root, *names)


def grocery(root: Path) -> Path:
    root.mkdir()
    (root / "classes.csv").write_text(
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
        "Iconic Image Path (str),Product Description Path (str)\n"
        "Pink-Lady,0,Apple,0,/iconic-images/Fruit/Pink-Lady_Iconic.jpg,/x.txt\n"
        "Granny,1,Apple,0,/iconic-images/Fruit/Granny_Iconic.jpg,/x.txt\n"
        "Oatly,2,Milk,1,/iconic-images/Packages/Oatly_Iconic.jpg,/x.txt\n"
    )
    (root / "train.txt").write_text("train/a 1.jpg, 0, 0\ntrain/b.jpg, 1, 0\ntrain/c.jpg, 2, 1\n")
    (root / "val.txt").write_text("val/a.jpg, 2, 1\n")
    (root / "test.txt").write_text("test/b.jpg, 1, 0\ntest/c.jpg, 2, 1\n")
    return root


CUB = [(class_, i) for class_ in (1, 2, 101, 102) for i in range(3)]
"""Class and number of each photo; the first of each class is for training in the official split."""


def cub_path(class_: int, number: int) -> str:
    return f"{class_:03d}.Bird_{class_}/Bird_{class_}_{number}.jpg"


def cub200(root: Path) -> Path:
    make(root, *(f"images/{cub_path(*photo)}" for photo in CUB))
    tables = {
        "images": lambda class_, number: cub_path(class_, number),
        "image_class_labels": lambda class_, number: class_,
        "train_test_split": lambda class_, number: int(number == 0),
        "bounding_boxes": lambda class_, number: f"{number}.0 2.0 30.0 40.5",
    }
    for name, field in tables.items():
        rows = [f"{image} {field(*photo)}" for image, photo in enumerate(CUB, start=1)]
        # The published lists have no order in common; ids join them.
        (root / f"{name}.txt").write_text("\n".join(rows if name == "images" else reversed(rows)) + "\n")
    return root


CARS = [(class_, i) for class_ in (1, 98, 99, 196) for i in range(3)]
"""As for birds."""

_CAR_NAMES = {"class_names": cells(tuple(f"Car {i} 2012" for i in range(1, 197)))}


def car_path(index: int) -> str:
    return f"car_ims/{index + 1:06d}.jpg"


def cars196(root: Path) -> Path:
    """The form with one annotation file."""
    make(root, *map(car_path, range(len(CARS))))
    rows = [
        (car_path(index), 1 + number, 2, 30, 40, class_, int(number > 0))
        for index, (class_, number) in enumerate(CARS)
    ]
    write_cars(root / "cars_annos.mat", rows, "relative_im_path")
    return root


def cars196_devkit(root: Path) -> Path:
    """The form with a folder for each part."""
    for part, is_part in (("train", lambda number: number == 0), ("test", lambda number: number > 0)):
        photos = [(class_, number) for class_, number in CARS if is_part(number)]
        names = [f"{index + 1:05d}.jpg" for index in range(len(photos))]
        make(root, *(f"cars_{part}/{name}" for name in names))
        rows = [
            (name, 1 + number, 2, 30, 40, class_)
            for name, (class_, number) in zip(names, photos, strict=True)
        ]
        file = "cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        (root / "devkit").mkdir(exist_ok=True)
        write_cars(root / "devkit" / file, rows, "fname")
    savemat(root / "devkit" / "cars_meta.mat", _CAR_NAMES)
    return root


def write_cars(file: Path, rows: list[tuple], path: str) -> None:
    """Write a structure array as MATLAB does, each value a matrix of its own."""
    edges = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class"]
    names = [path, *edges, "test"] if len(rows[0]) == 7 else [*edges, path]
    annotations = np.zeros((1, len(rows)), dtype=[(name, object) for name in names])
    for i, row in enumerate(rows):
        values = dict(zip([path, *edges, "test"], row, strict=False))
        for name, value in values.items():
            annotations[0, i][name] = value if isinstance(value, str) else np.array([[value]], np.uint16)
    savemat(file, {"annotations": annotations} | _CAR_NAMES)


PRODUCTS = {"train": [(1, 1), (1, 1), (2, 2)], "test": [(3, 1), (3, 1), (4, 1), (4, 1), (5, 2), (5, 2)]}
"""Product and kind of each photo."""


def product_path(split: str, number: int) -> str:
    kind = {1: "chair", 2: "kettle"}[PRODUCTS[split][number][1]]
    return f"{kind}_final/{split}_{number}.JPG"


def stanford_online_products(root: Path) -> Path:
    for split, photos in PRODUCTS.items():
        paths = [product_path(split, number) for number in range(len(photos))]
        make(root, *paths)
        rows = [f"{i + 1} {product} {kind} {paths[i]}" for i, (product, kind) in enumerate(photos)]
        (root / f"Ebay_{split}.txt").write_text("\n".join(["image_id class_id super_class_id path", *rows]))
    return root


CLOTHES = [
    *[("train", 1), ("train", 1)],
    *[("query", 2), ("query", 3)],
    *[("gallery", 3), ("gallery", 2), ("gallery", 2)],
]
"""Part and garment of each photo."""


def garment_path(number: int) -> str:
    return f"img/WOMEN/Dresses/id_{CLOTHES[number][1]:08d}/{number:02d}_1_front.jpg"


def inshop(root: Path) -> Path:
    make(root, *map(garment_path, range(len(CLOTHES))))
    rows = [f"{garment_path(i):<70}id_{garment:08d} {part}" for i, (part, garment) in enumerate(CLOTHES)]
    header = [str(len(rows)), "image_name item_id evaluation_status"]
    (root / "list_eval_partition.txt").write_text("\n".join([*header, *rows]))
    return root


CIFAR100 = {"train": [0, 1, 2, 2, 1], "test": [1, 0, 2, 2, 1, 0]}
"""Fine class of each image: apple, maple_tree, pear."""

CIFAR100_NAMES = {"fine": ["apple", "maple_tree", "pear"], "coarse": ["fruit", "trees"]}
CIFAR100_COARSE = [0, 1, 0]


def cifar100_pixels(split: str) -> Any:
    return np.random.default_rng(len(split)).integers(0, 256, (len(CIFAR100[split]), 3072), np.uint8)


def cifar100(root: Path) -> Path:
    """The version for Python: pickles."""
    root.mkdir(parents=True)
    for split, fine in CIFAR100.items():
        coarse = [CIFAR100_COARSE[label] for label in fine]
        content = {"data": cifar100_pixels(split), "fine_labels": fine, "coarse_labels": coarse}
        content |= {"filenames": ["a.png"] * len(fine), "batch_label": "training batch 1 of 1"}
        (root / split).write_bytes(pickle.dumps(content, 2))
    names = {f"{level}_label_names": words for level, words in CIFAR100_NAMES.items()}
    (root / "meta").write_bytes(pickle.dumps(names, 2))
    return root


def cifar100_binary(root: Path) -> Path:
    """The binary version."""
    root.mkdir(parents=True)
    for split, fine in CIFAR100.items():
        labels = np.array([[CIFAR100_COARSE[label], label] for label in fine], np.uint8)
        np.hstack([labels, cifar100_pixels(split)]).tofile(root / f"{split}.bin")
    for level, words in CIFAR100_NAMES.items():
        (root / f"{level}_label_names.txt").write_text("\n".join(words) + "\n")
    return root


def imagenet(root: Path) -> Path:
    for part, count in {"train": 6, "val": 3}.items():
        make(root, *(f"{part}/{name}/{name}_{i}.JPEG" for name in ("n01", "n02") for i in range(count)))
    return root


SPECIES: list[dict[str, Any]] = [
    {"id": 0, "name": "Prunella modularis", "kingdom": "Animalia", "class": "Aves", "genus": "Prunella"},
    {"id": 1, "name": "Prunella collaris", "kingdom": "Animalia", "class": "Aves", "genus": "Prunella"},
    {"id": 2, "name": "Prunella vulgaris", "kingdom": "Plantae", "class": "Rosopsida", "genus": "Prunella"},
]
"""Accentors and self-heal: a genus of birds and one of plants have the same name."""

NATURE = {"train": [0, 0, 1, 2, 2], "val": [0, 1, 1, 2, 2, 0]}
"""Species of each photo."""


def nature_path(split: str, number: int) -> str:
    return f"{split}/{NATURE[split][number]:05d}/{number}.jpg"


def inaturalist(root: Path) -> Path:
    between = {"phylum": "p", "order": "o", "family": "f", "supercategory": "Birds and plants"}
    for split, species in NATURE.items():
        ids = [1000 + 7 * i for i in range(len(species))]
        content = {
            "images": [{"id": ids[i], "file_name": nature_path(split, i)} for i in range(len(species))],
            # In another order than the images: ids join them.
            "annotations": [
                {"image_id": image, "category_id": number}
                for image, number in reversed(list(zip(ids, species, strict=True)))
            ],
            "categories": [between | entry for entry in SPECIES],
        }
        make(root, *(nature_path(split, i) for i in range(len(species))))
        (root / f"{split}.json").write_text(json.dumps(content))
    return root
