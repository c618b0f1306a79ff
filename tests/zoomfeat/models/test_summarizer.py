from __future__ import annotations

import pytest
import torch

from zoomfeat.models.summarizer import Summarizer, embedding_grid


@pytest.fixture(scope="module")
def summarizer():
    torch.manual_seed(0)
    return Summarizer(input_dim=12, hidden_dim=16, output_dim=24, num_layers=2, num_heads=2, mlp_dim=32).eval()


def test_shapes(summarizer):
    assert summarizer(torch.randn(3, 12, 4, 4), 2).shape == (3, 65, 24)
    assert summarizer.null_context(5).shape == (5, 65, 24)
    assert not summarizer.null_context(5).any()


def test_save_and_load(summarizer, tmp_path):
    summarizer.save_pretrained(tmp_path)
    grids = torch.randn(1, 12, 8, 8)
    assert torch.equal(Summarizer.from_pretrained(tmp_path)(grids, 7), summarizer(grids, 7))


def test_the_magnification_changes_the_tokens(summarizer):
    grids = torch.randn(1, 12, 8, 8)
    assert not torch.allclose(summarizer(grids, 4), summarizer(grids, 5))


@pytest.mark.parametrize("shape", [(1, 11, 2, 2), (1, 12, 9, 9)])
def test_wrong_grids_are_refused(summarizer, shape):
    with pytest.raises(ValueError, match="embedding grid of shape"):
        summarizer(torch.randn(*shape), 0)


def test_embedding_grid():
    grid = embedding_grid(torch.randn(2, 12, 16, 16) * 5 + 3)
    assert grid.shape == (2, 12, 8, 8)
    assert torch.allclose(grid.mean(1), torch.zeros(2, 8, 8), atol=1e-5)
    assert torch.allclose(grid.std(1), torch.ones(2, 8, 8), atol=1e-5)
