"""Below a table: where everything was fitted, each list of names once."""

from types import SimpleNamespace
from typing import Any

from ssl_retrieval.report.table import fitted_notes


def entry(name: str, in_gallery: int) -> SimpleNamespace:
    fitted = {"num_images": 24, "source": "another set", "num_in_gallery": in_gallery, "num_in_queries": 0}
    return SimpleNamespace(name=name, report=SimpleNamespace(representation={"fitted": fitted}, info={}))


def test_names_that_were_listed_are_not_listed_again() -> None:
    names = ("words", "avg, white", "codes")
    tasks = [
        SimpleNamespace(task=task, entries=[entry(name, shared) for name in names])
        for task, shared in (("near", 0), ("far", 0), ("same", 24))
    ]
    comparison: Any = SimpleNamespace(tasks=tasks)
    assert fitted_notes(comparison) == [
        "words; avg, white; codes: fitted on 24 images: another set (near, far).",
        "words and the 2 named with it: fitted on 24 images: another set; 24 of them are in the gallery too "
        "(same).",
    ]
