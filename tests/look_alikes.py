"""Small folders laid out like published sets of single objects, made on the spot; the images are empty files.

Loaders list files without opening them, so that is enough.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat


def make(root: Path, *names: str) -> Path:
    """Make empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def lists(arrays: tuple) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def expected(queries: list[tuple[str, Any]], gallery: list[tuple[str, Any]]) -> list[tuple[list, list]]:
    """Relevant and ignored indices of each query by a double loop over (path, group)."""
    answers = []
    for path, group in queries:
        relevant, ignored = [], []
        for i, (other, other_group) in enumerate(gallery):
            if other == path:
                ignored.append(i)
            elif other_group == group:
                relevant.append(i)
        answers.append((relevant, ignored))
    return answers


def oxford(root: Path) -> Path:
    """Five photos, two queries: one good and one ok image each or so, and one junk image."""
    names = OXFORD
    make(root, *(f"jpg/{name}.jpg" for name in names))
    first, second, third, fourth, fifth = names
    write_query(root / "gt", "all_souls_1", f"oxc1_{first} 10.5 5 60 50", f"{first} {first}", second, third)
    write_query(root / "gt", "balliol_1", f"oxc1_{fifth} 0 0 40 40", "", f"{fifth} {fourth}", "")
    return root


OXFORD = ("all_souls_000001", "all_souls_000002", "oxford_000003", "oxford_000004", "balliol_000005")


def write_query(folder: Path, name: str, query: str, good: str, ok: str, junk: str) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for kind, text in {"query": query, "good": good, "ok": ok, "junk": junk}.items():
        (folder / f"{name}_{kind}.txt").write_text(text.replace(" ", "\n") if kind != "query" else text)


REVISITED_GALLERY = [f"all_souls_{i:06d}" for i in range(6)]
REVISITED_QUERIES = ["oxford_000100", "oxford_000101"]
REVISITED: dict[str, Any] = {
    "imlist": REVISITED_GALLERY,
    "qimlist": REVISITED_QUERIES,
    "gnd": [
        {"bbx": [1.5, 2, 30, 40], "easy": np.array([0, 4]), "hard": [1], "junk": (2,)},
        {"bbx": np.array([0.0, 0, 9, 9]), "easy": [], "hard": np.array([3]), "junk": np.array([], np.int64)},
    ],
}


def revisited(root: Path) -> Path:
    names = (*REVISITED_GALLERY, *REVISITED_QUERIES, "no_one_names_it")
    make(root, *(f"jpg/{name}.jpg" for name in names))
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(REVISITED, 4))
    return root


def holidays(root: Path) -> Path:
    numbers = ("100000", "100001", "100002", "100100", "100101")
    return make(root, *(f"jpg/{number}.jpg" for number in numbers), "jpg/notes.png")


def copydays(root: Path) -> Path:
    originals = ("original/200000.jpg", "original/200100.jpg")
    strong = ("strong/200001.jpg", "strong/200002.jpg", "strong/200101.jpg")
    return make(root, *originals, *strong, "crops/80/200100.jpg", "crops/10/200000.jpg")


INSTRE = ("INSTRE-S1/01a/1.jpg", "INSTRE-S2/02/1.jpg", "INSTRE-M/03/1.jpg")
INSTRE_QUERIES = ("INSTRE-S1/01a/2.jpg", "INSTRE-M/03/2.jpg")


def cells(names: tuple[str, ...]) -> Any:
    return np.array([*names, None], dtype=object)[:-1][None]


def write_gnd(root: Path, positives: tuple[list[int], ...], boxes: tuple[list[float], ...]) -> None:
    gnd = np.zeros((1, len(positives)), dtype=[("ok", object), ("bbx", object)])
    for i, (ok, box) in enumerate(zip(positives, boxes, strict=True)):
        gnd[0, i] = (np.array([ok], np.uint16), np.array([box], np.float64))
    content = {"imlist": cells(INSTRE), "qimlist": cells(INSTRE_QUERIES), "gnd": gnd}
    savemat(root / "gnd_instre.mat", content)


def instre(root: Path) -> Path:
    make(root, *INSTRE, *INSTRE_QUERIES)
    write_gnd(root, ([1], [2, 3]), ([1, 2, 30, 40], [0, 0, 5, 5]))
    return root


def disc21(root: Path) -> Path:
    references = [f"references/part{i}/R00000{i}.jpg" for i in range(3)]
    queries = [f"dev_queries/Q0000{i}.jpg" for i in range(4)]
    make(root, *references, *queries)
    (root / "dev_ground_truth.csv").write_text("Q00000,R000002\nQ00001,\nQ00002,R000000\nQ00002,R000001\n")
    return root


def gldv2(root: Path) -> Path:
    index, test = ("abc0", "abd1", "fed2"), ("0a1q", "0b2q", "0c3q")
    make(root, *(f"index/{'/'.join(name[:3])}/{name}.jpg" for name in index))
    make(root, *(f"test/{'/'.join(name[:3])}/{name}.jpg" for name in test))
    (root / "index.csv").write_text("id\n" + "\n".join(index))
    rows = "id,images,Usage\n0a1q,fed2 abc0,Private\n0b2q,abd1,Public\n0c3q,None,Ignored\n"
    (root / "retrieval_solution_v2.1.csv").write_text(rows)
    return root


def ukbench(root: Path) -> Path:
    return make(root, *(f"ukbench{i:05d}.jpg" for i in range(8)), "notes.jpg")
