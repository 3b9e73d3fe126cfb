"""Losses of distillation against loops over pairs and triplets, and what must not change them."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as nnf

from ssl_retrieval import distillation

COUNT = 7


def vectors(seed: int, dim: int = 5, count: int = COUNT) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def unit(rows: Tensor) -> Tensor:
    return rows.double() / rows.double().norm(dim=1, keepdim=True)


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def naive_similarity(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        shares = []
        for rows in (unit(student), unit(teacher)):
            weights = [math.exp(float(rows[i] @ rows[j]) / temperature) for j in others]
            shares.append([weight / sum(weights) for weight in weights])
        total += sum(p * math.log(p / q) for q, p in zip(*shares, strict=True))
    return total / len(student)


def naive_distances(student: Tensor, teacher: Tensor) -> float:
    pairs = list(permutations(range(len(student)), 2))
    found = []
    for rows in (unit(student), unit(teacher)):
        lengths = [float((rows[i] - rows[j]).norm()) for i, j in pairs]
        found.append([length / (sum(lengths) / len(lengths)) for length in lengths])
    return sum(huber(a - b) for a, b in zip(*found, strict=True)) / len(pairs)


def naive_angles(student: Tensor, teacher: Tensor) -> float:
    triplets = list(permutations(range(len(student)), 3))
    total = 0.0
    for i, j, k in triplets:
        ours, theirs = (
            float(nnf.cosine_similarity(rows[i] - rows[j], rows[k] - rows[j], dim=0))
            for rows in (unit(student), unit(teacher))
        )
        total += huber(ours - theirs)
    return total / len(triplets)


@pytest.mark.parametrize("seed", range(3))
def test_relations_are_their_formulas(seed: int) -> None:
    student, teacher = vectors(seed), vectors(seed + 100, dim=9)
    for temperature in (0.05, 0.5):
        ours = float(distillation.similarity(student, teacher, temperature))
        assert ours == pytest.approx(naive_similarity(student, teacher, temperature), rel=1e-4)
    found = float(distillation.distances(student, teacher))
    assert found == pytest.approx(naive_distances(student, teacher), rel=1e-4)
    assert float(distillation.angles(student, teacher)) == pytest.approx(
        naive_angles(student, teacher), rel=1e-4
    )


def test_matching_is_its_formula() -> None:
    student, teacher = vectors(0), vectors(1)
    cosines = (unit(student) * unit(teacher)).sum(dim=1)
    assert float(distillation.cosine(student, teacher)) == pytest.approx(1 - float(cosines.mean()), rel=1e-5)
    squares = sum(float((s - t) @ (s - t)) for s, t in zip(student, teacher, strict=True))
    lengths = sum(float(t @ t) for t in teacher)
    assert float(distillation.relative_error(student, teacher)) == pytest.approx(squares / lengths, rel=1e-5)


RELATIONS = {
    "similarity": lambda s, t: distillation.similarity(s, t, 0.1),
    "distances": distillation.distances,
    "angles": distillation.angles,
}


@pytest.mark.parametrize("name", RELATIONS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10))
def test_relations_know_neither_rotation_nor_length(name: str, seed: int, scale: float) -> None:
    student, teacher = vectors(seed), vectors(seed + 1)
    turn, _ = torch.linalg.qr(vectors(seed + 2, count=5))
    loss = RELATIONS[name]
    torch.testing.assert_close(
        loss(scale * student @ turn, teacher), loss(student, teacher), rtol=1e-3, atol=1e-5
    )
    assert float(loss(scale * teacher @ turn, teacher)) < 1e-5
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        loss(student[order], teacher[order]), loss(student, teacher), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("name", RELATIONS)
def test_gradients_are_finite_where_images_are_alike(name: str) -> None:
    student = vectors(0)
    student[1:4] = student[0]
    student.requires_grad_()
    teacher = vectors(1)
    teacher[4:6] = teacher[0]
    loss = RELATIONS[name](student, teacher)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", RELATIONS)
def test_descending_brings_the_relations_of_the_teacher(name: str) -> None:
    student, teacher = vectors(0).requires_grad_(), vectors(1)
    optimizer = torch.optim.Adam([student], lr=0.05)
    first = float(RELATIONS[name](student, teacher).detach())
    for _ in range(200):
        optimizer.zero_grad()
        loss = RELATIONS[name](student, teacher)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first / 20
