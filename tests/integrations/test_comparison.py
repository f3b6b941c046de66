"""The comparison with Torch-Pruning's criteria: every one prunes to the FLOPs asked for, and leaves the original as it was."""

import pytest
import torch

pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed: pip install 'nnrelief-kernels[integrations]'")
from benchmarks.torch_pruning import by_alpha, by_ratio, importance, to_flops
from nnrelief_kernels.paper.models import ResNet


@pytest.mark.parametrize(
    ("criterion", "rule"),
    [
        ("relief", by_alpha),
        ("relief", lambda r: by_ratio(r, True)),
        *((c, lambda r: by_ratio(r, False)) for c in ("relief", "magnitude", "taylor", "activation")),
    ],
)
def test_equal_flops(criterion, rule):
    torch.manual_seed(0)
    model = ResNet((3, 32, 32), 10, blocks=(1, 1, 1)).eval()
    x = torch.rand(8, 3, 32, 32)
    ranking = importance(criterion, model, x, torch.arange(8))
    found = {name: p.shape for name, p in model.named_parameters()}
    pruned = to_flops(model, ranking, rule, 0.3)
    assert pruned(x).shape == (8, 10)
    assert {name: p.shape for name, p in model.named_parameters()} == found
    assert pruned.conv1.out_channels == 16  # what the shortcuts carry stays whole
    assert pruned.layer2[0].conv2.out_channels == 32

    def multiplications(network):
        convs = [b.get_submodule(c) for s in (1, 2, 3) for b in network.get_submodule(f"layer{s}") for c in ("conv1", "conv2")]
        return [conv.weight.numel() * (32 >> (k // 2)) ** 2 for k, conv in enumerate(convs)]

    stem = 3 * 16 * 9 * 32**2
    taken = 1 - (sum(multiplications(pruned)) + stem) / (sum(multiplications(model)) + stem)
    assert 0.29 < taken < 0.45  # the next channel of every layer is at most 1/16 of it
