"""Images that are only in the way: they join a gallery and match nothing."""

from dataclasses import replace

from ssl_retrieval.data.base import existing_folder
from ssl_retrieval.data.common_root import common_root, paths_below
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import list_images
from ssl_retrieval.types import ImageSet


def add(folder: str, queries: ImageSet, gallery: ImageSet) -> tuple[ImageSet, ImageSet, int]:
    """Put the images of a folder behind those of a gallery, whose indices stay as they are.

    Args:
        folder: Searched at any depth; empty = there are none, and nothing changes.
        queries: Q images.
        gallery: N images under the same root.

    Returns:
        Queries and gallery, whose ids start at the lowest folder that holds both; how many were added. A
        gallery with distractors has no labels.

    Raises:
        UserError: The folder is wrong, or holds images of the dataset too.
    """
    if not folder:
        return queries, gallery, 0
    assert queries.root == gallery.root
    extra = existing_folder("data.distractors", folder)
    root = common_root(gallery.root, extra, "data.distractors")
    queries = replace(queries, root=root, paths=paths_below(root, queries))
    gallery_paths = paths_below(root, gallery)
    extra_paths = paths_below(root, ImageSet(extra, tuple(list_images(extra))))
    both = {*gallery_paths, *queries.paths}.intersection(extra_paths)
    if both:
        raise UserError(
            f"data.distractors={folder!r} holds images of the dataset too ({min(both)!r}): "
            "give a separate folder"
        )
    return queries, ImageSet(root, gallery_paths + extra_paths), len(extra_paths)


def in_words(count: int) -> str:
    """Say it in a task's description.

    >>> in_words(3), in_words(0)
    (' 3 distractors are in the way.', '')
    """
    return f" {count} distractors are in the way." if count else ""


def in_name(count: int) -> str:
    """Say it in a task's name.

    >>> in_name(3), in_name(0)
    ('-3-distractors', '')
    """
    return f"-{count}-distractors" if count else ""
