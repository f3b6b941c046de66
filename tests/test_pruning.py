"""prune and prune_iteratively: the paper's order, the masks they leave, and runs that stop and go on."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from nnrelief_kernels import fold_masks, get_masks, measure, prune, prune_iteratively, reference, remove_dead
from nnrelief_kernels.history import read_history
from nnrelief_kernels.masks import dense_state


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.fc1 = nn.Linear(4 * 4 * 4, 12)
        self.fc2 = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(self.conv(x).relu(), 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def batches():
    return list(torch.randn(5, 8, 2, 8, 8, generator=torch.Generator().manual_seed(1)))


def retrain(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    for _ in range(5):
        x, y = torch.randn(16, 2, 8, 8), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_masks_are_the_papers_on_the_unpruned_networks_activations(model, batches):
    original = copy.deepcopy(model)
    masks = prune(model, batches, alpha_conv=0.8, alpha_fc=0.7, drop_unread=False)
    x = torch.cat(batches)
    inputs = {"conv": x}
    inputs["fc1"] = torch.nn.functional.max_pool2d(original.conv(x).relu(), 2).flatten(1)
    inputs["fc2"] = original.fc1(inputs["fc1"]).relu()
    conv = reference.score_conv(original.conv.weight, inputs["conv"], original.conv.bias, padding=1)
    expected = {"conv": reference.keep_mask(conv, 0.8)}
    for name in ("fc1", "fc2"):
        layer = getattr(original, name)
        expected[name] = reference.keep_mask(reference.score_linear(layer.weight, inputs[name], layer.bias), 0.7)
    for name, keep in expected.items():
        assert torch.equal(masks[f"{name}.weight"].flatten(1), keep[:, :-1])
        assert torch.equal(masks[f"{name}.bias"], keep[:, -1])


def test_masks_hold_in_training_and_only_shrink(model, batches):
    before = prune(model, batches, alpha_conv=0.9, alpha_fc=0.9)
    retrain(model)
    assert torch.all(model.fc1.weight[~before["fc1.weight"]] == 0)
    after = prune(model, batches, alpha_conv=0.9, alpha_fc=0.9)
    assert all(torch.all(before[name] | ~after[name]) for name in after)
    assert sum(int(m.sum()) for m in after.values()) < sum(int(m.sum()) for m in before.values())
    output = model(batches[0])
    fold_masks(model)
    assert torch.equal(model(batches[0]), output)
    assert set(model.state_dict()) == set(Small().state_dict())


def test_units_nothing_reads_go_without_changing_the_outputs(model, batches):
    plain = copy.deepcopy(model)
    kept = prune(plain, batches, alpha_conv=0.5, alpha_fc=0.3, drop_unread=False)
    dropped = prune(model, batches, alpha_conv=0.5, alpha_fc=0.3)
    assert torch.equal(model(batches[0]), plain(batches[0]))
    assert all(torch.all(kept[name] | ~dropped[name]) for name in kept)
    read = kept["fc2.weight"].any(0)
    assert not read.all()
    assert not dropped["fc1.weight"][~read].any()
    assert not dropped["fc1.bias"][~read].any()
    remove_dead(plain, batches[0], fold=False)
    assert all(torch.equal(mask, get_masks(plain)[name]) for name, mask in dropped.items())


def test_a_model_that_cannot_be_traced_keeps_its_dead_units_and_says_why(model, batches):
    class ByValue(Small):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    other = ByValue()
    other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=r"dead units keep their connections: ByValue cannot be traced: .*data.dependent"):
        masks = prune(other, batches, alpha_conv=0.5, alpha_fc=0.3)
    plain = prune(model, batches, alpha_conv=0.5, alpha_fc=0.3, drop_unread=False)
    assert all(torch.equal(masks[name], mask) for name, mask in plain.items())


def test_chosen_layers_only(model, batches):
    assert set(prune(model, batches, layers=["fc1"])) == {"fc1.weight", "fc1.bias"}


def test_layers_never_called_are_named_and_kept(model, batches):
    model.spare = nn.Linear(3, 3)
    with pytest.warns(UserWarning, match="spare"):
        masks = prune(model, batches)
    assert "spare.weight" not in masks


def test_layers_left_out_and_shares_by_pattern(model, batches):
    plain = copy.deepcopy(model)
    whole = prune(plain, batches, alpha_conv=0.8, alpha_fc=0.7, drop_unread=False)
    shares = {"fc1": 0.4, "fc*": 0.7, "conv": 0.8}
    found = prune(model, batches, alpha_conv=1.0, alpha_fc=1.0, alphas=shares, exclude=["fc2"], drop_unread=False)
    assert set(found) == {"conv.weight", "conv.bias", "fc1.weight", "fc1.bias"}
    assert torch.equal(found["conv.weight"], whole["conv.weight"])
    fewer = found["fc1.weight"]
    assert torch.all(whole["fc1.weight"] | ~fewer)
    assert fewer.sum() < whole["fc1.weight"].sum()


def test_each_layer_is_scored_behind_the_pruned_ones_where_that_is_asked_for(model, batches):
    original = copy.deepcopy(model)
    masks = prune(model, batches, alpha_conv=0.6, alpha_fc=0.6, propagate="pruned", drop_unread=False)
    expected = copy.deepcopy(original)
    x = torch.cat(batches)
    for name in ("conv", "fc1", "fc2"):
        layer, inputs = getattr(expected, name), []
        hook = layer.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        with torch.no_grad():
            expected(x)
        hook.remove()
        options = {"padding": 1} if name == "conv" else {}
        score = reference.score_conv if name == "conv" else reference.score_linear
        keep = reference.keep_mask(score(layer.weight, inputs[0], layer.bias, **options), 0.6)
        assert torch.equal(masks[f"{name}.weight"].flatten(1), keep[:, :-1])
        assert torch.equal(masks[f"{name}.bias"], keep[:, -1])
        with torch.no_grad():
            layer.weight *= masks[f"{name}.weight"]
            layer.bias *= masks[f"{name}.bias"]
    other = prune(original, batches, alpha_conv=0.6, alpha_fc=0.6, drop_unread=False)
    assert not torch.equal(other["fc2.weight"], masks["fc2.weight"])


def test_a_failure_under_the_pruned_order_changes_nothing(model, batches):
    with torch.no_grad():
        model.fc2.weight[0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="layer 'fc2'"):
        prune(model, batches, propagate="pruned")
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(TypeError, match="more than once"):
        prune(model, iter(batches), propagate="pruned")


def tied_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    return model


def test_tied_weights_have_one_mask_and_each_its_bias():
    model, x = tied_model(), torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = model[0](x).relu()
    signal = sum(
        reference.score_linear(model[0].weight, acts, model[place].bias, normalize=False)
        for place, acts in ((0, x), (2, hidden))
    )
    keep = reference.keep_mask(reference.share(signal), 0.6)
    masks = prune(model, x, alpha_fc=0.6, alphas={"4": 0.05}, drop_unread=False)
    assert set(masks) == {"0.weight", "0.bias", "2.bias", "4.weight", "4.bias"}
    assert torch.equal(masks["0.weight"], keep[:, :-1])
    assert torch.equal(masks["2.bias"], keep[:, -1])
    assert torch.equal(model[2].weight != 0, keep[:, :-1])
    fold_masks(model)
    assert model[2].weight is model[0].weight


def test_a_transformer_is_pruned_with_its_attention(batches):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    tokens = torch.randn(4, 5, 8)
    masks = prune(model, tokens, alpha_fc=0.8)
    layers = {"self_attn.out_proj", "linear1", "linear2"}
    assert {name.rpartition(".")[0] for name in masks} == layers
    assert torch.equal(model.self_attn.out_proj.weight != 0, masks["self_attn.out_proj.weight"])
    assert measure(model, tokens).parameters == sum(p.numel() for n, p in model.named_parameters() if "norm" not in n) - 24 * 9
    again = prune(model, tokens, alpha_fc=0.8)
    assert all(torch.all(masks[name] | ~again[name]) for name in again)
    with torch.no_grad():
        fused = model.eval()(tokens)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            plain = model(tokens)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(fused, plain)


KINDS = {
    "1-d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
    "2-d in groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 7, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 7, 6)),
    "3-d": (nn.Conv3d(4, 6, (1, 3, 2), dilation=(1, 2, 1)), (4, 3, 7, 5)),
    "tokens": (nn.Linear(4, 6), (5, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_masked_as_the_reference_says(kind):
    torch.manual_seed(0)
    layer, shape = copy.deepcopy(KINDS[kind][0]), KINDS[kind][1]
    acts = torch.randn(12, *shape)
    if isinstance(layer, nn.Linear):
        scores = reference.score_linear(layer.weight, acts, layer.bias)
    else:
        options = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
        scores = reference.score_conv(layer.weight, acts, layer.bias, **options)
    keep = reference.keep_mask(scores, 0.75)
    masks = prune(layer, acts.split(5), alpha_conv=0.75, alpha_fc=0.75)
    assert torch.equal(masks["weight"].flatten(1), keep[:, : layer.weight.shape[1]])
    if layer.bias is not None:
        assert torch.equal(masks["bias"], keep[:, -1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_name_the_layer_and_change_nothing(model, batches, bad):
    batches[2][0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"layer 'conv'.*4 NaN|layer 'conv'.*NaN"):
        prune(model, batches)
    assert get_masks(model) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_fc": 1.5}, "alpha_fc must be in"),
        ({"alpha_conv": 0.0}, "alpha_conv must be in"),
        ({"compat": "papre"}, "compat must be"),
        ({"layers": ["fc3"]}, "fc3"),
        ({"variant": "mean"}, "variant must be"),
        ({"propagate": "forwards"}, "propagate must be"),
        ({"alphas": {"fc1": 2.0}}, r"alphas\['fc1'\] must be in"),
        ({"alphas": {"fc3": 0.5}}, "alphas names 'fc3'"),
        ({"exclude": ["bn"]}, "exclude names 'bn'"),
    ],
)
def test_wrong_options(model, batches, options, message):
    with pytest.raises(ValueError, match=message):
        prune(model, batches, **options)
    assert get_masks(model) == {}


def run(model, batches, folder, iterations, **options):
    torch.manual_seed(3)
    return prune_iteratively(
        model,
        batches,
        retrain,
        iterations=iterations,
        evaluate=lambda m: m(batches[0]).square().mean().item(),
        checkpoint=folder,
        log=folder / "history.jsonl",
        progress=False,
        **options,
    )


@pytest.mark.parametrize("rewound", [False, True])
def test_stopped_and_resumed_gives_the_same_bits(batches, tmp_path, rewound):
    def fresh():
        torch.manual_seed(0)
        model = Small()
        return model, {"rewind": dense_state(model) if rewound else None, "alpha_fc": 0.8}

    whole, options = fresh()
    expected = run(whole, batches, tmp_path / "whole", 3, **options)
    stopped, options = fresh()
    run(stopped, batches, tmp_path / "parts", 1, **options)
    resumed, options = fresh()
    torch.rand(17)  # the generators are somewhere else by now
    history = run(resumed, batches, tmp_path / "parts", 3, **options)

    def without_time(history):
        return [{**vars(i), "seconds": None} for i in history]

    assert without_time(history) == without_time(expected)
    assert without_time(read_history(tmp_path / "parts" / "history.jsonl")) == without_time(expected)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    kept = [i.kept for i in history]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[0]


def test_history_is_json_lines(model, batches, tmp_path):
    run(model, batches, tmp_path, 1)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1]
    assert lines[0]["kept_percent"] == 100
    assert lines[1]["kept_per_layer"].keys() == {"conv", "fc1", "fc2"}


def test_checkpoint_of_another_network_is_refused(model, batches, tmp_path):
    run(model, batches, tmp_path, 1)
    with pytest.raises(ValueError, match="not a checkpoint of this network"):
        prune_iteratively(nn.Linear(3, 3), batches, retrain, iterations=2, checkpoint=tmp_path)


def test_one_shot_iterators_are_refused(model, batches):
    with pytest.raises(TypeError, match="more than once"):
        prune_iteratively(model, iter(batches), retrain, iterations=1)


def test_a_new_process_prunes_without_a_warning():
    program = "import torch, nnrelief_kernels; from torch.nn import Linear, ReLU, Sequential as S"
    program += "; nnrelief_kernels.prune(S(Linear(4, 3), ReLU(), Linear(3, 2)), torch.rand(9, 4))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
