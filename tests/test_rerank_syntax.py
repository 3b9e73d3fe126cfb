"""How re-ranking steps are written, and what is said of mistakes."""

import pytest

from ssl_retrieval import rerank
from ssl_retrieval.errors import UserError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("aqe", "aqe(n=10)"),
        (" aqe ( n = 3 ) ", "aqe(n=3)"),
        ("aqe()", "aqe(n=10)"),
        ("alpha_qe(alpha=2.5)", "alpha_qe(n=10, alpha=2.5)"),
        ("dqe(c=0.1)", "dqe(n=10, negatives=200, c=0.1)"),
        ("dba(n=10)", "dba(n=10, alpha=0.0)"),
        (
            "diffusion(k=50, kq=10, gamma=3, alpha=0.99)",
            "diffusion(k=50, kq=10, gamma=3.0, alpha=0.99, iterations=20, top=1000)",
        ),
        ("k_reciprocal(k1=20, k2=6, lambda=0.3)", "k_reciprocal(k1=20, k2=6, lambda=0.3)"),
        (
            "spatial(top=20, model=homography)",
            "spatial(top=20, model=homography, features=sift, keypoints=500, min_inliers=8)",
        ),
    ],
)
def test_steps(text: str, name: str) -> None:
    (step,) = rerank.parse([text])
    assert rerank.name_of(step) == name
    assert rerank.parse([name]) == (step,)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["alpha_ge(n=3)"], "unknown re-ranking step 'alpha_ge'; did you mean 'alpha_qe'? (known: aqe, "),
        ([""], "re-ranking step '': it is written like alpha_qe(n=10, alpha=3)"),
        (["aqe(n=3"], "it is written like alpha_qe(n=10, alpha=3)"),
        (["aqe:3"], "it is written like alpha_qe(n=10, alpha=3)"),
        (["aqe(3)"], "'3' is not written as key=value"),
        (["aqe(n=)"], "'n=' is not written as key=value"),
        (["aqe(n=3,)"], "'' is not written as key=value"),
        (["alpha_qe(alfa=3)"], "no parameter 'alfa'; did you mean 'alpha'? (known: n, alpha)"),
        (["aqe(n=3, n=4)"], "n is given twice"),
        (["aqe(n=0)"], "n must be a whole number from 1 to 10000"),
        (["aqe(n=2.5)"], "n must be a whole number from 1 to 10000"),
        (["alpha_qe(alpha=-1)"], "alpha must be a number from 0 to 100"),
        (["alpha_qe(alpha=nan)"], "alpha must be a number from 0 to 100"),
        (["diffusion(alpha=1)"], "alpha must be a number from 1e-06 to 0.999999"),
        (["k_reciprocal(lambda=1.5)"], "lambda must be a number from 0 to 1"),
        (["spatial(model=rigid)"], "model must be affine or homography"),
        (["spatial", "aqe"], "aqe needs vectors, and spatial before it gives scores: swap them"),
        (["diffusion", "k_reciprocal"], "k_reciprocal needs vectors, and diffusion before it gives scores"),
    ],
)
def test_mistakes(texts: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        rerank.parse(texts)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_steps_that_go_together() -> None:
    assert len(rerank.parse(["dba", "aqe", "dqe", "diffusion", "spatial", "spatial(model=homography)"])) == 6
    assert rerank.parse([]) == ()
