"""Which index is recommended."""

import dataclasses

from ssl_retrieval.index_audit import Audit, Latency
from ssl_retrieval.index_choice import best_within, front, recommendation
from ssl_retrieval.statistics import Interval, PairedDifference

MIB = 2**20


def audited(name: str, accuracy: float, mib: float, ms: float) -> Audit:
    return Audit(
        name=name,
        k=10,
        num_images=1000,
        recall=Interval(accuracy, accuracy, accuracy, 50),
        map_at_k=Interval(accuracy, accuracy, accuracy, 50),
        difference=PairedDifference(accuracy - 0.9, accuracy - 0.95, accuracy - 0.85, 0.01, 50),
        fixed_bytes=0,
        bytes_per_image=mib * MIB / 1000,
        bytes_at=mib * MIB,
        build_s=1,
        peak_mib=1,
        latencies=(Latency(ms, 2 * ms, 1),),
    )


EXACT = audited("exact", 0.9, 100, 5)
GOOD = audited("good", 0.88, 20, 1)
SMALL = audited("small", 0.6, 2, 2)
BEATEN = audited("beaten", 0.55, 3, 2)
ALL = [EXACT, GOOD, SMALL, BEATEN]


def test_the_front_holds_what_is_best_in_something() -> None:
    assert front(ALL) == [True, True, True, False]


def test_differences_that_nobody_measures_do_not_keep_a_choice_on_the_front() -> None:
    nearly = dataclasses.replace(EXACT, name="nearly", bytes_at=EXACT.bytes_at * 1.0001)
    faster = dataclasses.replace(nearly, latencies=(Latency(1, 2, 1),))
    assert front([EXACT, faster]) == [False, True]


def test_the_most_accurate_that_fits_is_taken() -> None:
    assert best_within(ALL, 200 * MIB) is EXACT
    assert best_within(ALL, 50 * MIB) is GOOD
    assert best_within(ALL, 20 * MIB) is GOOD
    assert best_within(ALL, 2.5 * MIB) is SMALL
    assert best_within(ALL, 1 * MIB) is None


def test_among_equally_accurate_ones_the_fastest_is_taken() -> None:
    slow = audited("slow", 0.8802, 10, 9)
    assert best_within([slow, GOOD], 50 * MIB) is GOOD


def test_the_line_says_what_it_costs() -> None:
    assert recommendation(ALL, 50 * MIB, 10**6) == (
        "within 50 MiB for 1,000,000 images: good (20 MiB), mAP@10 -0.020 [-0.070, +0.030] against exact, "
        "recall@10 0.880, 1 ms per query; measured on 1,000 images"
    )
    assert recommendation(ALL, 1 * MIB, 1000) == (
        "within 1 MiB for 1,000 images: nothing fits; the smallest is small with 2 MiB"
    )
