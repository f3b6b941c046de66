"""keep_mask, keep_rank and target_sparsity against the literal rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnrelief_kernels import keep_mask, keep_rank, reference, target_sparsity

# sixteenths and the like: every sum is exact, so that ties and equality with alpha are real
dyadic_rows = st.lists(st.integers(0, 6), min_size=1, max_size=24).map(lambda row: torch.tensor([row]) / 64)
dyadic_alphas = st.integers(1, 64).map(lambda n: n / 64)


@given(dyadic_rows, dyadic_alphas, st.sampled_from(["paper", "authors"]), st.sampled_from([torch.float32, torch.float64]))
def test_ties_zeros_and_single_inputs_follow_the_literal_rule(row, alpha, compat, dtype):
    row = row.to(dtype)
    assert torch.equal(keep_mask(row, alpha, compat=compat), reference.keep_mask(row, alpha, compat=compat))


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.9, 0.95, 1.0])
def test_thousands_of_random_rows(alpha):
    scores = torch.rand(3000, 40, generator=torch.Generator().manual_seed(0)) ** 4
    scores[::3, ::2] = 0
    scores[::50] = 0
    scores = scores / scores.sum(1, keepdim=True).clamp(min=1e-30)
    mask = keep_mask(scores, alpha)
    assert torch.equal(keep_rank(scores) > 1 - alpha, mask)
    assert torch.equal(mask, reference.keep_mask(scores, alpha))


def test_alpha_one_keeps_all_that_carries_and_rows_of_zeros_stay_whole():
    scores = torch.tensor([[0.7, 0.3, 1e-12, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert keep_mask(scores, 1.0).tolist() == [[True, True, True, False], [True] * 4]


@given(dyadic_rows, dyadic_alphas, st.randoms())
def test_the_order_of_columns_does_not_matter(row, alpha, random):
    order = list(range(row.shape[1]))
    random.shuffle(order)
    assert torch.equal(keep_mask(row[:, order], alpha), keep_mask(row, alpha)[:, order])


def test_min_keep():
    assert keep_mask(torch.tensor([[0.75, 0.125, 0.0625, 0.0625]]), 0.5, min_keep=2).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "1 NaN"), (float("inf"), "1 infinite"), (-0.5, "1 negative")])
def test_scores_that_are_no_shares_are_counted(value, message):
    with pytest.raises(ValueError, match=message):
        keep_mask(torch.tensor([[0.5, value]]), 0.9)


@pytest.mark.parametrize("alpha", [0, -0.1, 1.01, float("nan"), True, "0.9"])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\]"):
        keep_mask(torch.ones(1, 1), alpha)


def test_scores_of_another_type():
    with pytest.raises(TypeError, match="floating-point"):
        keep_rank(torch.ones(2, 2, dtype=torch.int64))


@given(st.integers(0, 90), st.integers(0, 2**32))
def test_target_sparsity_is_met_and_no_larger_alpha_meets_it(percent, seed):
    scores = torch.rand(7, 31, generator=torch.Generator().manual_seed(seed))
    scores = scores / scores.sum(1, keepdim=True)
    alpha = target_sparsity({"layer": scores}, percent / 100)
    assert float((~keep_mask(scores, alpha)).double().mean()) >= percent / 100
    if alpha < 1:
        assert float((~keep_mask(scores, min(1.0, alpha + 1e-9))).double().mean()) < percent / 100 + 1 / scores.numel()


def test_target_sparsity_out_of_reach():
    with pytest.raises(ValueError, match=r"at most 0\.7500"):
        target_sparsity(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), 0.9)
