"""The questions that `analyze` answers about scored representations, each as one section of its page."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from ssl_retrieval.alterations import ALTERATIONS
from ssl_retrieval.calibration import BestMatches, calibration_table, precision_curve
from ssl_retrieval.console import say
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.evaluate import Scored
from ssl_retrieval.hubness import hubness_table, k_occurrences
from ssl_retrieval.images import cut, load_image
from ssl_retrieval.invariance import audit
from ssl_retrieval.label_errors import among_themselves, suspects
from ssl_retrieval.measuring import HEADLINE
from ssl_retrieval.picture_vectors import embed_pictures
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.report.analysis_charts import hubness_chart, invariance_chart, precision_chart
from ssl_retrieval.report.analysis_page import Picture, Section
from ssl_retrieval.report.gallery import GalleryQuery
from ssl_retrieval.representation import Representation
from ssl_retrieval.results import results_of
from ssl_retrieval.search import top_k
from ssl_retrieval.similarity import Cosine
from ssl_retrieval.store import Store
from ssl_retrieval.types import IntArray, Ranking
from ssl_retrieval.wins import differences

SHOWN_RESULTS = 8


def hubness_section(scored: Mapping[str, Scored], k: int, num_shown: int) -> Section:
    """Ask whether some images come up everywhere."""
    task = _first(scored).task
    rankings = _rankings(scored, min(k, len(task.gallery)))
    occurrences = {label: k_occurrences(ranking, len(task.gallery)) for label, ranking in rankings.items()}
    table = hubness_table(rankings, len(task.gallery))
    num_relevant = np.bincount(np.concatenate(task.relevant), minlength=len(task.gallery))
    per_image = pd.DataFrame(
        {"id": task.gallery.paths, "relevant_for": num_relevant} | occurrences, columns=None
    )
    pictures = [
        (f"Largest hubs of {label}", _hubs(scored[label], counts, num_relevant, num_shown))
        for label, counts in occurrences.items()
    ]
    return Section(
        name="hubness",
        title="Do some images come up everywhere?",
        text=[
            f"How often is each gallery image among the {k} best of a query? Skewness 0 is even and above 1 "
            "means hubs; antihubs are images that no query finds; hubs come up more than twice the mean; "
            "Robin Hood is the share of all results that would have to change hands to make all images "
            "alike."
        ],
        table=table,
        chart=hubness_chart(occurrences),
        pictures=pictures,
        files={"hubness": table, "hubness_images": per_image},
    )


def _hubs(scored: Scored, counts: IntArray, num_relevant: IntArray, num_shown: int) -> list[Picture]:
    gallery = scored.task.gallery
    return [
        Picture(
            gallery.file(i),
            f"{gallery.paths[i]}: found {counts[i]:,} times, right for {num_relevant[i]:,} queries",
        )
        for i in np.argsort(-counts, kind="stable")[:num_shown].tolist()
    ]


def calibration_section(scored: Mapping[str, Scored], precisions: Sequence[float], seed: int) -> Section:
    """Ask from which similarity on the best match can be trusted."""
    tables, curves = [], {}
    for label, ranking in _rankings(scored, 1).items():
        matches = BestMatches.of(scored[label].task, ranking)
        curves[label] = precision_curve(matches)
        tables.append(calibration_table(matches, precisions, seed).assign(representation=label))
    table = _label_first(tables)
    return Section(
        name="calibration",
        title="From which similarity on can the best match be trusted?",
        text=[
            "Thresholds are chosen on a random half of the queries; accepted, precision (with its exact 95 % "
            "interval, low to high) and recall are those of the other half. The threshold that just reaches "
            "a precision on one half may miss it on the other; the sure one promises it with 95 % confidence "
            "for queries like these, and is missing where they are too few for that."
        ],
        table=table,
        chart=precision_chart(curves),
        files={
            "calibration": table,
            "calibration_curve": _label_first([c.assign(representation=name) for name, c in curves.items()]),
        },
    )


def label_errors_section(scored: Mapping[str, Scored], label: str, num_shown: int) -> Section:
    """Ask which labels the neighbours do not believe: of the queries, and of the gallery in itself."""
    one = scored[label]
    found = {"queries": suspects(one.task, one.similarity)}
    images = {"queries": one.task.queries}
    if one.task.queries.paths != one.task.gallery.paths and isinstance(one.similarity, Cosine):
        gallery = one.similarity.gallery
        images["gallery"] = one.task.gallery
        found["gallery"] = suspects(among_themselves(one.task.gallery), Cosine(gallery, gallery))
    table = pd.concat([part.assign(side=side) for side, part in found.items()], ignore_index=True)
    table = table[["side", *(name for name in table.columns if name != "side")]]
    pictures = []
    for side, part in found.items():
        place = {path: i for i, path in enumerate(images[side].paths)}
        shown = [
            Picture(
                images[side].file(place[row["id"]]),
                f"{row['id']}: labelled {row['label']}, neighbours say {row['suggested']} "
                f"(margin {row['margin']:.2f})",
            )
            for row in part[part["margin"] > 0].head(num_shown).to_dict("records")
        ]
        pictures.append((f"Most doubtful labels among the {side}", shown))
    doubted = {side: int((part["margin"] > 0).sum()) for side, part in found.items()}
    counts = " and ".join(
        f"{count} of {len(found[side])} {side.replace('gallery', 'gallery images')}"
        for side, count in doubted.items()
    )
    return Section(
        name="label_errors",
        title="Which labels do the neighbours doubt?",
        text=[
            f"By {label}: the 20 nearest images vote, nearer ones with more weight. For {counts} they prefer "
            "another label. That is a wrong label, or a picture that the representation gets wrong: look."
        ],
        table=pd.DataFrame(),
        pictures=pictures,
        files={"label_errors": table},
    )


def wins_section(scored: Mapping[str, Scored], first: str, second: str, num_shown: int) -> Section:
    """Ask where one representation beats another, and where it loses."""
    pair = {first: scored[first], second: scored[second]}
    table = differences(pair[first].report, pair[second].report, HEADLINE)
    gap = table["difference"]
    half = max(1, num_shown // 2)
    shown = pd.concat([table[gap > 0].head(half), table[gap < 0].tail(half)[::-1]])
    task = pair[first].task
    place = {path: i for i, path in enumerate(task.queries.paths)}
    queries = [
        GalleryQuery(
            query_file=task.queries.file(place[row["query"]]),
            title=f"{row['query']}: AP {row['first']:.3f} with {first}, {row['second']:.3f} with {second}",
            rows=[results_of(name, one, place[row["query"]], SHOWN_RESULTS) for name, one in pair.items()],
        )
        for row in shown.to_dict("records")
    ]
    return Section(
        name="wins",
        title=f"Where does {first} beat {second}, and where does it lose?",
        text=[
            f"Of {len(table)} queries {first} has the higher average precision on {int((gap > 0).sum())}, "
            f"the lower on {int((gap < 0).sum())}, the same on {int((gap == 0).sum())}; the mean difference "
            f"is {gap.mean():+.3f}. Below: its largest wins, then its largest losses. ✓ in a solid green "
            "frame is right, ✗ in a dashed red frame is wrong."
        ],
        table=pd.DataFrame(),
        queries=queries,
        files={"wins": table},
    )


def invariance_section(
    models: Mapping[str, Representation], store: Store, num_images: int, seed: int
) -> Section:
    """Ask which alterations a representation does not notice, and which break it."""
    gallery = store.task.gallery
    chosen = np.sort(np.random.default_rng(seed % 2**32).permutation(len(gallery))[:num_images])
    tables = []
    for label, representation in models.items():
        extractor = representation.extractor
        if hasattr(extractor, "similarity") or getattr(extractor, "only_scores", False):
            say(f"invariance of {label!r} is left out: its similarity is no cosine of vectors")
            continue
        store.teach(representation)
        embedded = store.vectors(representation, gallery)
        row_of = {path: row for row, path in enumerate(embedded.ids)}
        originals, rows = [], []
        for index in chosen.tolist():
            row = row_of.get(gallery.paths[index])
            if row is None:
                continue
            try:
                originals.append(cut(load_image(gallery.file(index)), gallery.box(index)))
            except ImageError:
                continue
            rows.append(row)
        if len(rows) < 2:
            raise UserError(f"invariance.num_images={num_images}: at least 2 readable images are needed")
        say(f"invariance of {label}: {len(rows)} images, {sum(map(len, ALTERATIONS.values()))} alterations")
        embed = partial(
            embed_pictures,
            representation,
            image_size=store.task.protocol.image_size,
            precision=store.options.precision,
        )
        vectors = l2_normalize(np.asarray(embedded.vectors))
        found = audit(embed, originals, np.array(rows, np.int64), vectors, ALTERATIONS)
        tables.append(found.assign(representation=label))
    if not tables:
        raise UserError("invariance: no model has vectors; leave it out of parts")
    table = _label_first(tables)
    return Section(
        name="invariance",
        title="Which alterations go unnoticed, and which break it?",
        text=[
            f"{len(chosen)} gallery images were altered and searched the whole gallery of {len(gallery)}. "
            "Each cell is the share that found their original first; invariance.csv also has the interval, "
            "the mean cosine, and that cosine on a scale from 0, like a stranger, to 1, unmoved."
        ],
        table=pd.DataFrame(),
        chart=invariance_chart(table),
        files={"invariance": table},
    )


def _first(scored: Mapping[str, Scored]) -> Scored:
    return next(iter(scored.values()))


def _rankings(scored: Mapping[str, Scored], k: int) -> dict[str, Ranking]:
    return {label: top_k(one.similarity, None, k, one.task.ignored) for label, one in scored.items()}


def _label_first(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(tables, ignore_index=True)
    return table[["representation", *(name for name in table.columns if name != "representation")]]
