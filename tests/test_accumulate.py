"""Accumulators: sums that merge, save, go on and add over ranks, and give what one call on all samples gives."""

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

from nnrelief_kernels import Collector, ConvAccumulator, LinearAccumulator, reference


def conv_layer():
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)


@pytest.fixture
def maps():
    return torch.randn(30, 4, 7, 7, generator=torch.Generator().manual_seed(1))


def accumulated(layer, batches, *variant):
    accumulator = (LinearAccumulator if isinstance(layer, nn.Linear) else ConvAccumulator)(layer, *variant)
    for batch in batches:
        accumulator.update(batch)
    return accumulator


@pytest.mark.parametrize("variant", ["paper", "norm_of_mean", "l1"])
def test_conv_merges_saves_and_goes_on(maps, variant):
    layer = conv_layer()
    expected = reference.score_conv(layer.weight, maps, layer.bias, stride=2, padding=1, groups=2, variant=variant)
    merged = accumulated(layer, [], variant)
    for part in maps.split(11):
        merged.merge(accumulated(layer, [part], variant))
    merged.merge(accumulated(layer, [], variant))  # one that has seen nothing adds nothing
    assert merged.samples == 30
    torch.testing.assert_close(merged.scores().double(), expected, rtol=1e-5, atol=0)

    half = accumulated(layer, maps[:16].split(4), variant).state_dict()
    resumed = accumulated(layer, [], variant)
    resumed.load_state_dict(half)
    for batch in maps[16:].split(4):
        resumed.update(batch)
    assert torch.equal(resumed.scores(), accumulated(layer, maps.split(4), variant).scores())
    assert int(half["samples"]) == 16  # a state is a copy, not the sums themselves


def test_linear_over_tokens_and_single_samples():
    torch.manual_seed(0)
    layer, tokens = nn.Linear(5, 3), torch.randn(4, 7, 5)
    expected = reference.score_linear(layer.weight, tokens, layer.bias)
    one_by_one = accumulated(layer, [token for sequence in tokens for token in sequence])
    assert one_by_one.samples == 28
    for accumulator in (accumulated(layer, [tokens]), one_by_one):
        torch.testing.assert_close(accumulator.scores().double(), expected, rtol=1e-5, atol=0)


def test_maps_of_several_sizes_add_up(maps):
    layer = conv_layer()
    accumulator = accumulated(layer, [maps, maps[:, :, :5, :6]])
    options = {"stride": 2, "padding": 1, "groups": 2, "normalize": False}
    signal = sum(reference.score_conv(layer.weight, x, layer.bias, **options) for x in (maps, maps[:, :, :5, :6]))
    torch.testing.assert_close(accumulator.scores().double(), reference.share(signal), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="must keep the map size"):
        accumulated(layer, [maps, maps[:, :, :5, :6]], "norm_of_mean")


def test_sums_of_another_layer_or_variant_are_refused(maps):
    layer = conv_layer()
    wide = nn.Conv2d(4, 8, 3, groups=2)
    with pytest.raises(ValueError, match="must have shape"):
        accumulated(layer, [maps]).merge(accumulated(wide, [maps]))
    with pytest.raises(ValueError, match="must have shape"):
        accumulated(layer, [maps], "norm_of_mean").merge(accumulated(layer, [maps[:, :, :5]], "norm_of_mean"))
    with pytest.raises(ValueError, match="state must hold"):
        accumulated(layer, [maps]).load_state_dict({"signal": torch.ones(6, 2)})


def test_all_reduce_needs_a_process_group(maps):
    with pytest.raises(RuntimeError, match="init_process_group"):
        accumulated(conv_layer(), [maps]).all_reduce()


def model():
    return nn.Sequential(conv_layer(), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5)).eval()


def rank(number, shards, variant, folder):
    """One process: scores of its shard, added over all ranks."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=len(shards))
    with Collector(model(), variant=variant) as collector:
        if len(shards[number]):
            collector.run(shards[number].split(4))
    collector.all_reduce()
    torch.save(collector.scores(), f"{folder}/{number}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("variant", ["paper", "norm_of_mean"])
def test_ranks_with_uneven_and_empty_shards_agree_with_one_process(maps, tmp_path, variant):
    shards = [maps[:19], maps[19:], maps[:0]]
    multiprocessing.spawn(rank, (shards, variant, tmp_path), nprocs=len(shards))
    with Collector(model(), variant=variant) as collector:
        collector.run([maps])
    ranks = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(len(shards))]
    for name, scores in collector.scores().items():
        torch.testing.assert_close(ranks[0][name], scores, rtol=1e-6, atol=1e-9)
        assert all(torch.equal(other[name], ranks[0][name]) for other in ranks)
