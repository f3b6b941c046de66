"""The oracle against numbers worked out by hand."""

import torch

from nnrelief_kernels import reference


def test_linear_by_hand():
    weight = torch.tensor([[1.0, -3.0], [0.0, 0.0]])
    acts = torch.tensor([[1.0, 2.0], [-3.0, 0.0]])
    bias = torch.tensor([0.5, 0.0])
    # mean |w x| of neuron 0: 1 * 2, 3 * 1, bias 0.5; neuron 1 carries nothing
    expected = torch.tensor([[2.0, 3.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected[0] /= 5.5
    torch.testing.assert_close(reference.score_linear(weight, acts, bias), expected)


def test_conv_by_hand():
    kernel = torch.tensor([[[1.0, -2.0]]])  # one filter, one channel, k = 2
    acts = torch.tensor([[[1.0, 2.0, -3.0]], [[0.0, 0.0, 1.0]]])
    # maps of |K| * |x|: (1 + 4, 2 + 6) and (0, 2)
    expected = torch.tensor([[(5.0**2 + 8.0**2) ** 0.5 + 2.0]], dtype=torch.float64)
    torch.testing.assert_close(reference.score_conv(kernel, acts, normalize=False), expected)
    mean_map = torch.tensor([[(5.0**2 + 10.0**2) ** 0.5]], dtype=torch.float64)
    torch.testing.assert_close(reference.score_conv(kernel, acts, variant="norm_of_mean", normalize=False), mean_map)
    plain_sum = torch.tensor([[15.0, 2 * 0.5 * 2]], dtype=torch.float64)
    bias = torch.tensor([-0.5])
    torch.testing.assert_close(reference.score_conv(kernel, acts, bias, variant="l1", normalize=False), plain_sum)


def test_rule_by_hand():
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.125, 0.25, 0.5, 0.125]])
    assert reference.keep_mask(scores, 0.75).tolist() == [[True, True, False, False], [False, True, True, False]]
    assert reference.keep_mask(scores, 0.8).tolist() == [[True] * 4] * 2  # ties with the third stay
    assert reference.keep_mask(scores, 0.75, compat="authors")[0].tolist() == [True, True, False, False]
    assert reference.keep_mask(scores, 0.8, compat="authors")[0].tolist() == [True, True, False, False]
