"""Imports go downwards only, so that every part can be understood with what lies below it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ssl_retrieval

PACKAGE = Path(ssl_retrieval.__file__).parent

LAYERS = {
    "cli": 6,
    "notebook": 6,
    "adaptation": 5,
    "analysis": 5,
    "analyze": 5,
    "demo": 5,
    "grid": 5,
    "compare": 4,
    "evaluate": 4,
    "own_vectors": 4,
    "export": 4,
    "features": 4,
    "find": 4,
    "measuring": 4,
    "indexing": 4,
    "leakage": 5,
    "anchor": 3,
    "monitor": 4,
    "pace": 4,
    "alterations": 4,
    "planted_copies": 4,
    "report": 4,
    "results": 4,
    "sweep": 5,
    "train": 4,
    "train_batches": 4,
    "train_config": 4,
    "train_images": 4,
    "train_rounds": 4,
    "train_runtime": 4,
    "train_step": 4,
    "train_setup": 4,
    "calibration": 3,
    "collapse": 3,
    "copy_scopes": 3,
    "embed": 3,
    "fusion": 3,
    "index": 3,
    "index_audit": 3,
    "index_choice": 3,
    "index_files": 3,
    "learning": 3,
    "feed": 3,
    "hubness": 3,
    "invariance": 3,
    "label_errors": 3,
    "metrics": 3,
    "metrics_classes": 3,
    "metrics_catalogue": 3,
    "metrics_explained": 3,
    "metrics_global": 3,
    "metrics_knn": 3,
    "metrics_one_ranking": 3,
    "metrics_peers": 3,
    "postprocess": 3,
    "search": 2,
    "counting": 2,
    "score_blocks": 2,
    "selecting": 2,
    "score_keys": 2,
    "diffusion": 2,
    "k_reciprocal": 3,
    "near_duplicates": 3,
    "hard_negatives": 2,
    "mined_pairs": 2,
    "neighbours": 2,
    "pairs": 2,
    "picture_vectors": 3,
    "query_expansion": 3,
    "recipe": 3,
    "rerank": 3,
    "spatial_verification": 3,
    "statistics": 3,
    "query_groups": 3,
    "resampling": 3,
    "seed_groups": 3,
    "seed_variance": 3,
    "store": 3,
    "query_halves": 3,
    "sweep_choice": 3,
    "sweep_points": 3,
    "wins": 3,
    "checkpoint": 2,
    "class_balanced": 0,
    "cross_batch_memory": 0,
    "embedding_head": 1,
    "codes_binary": 2,
    "codes_faiss": 2,
    "config": 2,
    "data": 2,
    "copy_transformations": 1,
    "defaults": 2,
    "embedding_files": 2,
    "embedding_parts": 2,
    "exclusion": 2,
    "extractors": 2,
    "fitting": 2,
    "frozen_teacher": 2,
    "methods": 2,
    "optim": 2,
    "plugins": 2,
    "multi_crop": 2,
    "precision": 2,
    "representation": 2,
    "run_folder": 2,
    "run_log": 2,
    "run_state": 2,
    "trained_run": 2,
    "augment": 1,
    "blur": 1,
    "adapters": 1,
    "backbones": 1,
    "weight_interpolation": 1,
    "counter_random": 1,
    "decoding": 1,
    "inverted_file": 1,
    "binary_inverted_file": 1,
    "layers": 1,
    "masks": 1,
    "multi_scale": 1,
    "regions": 1,
    "keypoints": 1,
    "sift": 1,
    "tokens": 1,
    "vocabulary": 1,
    "weights": 1,
    "whitening": 1,
    "images": 1,
    "image_source": 1,
    "packed": 1,
    "packing": 1,
    "perceptual_hash": 1,
    "streaming": 1,
    "view_plan": 1,
    "network_input": 1,
    "pooling": 1,
    "pseudo_labels": 1,
    "projector_points": 1,
    "atomic": 0,
    "console": 0,
    "distillation": 0,
    "distributed": 0,
    "color": 0,
    "compiling": 0,
    "crops": 0,
    "ema": 0,
    "lars": 0,
    "locking": 0,
    "workers": 0,
    "evaluation_mode": 0,
    "rounds": 0,
    "sampler": 0,
    "tuple_sampler": 0,
    "schedules": 0,
    "devices": 0,
    "folding": 0,
    "index_syntax": 0,
    "memory": 0,
    "pareto": 0,
    "rerank_syntax": 0,
    "searching": 0,
    "similarity": 0,
    "step_syntax": 0,
    "errors": 0,
    "types": 0,
}
"""Part (a file, or a folder of files) -> height; a part imports from its own height or below."""

FORBIDDEN = {
    "methods": {"evaluate", "embed", "metrics", "search", "compare", "report", "grid"},
    "metrics": {"extractors", "methods", "backbones", "embed", "checkpoint"},
    "search": {"metrics", "extractors", "methods", "backbones", "embed"},
    "statistics": {"metrics", "search", "report"},
    "data": {"extractors", "methods", "metrics", "search", "config", "plugins"},
    "extractors": {"methods", "metrics", "search", "config", "plugins"},
    "train": {"evaluate", "embed", "metrics", "search", "report"},
    "report": {"evaluate", "grid", "embed", "extractors", "data", "train", "search"},
}
"""What a part must not know, although its height would allow it."""


def modules() -> dict[str, Path]:
    """Dotted name within the package -> file."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part not in ("__init__", "__main__"))] = file
    return found


def imported_by(file: Path) -> set[str]:
    """Dotted names within the package that a file imports, at its top or inside a function."""
    names: set[str] = set()
    known = modules()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names.add(node.module or "")
    inside = {name.partition(".")[2] for name in names if name.startswith("ssl_retrieval.")}
    return {name for name in inside if name in known}


def part_of(module: str) -> str:
    return module.partition(".")[0]


GRAPH = {name: imported_by(file) for name, file in modules().items() if name}


def test_the_whole_package_was_read() -> None:
    assert {"cli", "data.folder", "report.page"} <= GRAPH.keys()
    assert {"data.tasks", "images"} <= GRAPH["data.folder"]


def test_every_part_has_its_layer() -> None:
    assert {part_of(name) for name in GRAPH} == LAYERS.keys()


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_go_downwards(module: str) -> None:
    height = LAYERS[part_of(module)]
    above = {name for name in GRAPH[module] if LAYERS[part_of(name)] > height}
    assert not above, f"{module} (layer {height}) imports {sorted(above)} from above"


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_a_part_does_not_know(part: str) -> None:
    reached = {part_of(name) for module in GRAPH if part_of(module) == part for name in GRAPH[module]}
    assert not reached & FORBIDDEN[part]


def test_nothing_imports_the_command_line() -> None:
    assert not [name for name, imports in GRAPH.items() if "cli" in imports]


def test_modules_do_not_import_in_a_circle() -> None:
    # A file sees its own package's __init__, which is empty; so only real imports count.
    order = list(TopologicalSorter(GRAPH).static_order())
    assert order.index("errors") < order.index("types") < order.index("cli")


def test_parts_do_not_import_in_a_circle() -> None:
    parts: dict[str, set[str]] = {}
    for module, imports in GRAPH.items():
        others = {part_of(name) for name in imports} - {part_of(module)}
        parts.setdefault(part_of(module), set()).update(others)
    assert len(list(TopologicalSorter(parts).static_order())) == len(LAYERS)
