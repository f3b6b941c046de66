"""Published LeNets on real MNIST images: the package's numbers where the truth is known from elsewhere."""

import pytest
import torch

from nnrelief_kernels import Collector, measure, prune, reference
from nnrelief_kernels.paper.models import LeNet300100
from nnrelief_kernels.paper.training import error
from tests.data import caffe_lenet5, load_caffe, mnist_test, needs_data

pytestmark = needs_data


@pytest.fixture(scope="module")
def mnist():
    return mnist_test()


@pytest.mark.parametrize(
    ("network", "name", "parameters", "kept", "wrong"),
    [
        (LeNet300100, "caffe_lenet300100_original", 266_610, 266_610, 2.28),
        (LeNet300100, "caffe_lenet300100_sparse", 266_610, 4_988, 1.99),
        (caffe_lenet5, "caffe_lenet5_original", 431_080, 431_080, 0.91),
        (caffe_lenet5, "caffe_lenet5_sparse", 431_080, 3_993, 0.91),
    ],
)
def test_published_networks_measure_as_published(mnist, network, name, parameters, kept, wrong):
    model = load_caffe(network(), name)
    images, labels = mnist
    assert error(model, images, labels) == pytest.approx(wrong, abs=0.02)
    found = measure(model, images[:1])
    assert (found.parameters, found.kept) == (parameters, kept)
    assert found.compression == pytest.approx(parameters / kept)


def test_scores_of_lenet5_are_the_oracles(mnist):
    model, images = load_caffe(caffe_lenet5(), "caffe_lenet5_original"), mnist[0][:20]
    inputs = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, layer in model.named_children()
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    with Collector(model) as collector:
        collector.run(images.split(7))
    for name, scores in collector.scores().items():
        layer = model.get_submodule(name)
        score = reference.score_conv if name.startswith("conv") else reference.score_linear
        expected = score(layer.weight[:8], inputs[name], layer.bias[:8])  # rows are independent
        torch.testing.assert_close(scores[:8].double(), expected, rtol=1e-5, atol=1e-12)


def test_the_sparse_network_carries_its_signal_where_the_dense_one_was_kept(mnist):
    """One step at alpha 0.95 removes most of the dense network, and the network still works without retraining."""
    images, labels = mnist
    model = load_caffe(LeNet300100(), "caffe_lenet300100_original")
    dense = error(model, images, labels)
    prune(model, images[:1000].split(250), alpha_fc=0.95)
    assert measure(model, images[:1]).kept_percent < 50
    assert error(model, images, labels) < dense + 2
