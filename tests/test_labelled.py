"""Objectives on labels against pytorch-metric-learning called directly, and loops over the formulas."""

from typing import Any

import pytest
import torch
from method_makers import IMAGE_SIZE, NUM_CLASSES, in_tuples, labels_for, method_of, needs_labels, views_for
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, plugins
from ssl_retrieval.cross_batch_memory import CrossBatchMemory
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import LabelledMethod, PairsMethod
from ssl_retrieval.methods.smooth_ap import SmoothAP

LABELLED = [name for name in plugins.known("method") if needs_labels(name) and not in_tuples(name)]
DIM = 16
PLAIN = {"memory": 0}


def proxies(loss: nn.Module, ours: nn.Module) -> nn.Module:
    loss.load_state_dict(ours.state_dict())
    return loss


DIRECT: dict[str, Any] = {
    "normalised_softmax": lambda: losses.NormalizedSoftmaxLoss(NUM_CLASSES, DIM, temperature=0.05),
    "arcface": lambda: losses.ArcFaceLoss(NUM_CLASSES, DIM, margin=17.2, scale=30),
    "cosface": lambda: losses.CosFaceLoss(NUM_CLASSES, DIM, margin=0.2, scale=30),
    "subcenter_arcface": lambda: losses.SubCenterArcFaceLoss(
        num_classes=NUM_CLASSES, embedding_size=DIM, margin=17.2, scale=30, sub_centers=3
    ),
    "proxy_nca": lambda: losses.ProxyNCALoss(NUM_CLASSES, DIM, softmax_scale=9),
    "proxy_anchor": lambda: losses.ProxyAnchorLoss(NUM_CLASSES, DIM, margin=0.1, alpha=32),
    "contrastive": lambda: losses.ContrastiveLoss(pos_margin=0, neg_margin=0.7),
    "triplet": lambda: losses.TripletMarginLoss(margin=0.1),
    "multi_similarity": lambda: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
    "supcon": lambda: losses.SupConLoss(temperature=0.1),
    "nt_xent": lambda: losses.NTXentLoss(temperature=0.1),
}
MINERS: dict[str, Any] = {
    "triplet": miners.TripletMarginMiner(margin=0.1, type_of_triplets="semihard"),
    "multi_similarity": miners.MultiSimilarityMiner(epsilon=0.1),
}


def made(name: str, **options: Any) -> LabelledMethod:
    settings: dict[str, Any] = {"dim": DIM, "pool": "model"} | options
    method = method_of(name, **settings)
    assert isinstance(method, LabelledMethod)
    return method


def without_memory(name: str, **options: Any) -> LabelledMethod:
    has_memory = hasattr(plugins.find("method", name).Config, "memory")
    return made(name, **(PLAIN if has_memory else {}) | options)


def vectors_of(method: LabelledMethod, views: list[Tensor]) -> Tensor:
    return method.head(method.encoder, views[0]).detach()


def test_all_objectives_are_compared() -> None:
    assert {*DIRECT, "softmax", "smooth_ap"} == set(LABELLED)


@pytest.mark.parametrize("name", DIRECT)
def test_a_loss_is_the_librarys(name: str) -> None:
    method = without_memory(name)
    views = views_for(method, batch_size=16)
    views[1] = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 5, 5, 9, 9])
    vectors = vectors_of(method, views)
    theirs = proxies(DIRECT[name](), method.criterion)
    chosen = MINERS[name](vectors, views[1]) if name in MINERS else None
    ours = method.step(views, 0.0).loss.item()
    assert ours == pytest.approx(theirs(vectors, views[1], chosen).item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("mining", ["semihard", "hard", "all"])
def test_each_mining_of_triplets_is_the_librarys(mining: str) -> None:
    method = without_memory("triplet", mining=mining, margin=0.3)
    views = views_for(method, batch_size=16)
    vectors = vectors_of(method, views)
    miner = {
        "semihard": miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard"),
        "hard": miners.BatchHardMiner(),
        "all": lambda *_: None,
    }[mining]
    wanted = losses.TripletMarginLoss(margin=0.3)(vectors, views[1], miner(vectors, views[1]))
    assert wanted > 0
    assert method.step(views, 0.0).loss.item() == pytest.approx(float(wanted), rel=1e-5)


def test_softmax_is_the_cross_entropy_of_a_classifier_and_smoothing_spreads_it() -> None:
    for smoothing in (0.0, 0.1):
        method = made("softmax", label_smoothing=smoothing)
        views = views_for(method)
        logits = method.criterion(vectors_of(method, views)).detach().log_softmax(dim=1)
        target = nnf.one_hot(views[1], NUM_CLASSES) * (1 - smoothing) + smoothing / NUM_CLASSES
        assert method.step(views, 0.0).loss.item() == pytest.approx(float(-(target * logits).sum(1).mean()))


def naive_smooth_ap(vectors: Tensor, labels: Tensor, temperature: float) -> float:
    """Equation 8, item by item; a query is among its own positives."""
    similarity = (vectors @ vectors.T).double()
    precisions = []
    for query in range(len(labels)):
        row = similarity[query]
        positives = [i for i in range(len(labels)) if labels[i] == labels[query]]

        def rank(item: int, among: list[int], row: Tensor = row) -> float:
            others = [k for k in among if k != item]
            return 1 + sum(float(torch.sigmoid((row[k] - row[item]) / temperature)) for k in others)

        terms = [rank(i, positives) / rank(i, list(range(len(labels)))) for i in positives]
        precisions.append(sum(terms) / len(terms))
    return 1 - sum(precisions) / len(precisions)


def test_smooth_ap_is_its_formula_for_uneven_classes() -> None:
    vectors = nnf.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 3, 2, 0])
    for temperature in (0.01, 0.2):
        ours = float(SmoothAP(temperature)(vectors, labels))
        assert ours == pytest.approx(naive_smooth_ap(vectors, labels, temperature), rel=1e-4)


