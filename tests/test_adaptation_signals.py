"""Label-free signals against naive loops and known answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_probes import changed, probe, unit
from scipy.stats import ortho_group

from ssl_retrieval.adaptation.probe import FAMILIES, HELD_OUT, IDENTITY, Probe
from ssl_retrieval.adaptation.signals import cka, kept_pairs, signals, signals_before, stability, steadiness
from ssl_retrieval.adaptation.views import agreement, found_again, nearest_others, silhouettes

START = probe(groups=0.8, num=42)
BETTER = probe(groups=1.6, num=42)


def test_found_again_is_one_over_the_rank() -> None:
    found = found_again(START)
    for name, values in found.items():
        cosines = START.vectors[name] @ START.photos.T
        ranks = [1 + int((row > row[i]).sum()) for i, row in enumerate(cosines)]
        np.testing.assert_allclose(values, 1 / np.array(ranks))
    assert IDENTITY not in found


def test_agreement_is_the_share_of_common_neighbours() -> None:
    for name, values in agreement(START, k=5).items():
        for i, value in enumerate(values):
            of_photo = np.argsort(-np.delete(START.photos @ START.photos[i], i))[:5]
            of_view = np.argsort(-np.delete(START.photos @ START.vectors[name][i], i))[:5]
            assert value == pytest.approx(len(set(of_photo) & set(of_view)) / 5)


def test_kept_pairs_and_stability_by_hand() -> None:
    x = unit(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, -0.5]]))
    start = Probe({IDENTITY: x})
    assert kept_pairs(start, start) == 1
    assert stability(start, start) == 1
    # The two pairs are torn apart: each partner now comes last but one.
    torn = Probe({IDENTITY: unit(np.array([[1, 0], [-1, 0.1], [1, 0.2], [-1, 0.3], [0, -1]]))})
    assert kept_pairs(start, torn) < 0.5


def test_steadiness_is_a_ratio_of_odds() -> None:
    rng = np.random.default_rng(0)
    photos = unit(rng.normal(size=(60, 8)))
    views = {
        name: unit(photos + 0.8 * rng.normal(size=photos.shape))
        for family in HELD_OUT
        for name in FAMILIES[family]
    }
    start = Probe({IDENTITY: photos, **views})
    cosines = photos @ photos.T - 2 * np.eye(60)
    nearest = cosines.argmax(1)
    sure = [i for i in range(60) if nearest[nearest[i]] == i]

    def found(queries: np.ndarray, gallery: np.ndarray) -> float:
        scores = queries @ gallery.T
        return float(
            np.mean(
                [1 / sum(scores[i, j] >= scores[i, nearest[i]] for j in range(60) if j != i) for i in sure]
            )
        )

    moved = unit(photos + 0.3 * rng.normal(size=photos.shape))
    kept, altered = found(moved, moved), np.mean([found(view, photos) for view in views.values()])
    assert 0 < altered < kept < 1
    odds = kept / (1 - kept) / (altered / (1 - altered))
    assert steadiness(start, Probe({IDENTITY: moved, **views})) == pytest.approx(np.log(odds), abs=1e-6)
    # However firm the pairs are, a training that loses none of them is steadier than the alterations.
    assert steadiness(start, start) == pytest.approx(np.log((2 * len(sure) - 1) / (altered / (1 - altered))))
    assert np.isnan(steadiness(Probe({IDENTITY: photos}), start))


def test_better_features_have_better_signals() -> None:
    found = signals(START, BETTER)
    for name in ("agreement", "agreement_geometric", "clusters"):
        assert found[name] > 0.02, name
    assert 0 < found["kept_neighbours"] < 1
    assert 0 < found["kept_pairs"] <= 1


def test_the_start_against_itself_changes_nothing() -> None:
    found = signals(START, START)
    same = {"kept_neighbours": 1.0, "kept_pairs": 1.0, "cka": 1.0, "steadiness": steadiness(START, START)}
    assert same["steadiness"] > 1
    for name, value in found.items():
        assert value == pytest.approx(same.get(name, 0.0), abs=1e-6), name


def test_few_directions_show_in_the_rank() -> None:
    flat = Probe({name: unit(v[:, :2]) for name, v in START.vectors.items()}, START.ids)
    assert signals(START, flat)["rank"] < -1


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_turning_the_space_changes_nothing(seed: int) -> None:
    turn = ortho_group.rvs(START.photos.shape[1], random_state=seed)
    turned = Probe({name: unit(v @ turn) for name, v in BETTER.vectors.items()}, BETTER.ids)
    before, after = signals(START, BETTER), signals(START, turned)
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=2e-3), name


def test_cka_against_the_formula_with_centring_matrices() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(20, 9)).astype(np.float32)
    h = np.eye(20) - 1 / 20
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    assert cka(x, y) == pytest.approx(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)), abs=1e-5)
    assert np.isnan(cka(x, np.ones_like(x)))


def test_silhouettes_know_groups_and_survive_equal_photos() -> None:
    assert silhouettes(probe(groups=4, num=42).photos).mean() > silhouettes(START.photos).mean() + 0.1
    assert (silhouettes(np.ones((12, 3), np.float32)) == 0).all()
    assert (silhouettes(unit(np.eye(3))) == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_silhouettes_do_not_know_directions(seed: int) -> None:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(24, 24)))[0].astype(np.float32)
    photos = probe(groups=1.2, seed=seed).photos
    np.testing.assert_allclose(silhouettes(photos @ turn), silhouettes(photos), atol=1e-4)


def test_equal_groups_of_other_photos_have_equal_silhouettes() -> None:
    means = [silhouettes(probe(groups=1.2, seed=seed).photos).mean() for seed in range(6)]
    clearer = [silhouettes(probe(groups=1.4, seed=seed).photos).mean() for seed in range(6)]
    assert max(means) < min(clearer)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_photos_give_nan(count: int) -> None:
    few = START.take(np.arange(len(START)) < count)
    assert all(np.isnan(value) for value in signals(few, few).values())
    assert all(np.isnan(value) for value in signals_before(few).values())


def test_twelve_photos_and_equal_photos_give_numbers_or_nan_but_no_error() -> None:
    few = START.take(np.arange(len(START)) < 12)
    assert np.isfinite(signals(few, changed(few, 0.1))["agreement"])
    equal = Probe({name: np.repeat(v[:1], 12, axis=0) for name, v in START.vectors.items()})
    assert signals(equal, equal).keys() == signals(few, few).keys()


def test_broken_vectors_give_nan() -> None:
    broken = Probe({name: v * np.float32("nan") for name, v in START.vectors.items()}, START.ids)
    assert all(np.isnan(value) for value in signals(START, broken).values())
    assert signals(START, broken).keys() == signals(START, START).keys()


def test_before_training_the_terms_are_those_of_the_start() -> None:
    before = signals_before(START)
    assert before["start_agreement_colour"] == pytest.approx(
        np.mean([agreement(START)[name].mean() for name in ("gray", "color")])
    )
    assert before["start_colour_dependence"] == pytest.approx(
        before["start_agreement"] - before["start_agreement_colour"]
    )


def test_a_photo_is_never_its_own_neighbour() -> None:
    x = np.ones((6, 2), np.float32)
    assert not (nearest_others(x, x, 10) == np.arange(6)[:, None]).any()
