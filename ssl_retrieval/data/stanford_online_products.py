"""Stanford Online Products: 120,053 photos of 22,634 products; the same product is to be found.

From Song et al., "Deep metric learning via lifted structured feature embedding", CVPR 2016, whose page has
``Stanford_Online_Products.zip``. ``data.root`` is the folder in it::

    Stanford_Online_Products/Ebay_train.txt     image, product, kind of product, path
    Stanford_Online_Products/Ebay_test.txt
    Stanford_Online_Products/bicycle_final/*.JPG ...

Products of the training list (59,551 photos of 11,318) never stand in the test list (60,502 photos of
11,316), each photo of which searches all others. A class is one product as one seller shows it, so the level
is ``instance``; ``data.task=kind`` looks for the same of twelve kinds of product instead (bicycle, cabinet,
chair, …), which is ``category``; each photo then has thousands to find, so draw ``queries_per_class``.
"""

from dataclasses import dataclass
from pathlib import Path

from ssl_retrieval.data.base import check, existing_folder, one_of
from ssl_retrieval.data.draws import DrawConfig, check_draws, draw, in_name
from ssl_retrieval.data.published import fields, published_file, require_files
from ssl_retrieval.data.tasks import labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task

_COLUMNS = {"image": int, "product": int, "kind": int, "path": str}
_ADVICE = (
    "download Stanford_Online_Products.zip (page of Song et al., CVPR 2016), unpack it and give its folder "
    "Stanford_Online_Products"
)


@dataclass
class Config(DrawConfig):
    """Options of the loader, besides those of `DrawConfig`.

    Attributes:
        task: ``product`` (one of 22,634) or ``kind`` (one of twelve).
    """

    name: str = "stanford_online_products"
    task: str = "product"


def load(cfg: Config) -> Task:
    """Make the task; post-processing is fitted on the training list.

    Raises:
        UserError: The folder, a list or an option is wrong, or photos are missing.
    """
    check_draws(cfg)
    test, train = _part(cfg, "test"), _part(cfg, "train")
    both = sorted(set(test.class_names) & set(train.class_names))
    if both and cfg.task == "product":
        raise UserError(f"product {both[0]} stands in both lists of {cfg.root!r}: download them again")
    is_kind = cfg.task == "kind"
    queries, gallery = draw(cfg, test, test)
    return task_from_groups(
        name=f"stanford_online_products{'-kind' if is_kind else ''}{in_name(cfg)}",
        level="category" if is_kind else "instance",
        queries=queries,
        gallery=gallery,
        fit=train,
        description=f"Each of {len(queries)} photos searches the others of {len(gallery)} for the same "
        f"{'kind of product' if is_kind else 'product'}.",
        metrics=("hit_rate@1", "hit_rate@10", "hit_rate@100", "hit_rate@1000", "mAP@R"),
    )


def images(cfg: Config) -> ImageSet:
    """List the photos of the training list, labelled by product (or kind).

    Raises:
        UserError: As for `load`.
    """
    return _part(cfg, "train")


def _part(cfg: Config, split: str) -> ImageSet:
    check(cfg)
    one_of("data.task", cfg.task, ("product", "kind"))
    root: Path = existing_folder("data.root", cfg.root)
    rows = fields(published_file(root, f"Ebay_{split}.txt", _ADVICE), _COLUMNS, header=1)
    paths = rows["path"].tolist()
    require_files(root, paths)
    if cfg.task == "product":
        return labelled(root, paths, [str(product) for product in rows["product"]])
    # The folder's name says what the kind's number means: chair_final.
    kinds = rows.groupby("kind")["path"].first().str.split("/").str[0].str.removesuffix("_final")
    return labelled(root, paths, kinds[rows["kind"]].tolist())