def test_smooth_ap_is_the_librarys_where_that_groups_rightly() -> None:
    vectors = nnf.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.arange(4).repeat_interleave(4)
    assert float(SmoothAP(0.05)(vectors, labels)) == pytest.approx(
        float(losses.SmoothAPLoss(temperature=0.05)(vectors, labels)), rel=1e-5
    )


@pytest.mark.parametrize("name", LABELLED)
def test_gradients_reach_the_encoder_and_the_loss_is_fp32(name: str) -> None:
    method = without_memory(name)
    taken: list[torch.dtype] = []
    method.criterion.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views_for(method), 0.0).loss
    loss.backward()
    assert taken == [torch.float32]
    first = next(method.encoder.parameters())
    assert first.grad is not None
    assert float(first.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", ["contrastive", "multi_similarity", "nt_xent", "supcon", "triplet"])
def test_a_memory_adds_the_loss_against_earlier_vectors(name: str) -> None:
    method = made(name, memory=12, memory_start=0.2)
    plain = without_memory(name)
    assert isinstance(method, PairsMethod)
    first, second = views_for(method, 0), views_for(method, 1)
    # Before its time, and while it is empty, a memory changes nothing.
    assert method.step(first, 0.1).loss.item() == plain.step(first, 0.1).loss.item()
    earlier = nnf.normalize(vectors_of(plain, first), dim=1)
    plain.step(second, 0.3)
    vectors = nnf.normalize(vectors_of(method, second), dim=1)
    with_memory = method.step(second, 0.3).loss.item()
    # Two tensors: the library takes pairs of one and the same for an image with itself.
    labels, theirs = labels_for(), labels_for()
    miner = MINERS.get(name, lambda *_: None)
    alone = DIRECT[name]()(vectors, labels, miner(vectors, labels))
    beside = DIRECT[name]()(vectors, labels, miner(vectors, labels, earlier, theirs), earlier, theirs)
    assert with_memory == pytest.approx(float(alone + beside), rel=1e-4)


def test_a_memory_keeps_the_latest() -> None:
    memory = CrossBatchMemory(5, 1)
    assert len(memory.content()[0]) == 0
    for start in (0, 3, 6):
        memory.add(torch.arange(start, start + 3.0)[:, None], torch.arange(start, start + 3))
    vectors, labels = memory.content()
    assert sorted(labels.tolist()) == [4, 5, 6, 7, 8]
    assert torch.equal(vectors[:, 0], labels.float())
    with pytest.raises(UserError, match=r"method\.memory=5 is shorter than a batch of 6"):
        memory.add(torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("triplet", {"mining": "hardest"}, "method.mining='hardest'"),
        ("triplet", {"margin": 0.0}, "method.margin=0.0"),
        ("arcface", {"margin": 90.0}, "method.margin=90.0"),
        ("cosface", {"scale": 0.0}, "scale=0.0"),
        ("softmax", {"label_smoothing": 1.0}, "method.label_smoothing=1.0"),
        ("subcenter_arcface", {"sub_centers": 0}, "method.sub_centers=0"),
        ("proxy_anchor", {"proxy_lr": 0.0}, "method.proxy_lr=0.0"),
        ("proxy_nca", {"num_classes": 1}, "method.num_classes=1"),
        ("supcon", {"temperature": 0.0}, "method.temperature=0.0"),
        ("contrastive", {"memory": -1}, "method.memory=-1"),
        ("smooth_ap", {"memory": 8}, "Smooth-AP ranks within a batch"),
        ("supcon", {"whiten": True, "dim": 0}, "method.whiten=true needs a projection"),
        ("supcon", {"pool": "max"}, "method.pool='max'"),
    ],
)
def test_a_mistake_is_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        method_of(name, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whitening_decorrelates_the_training_images() -> None:
    method = method_of("supcon", dim=8, whiten=True, pool="gem")
    assert isinstance(method, LabelledMethod)
    batches = [views_for(method, step) for step in range(8)]
    method.begin(iter(batches))
    with torch.no_grad():
        method.encoder.eval()
        vectors = torch.cat([method.head(method.encoder, views[0]) for views in batches])
    torch.testing.assert_close(vectors.T.cov(), torch.eye(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(vectors.mean(dim=0), torch.zeros(8), rtol=0, atol=1e-3)


def test_whitening_by_too_few_images_is_named() -> None:
    method = method_of("supcon", dim=8, whiten=True)
    with pytest.raises(UserError, match=r"method\.whiten: 4 training images span 3 dimensions"):
        method.begin(iter([[view[:4] for view in views_for(method)]]))


def test_a_head_pools_as_it_says() -> None:
    network = backbones.make("test_vit", image_size=IMAGE_SIZE, patch_size=8)
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    tokens = network.forward_features(images)  # type: ignore[operator]
    method = plugins.find("method", "supcon")
    for pool, wanted in (("cls", tokens[:, 0]), ("avg", tokens[:, 1:].mean(dim=1))):
        head = method.Method(method.Config(pool=pool), network).head
        torch.testing.assert_close(head(network, images), wanted)
