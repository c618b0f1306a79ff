"""Every head: shapes, masks, several classes, and what sets each apart."""

from __future__ import annotations

import pytest
import torch

from mil.heads import Network, build_head, head_names
from mil.heads.transformers import class_token_attention
from zoomfeat.errors import ConfigurationError

SIZES = (1, 2, 7, 13, 30)


@pytest.fixture(params=head_names())
def name(request):
    return request.param


def make(name: str, outputs: int = 3, **options):
    torch.manual_seed(0)
    return build_head(name, 6, outputs, width=16, **options).eval()


def padded_batch(noise: float = 0.0):
    """Bags of all sizes, what lies in their padding, and the mask."""
    torch.manual_seed(1)
    features = torch.randn(len(SIZES), max(SIZES), 6)
    mask = torch.arange(max(SIZES)) < torch.tensor(SIZES)[:, None]
    return torch.where(mask[..., None], features, noise), mask


def test_a_padded_batch_equals_its_bags_alone(name):
    head = make(name)
    features, mask = padded_batch(noise=50.0)
    with torch.no_grad():
        together = head(features, mask)
        for bag, size in enumerate(SIZES):
            alone = head(features[bag : bag + 1, :size], mask[bag : bag + 1, :size])
            torch.testing.assert_close(together.logits[bag], alone.logits[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.attention[bag, :size], alone.attention[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.vector[bag], alone.vector[0], rtol=1e-4, atol=1e-5)


def test_attention_is_a_distribution_over_the_instances(name):
    features, mask = padded_batch()
    output = make(name)(features, mask)
    assert output.logits.shape == (len(SIZES), 3)
    assert output.attention.shape == mask.shape
    assert (output.attention >= 0).all()
    assert (output.attention[~mask] == 0).all()
    torch.testing.assert_close(output.attention.sum(dim=1), torch.ones(len(SIZES)), rtol=1e-4, atol=1e-5)


def test_every_weight_learns(name):
    head = make(name).train()
    features, mask = padded_batch()
    labels = torch.tensor([0, 1, 2, 1, 0])
    output = head(features, mask)
    loss = output.logits.square().sum() + output.vector.sum()
    if output.side_logits is not None:
        loss = loss + output.side_logits.square().sum()
    extra = head.instance_loss(output, mask, labels)
    loss = loss if extra is None else loss + extra
    loss.backward()
    for place, parameter in head.named_parameters():
        if "norm2" in place and name == "transmil":
            continue  # torchmil makes it also where a layer has no MLP
        assert parameter.grad is not None, place
        assert parameter.grad.isfinite().all(), place


def test_one_output_for_scores(name):
    features, mask = padded_batch()
    assert make(name, outputs=1)(features, mask).logits.shape == (len(SIZES), 1)


def test_unknown_names_and_options():
    with pytest.raises(ConfigurationError, match="abmil-gated"):
        build_head("attention", 6, 2)
    with pytest.raises(ConfigurationError, match="samples"):
        build_head("abmil", 6, 2, samples=3)


def test_late_fusion_has_a_branch_for_each_magnification(name):
    torch.manual_seed(0)
    network = Network(name, [6, 4, 3], 2, width=16).eval()
    features = [torch.randn(2, count, dim) for count, dim in ((9, 6), (4, 4), (1, 3))]
    masks = [torch.ones(values.shape[:2], dtype=torch.bool) for values in features]
    output = network(features, masks)
    assert output.logits.shape == (2, 2)
    assert [branch.attention.shape for branch in output.branches] == [(2, 9), (2, 4), (2, 1)]
    changed = network([*features[:2], features[2] + 1], masks)
    assert not torch.equal(changed.logits, output.logits)


def test_instance_loss_of_clam_is_the_smooth_svm():
    """Smooth top-1 SVM (Berrada et al. 2018, eq. 9): logsumexp of scores, plus 1 for wrong ones, less the right one."""
    head = make("clam-sb", outputs=2, samples=3, instance_weight=1.0)
    features, mask = padded_batch()
    labels = torch.tensor([0, 1, 1, 0, 1])
    output = head(features, mask)

    def svm(instance, label, target):
        scores = head.instance_classifiers(instance).reshape(2, 2)[label]  # out and in, of that class
        return (scores + (torch.arange(2) != target)).logsumexp(dim=0) - scores[target]

    each = []
    for bag, size in enumerate(SIZES):
        order = output.attention[bag, :size].argsort(descending=True)
        count, label = min(3, size), int(labels[bag])
        most = [output.instances[bag, row] for row in order[:count]]
        least = [output.instances[bag, row] for row in order[-count:]]
        inside = sum(svm(row, label, 1) for row in most) + sum(svm(row, label, 0) for row in least)
        outside = sum(svm(row, 1 - label, 0) for row in most)
        each.append(inside / (2 * count) + outside / count)
    torch.testing.assert_close(head.instance_loss(output, mask, labels), torch.stack(each).mean())


def test_clam_pulls_the_attended_instances_towards_their_class():
    head = make("clam-sb", outputs=2, samples=2)
    features, mask = padded_batch()
    labels = torch.tensor([0, 1, 1, 1, 0])
    optimizer = torch.optim.SGD(head.instance_classifiers.parameters(), lr=0.5)
    losses = []
    for _ in range(30):
        loss = head.instance_loss(head(features, mask), mask, labels)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("count", [1, 5, 16, 33])
def test_attention_of_the_class_token_is_that_of_torchmil(count):
    head = make("transmil", landmarks=8)
    layer = head.transmil.layers[-1].att_module
    tokens = torch.randn(1, count, 16)
    with torch.no_grad():
        _, full = layer(tokens, return_att=True)
        torch.testing.assert_close(
            class_token_attention(layer, tokens)[0], full.mean(dim=1)[0, 0], rtol=1e-4, atol=1e-5
        )


def test_pseudo_bags_share_the_instances_evenly():
    head = make("dtfd", groups=4)
    _, mask = padded_batch()
    for training in (False, True):
        groups = head.train(training)._deal(mask)
        for bag, size in enumerate(SIZES):
            counts = torch.bincount(groups[bag, :size], minlength=4)
            assert counts.sum() == size
            assert counts.max() - counts.min() <= 1
