"""What each table and figure of the publication is written from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..bounds import layer_bounds
from ..collect import Collector
from ..files import read_tensors
from ..layers import Layer
from ..measure import jaccard
from ..pruning import prune
from . import drawings, figures
from .data import Dataset
from .experiments import Experiment
from .first_step import Outcome, by_importance, by_magnitude
from .models import MODELS
from .published import ACTIVE, FIRST_STEP_KEPT, JACCARD, TABLES
from .runs import DENSE, Run
from .tables import MEASURES, Row, by_iteration, comparison, markdown, rows, spread, write
from .training import error


@dataclass
class Context:
    """Where runs, data and results are."""

    out: Path
    load: Callable[[str], Dataset]
    data: dict[str, Dataset]
    """Loaded so far, by name."""
    experiments: dict[str, Experiment]
    runs: Callable[[str], list[Run]]
    """What has been run of an experiment."""
    run_folder: Callable[[str, int], Path]
    seeds: Sequence[int]

    def dataset(self, experiment: str) -> Dataset:
        """The data of an experiment, loaded once."""
        name = self.experiments[experiment].data
        if name not in self.data:
            self.data[name] = self.load(name)
        return self.data[name]

    def dense(self, experiment: str) -> dict[int, nn.Module]:
        """The networks before pruning, by seed, of those that were trained."""
        found = {}
        for seed in self.seeds:
            path = self.run_folder(experiment, seed) / DENSE
            if path.exists():
                data = self.dataset(experiment)
                model = MODELS[self.experiments[experiment].model](data.image, data.classes)
                model.load_state_dict(read_tensors(path.read_bytes(), str(path)))
                found[seed] = model.to(data.x_train.device).eval()
        return found

    def write_rows(self, what: str, title: str, found: Sequence[Row], *parts: str) -> None:
        """A table of rows and what belongs below it."""
        write(self.out, what, title, [comparison(found), *parts], [dataclasses.asdict(row) for row in found])


def results(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Tables 1 to 5, and our own beyond Table 1: results, every iteration below them, and other methods as printed."""
    table = TABLES[what]
    runs = {name: context.runs(name) for name in needs}
    parts = []
    for result in table.results:
        if group := runs[result.experiment]:
            parts.append(f"## {result.network} by iteration, measured; bold is the one in the table above\n")
            parts.append(by_iteration(group))
    if table.others:
        header = ("method", *(MEASURES[quantity][0][0].partition(",")[0] for quantity in table.quantities))
        parts += ["## Other methods, as published; not run here\n", markdown(header, table.others)]
    context.write_rows(what, table.title, rows(table, runs), *parts)


def jaccard_table(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Table 6; and the same indices with the magnitudes of another seed's network, which is what chance gives."""
    steps = _first_steps(context, needs[0])
    kept = {seed: ours.kept_percent for seed, (ours, _) in steps.items()}
    found = [_row(what, "parameters kept %", FIRST_STEP_KEPT, kept)]
    following = dict(zip(steps, [*list(steps)[1:], *list(steps)[:1]])) if len(steps) > 1 else {}
    for rule, published in JACCARD.items():
        for network, other in (("", dict(zip(steps, steps))), (" of another seed's network", following)):
            for place, value in enumerate(published):
                indices = {s: list(steps[s][0].per_layer(steps[t][1][rule]).values())[place] for s, t in other.items()}
                found.append(_row(what, f"Jaccard index, {rule} magnitude{network}, layer {place + 1}", value, indices))
    context.write_rows(what, "Table 6: LeNet-300-100, one step with alpha 0.95 against magnitudes", found)


def active_table(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Table 7."""
    steps = _first_steps(context, needs[0])
    found = []
    for rule, published in ACTIVE.items():
        for place, value in enumerate(published):
            counts = {
                seed: float(list((ours if rule == "importance scores" else others["unstructured"]).active.values())[place])
                for seed, (ours, others) in steps.items()
            }
            found.append(_row(what, f"active units, {rule}, {('input', 'fc1', 'fc2', 'fc3')[place]}", value, counts))
    context.write_rows(what, "Table 7: active neurons of LeNet-300-100 after one step", found)


def rules_table(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """The first step by the text and by the authors' scripts, on the same networks before any retraining."""
    lines, records = [], []
    for name in needs:
        experiment, data = context.experiments[name], context.dataset(name)
        variant = experiment.authors().options["variant"]
        residual = {"residual": True} if experiment.model.startswith("resnet") else {}
        rules: dict[str, dict[str, Any]] = {
            "the text": {},
            f"authors' score ({variant})": {"variant": variant},
            "authors' cut-off": {"compat": "authors"},
            "authors' silent units": {"silent": True},
            **({"authors' residual rule": residual} if residual else {}),
            "all the authors' rules": {"variant": variant, "compat": "authors", "silent": True, **residual},
        }
        networks = context.dense(name)
        texts = {seed: by_importance(model, experiment, data, seed) for seed, model in networks.items()}
        dense = {seed: error(model, data.x_test, data.y_test) for seed, model in networks.items()}
        for rule, options in rules.items():
            outcomes = {
                seed: by_importance(model, experiment, data, seed, **options) if options else texts[seed]
                for seed, model in networks.items()
            }
            values = {
                "kept %": [o.kept_percent for o in outcomes.values()],
                "Jaccard index with the text's masks": [jaccard(o.masks, texts[s].masks) for s, o in outcomes.items()],
                "error % before pruning": list(dense.values()),
                "error % after it": [o.error for o in outcomes.values()],
            }
            lines.append((name, rule, *(spread(v, 3 if "Jaccard" in k else 2) for k, v in values.items()), str(len(networks))))
            records.append({"network": name, "rule": rule, **values, "seeds": list(networks)})
    header = ("network", "rule", *values, "seeds")
    title = "The first pruning step by the text and by the authors' scripts, before any retraining; all measured"
    write(context.out, what, title, [markdown(header, lines)], records)


def network_figure(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Figure 2, of the first seed."""
    for seed, model in list(context.dense(needs[0]).items())[:1]:
        experiment, data = context.experiments[needs[0]], context.dataset(needs[0])
        with Collector(model) as collector:
            collector.run(data.pruning_set(experiment.samples, seed))
        kept = by_importance(model, experiment, data, seed).masks
        scores = {name: layer[:, :-1].cpu() for name, layer in collector.scores().items()}
        masks = {name: kept[f"{name}.weight"].cpu() for name in scores}
        drawings.network(scores, masks, context.out / f"{what}.png", f"Figure 2: LeNet-300-100 on {data.name}, seed {seed}")


def heat_map_figure(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Figure 10, of the first seed."""
    for seed, (ours, others) in list(_first_steps(context, needs[0]).items())[:1]:
        title = f"Figure 10: connections of LeNet-300-100 kept at {ours.kept_percent:.1f} %, seed {seed}"
        drawings.heat_maps(ours, others, ("fc1", "fc2", "fc3"), context.out / f"{what}.png", title)


def bounds_figure(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Figure 11: only the linear layer pruned, its outputs on all test images."""
    experiment, data = context.experiments[needs[0]], context.dataset(needs[0])
    for seed, model in list(context.dense(needs[0]).items())[:1]:
        pruned = copy.deepcopy(model)
        prune(pruned, data.pruning_set(experiment.samples, seed), alpha_fc=0.95, layers=["linear"])
        layer, kept = (cast(Layer, network.get_submodule("linear")) for network in (model, pruned))
        bound, change = (part.cpu() for part in layer_bounds(layer, kept, _entering(model, "linear", data)))
        title = f"Figure 11: {experiment.model} on {data.name}, linear layer pruned with alpha 0.95"
        drawings.bounds(bound, change, context.out / f"{what}.png", title)
        exceeded = int((change > bound * (1 + 1e-5)).sum())
        record: dict[str, Any] = {
            "images": len(change),
            "mean change": change.mean(0).tolist(),
            "mean bound": bound.mean(0).tolist(),
            "largest change": change.amax(0).tolist(),
            "largest bound": bound.amax(0).tolist(),
            "changes above their bound": exceeded,
        }
        lines = [[str(o), *(f"{record[k][o]:.4f}" for k in list(record)[1:5])] for o in range(len(bound[0]))]
        text = f"{exceeded} of {change.numel()} changes exceed their bound.\n"
        table = markdown(("output", *list(record)[1:5]), lines)
        write(context.out, what, f"{title}; measured on {len(change)} test images", [table, text], [record])


def iteration_figure(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Figures 6, 7 and 9."""
    if runs := _those_run(context, needs):
        figures.by_iteration(runs, context.out / f"{what}.png", f"{_title(what)}, mean ± std; star: iteration published")


def layer_figure(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Figures 3 and 5."""
    for name, group in _those_run(context, needs).items():
        figures.by_layer(group, context.out / f"{what}.png", f"{_title(what)}: {name}")


def tradeoff_figure(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Figure 4."""
    if runs := _those_run(context, needs):
        figures.tradeoff(runs, context.out / f"{what}.png", f"{_title(what)}: VGG-13 on CIFAR-100")


def blocks_figure(context: Context, what: str, needs: tuple[str, ...]) -> None:
    """Figure 8."""
    for name, group in _those_run(context, needs).items():
        figures.blocks(group, context.out / f"{what}.png", f"{_title(what)}: {name}")


def _first_steps(context: Context, name: str) -> dict[int, tuple[Outcome, dict[str, Outcome]]]:
    """By seed, the first step by scores, and by magnitudes to as many parameters."""
    experiment, data = context.experiments[name], context.dataset(name)
    found = {}
    for seed, model in context.dense(name).items():
        ours = by_importance(model, experiment, data, seed)
        scopes = {"structured": "layer", "unstructured": "global"}
        others = {rule: by_magnitude(model, ours.kept_percent, data, scope) for rule, scope in scopes.items()}
        found[seed] = ours, others
    return found


def _row(what: str, quantity: str, published: str, values: dict[int, float]) -> Row:
    return Row("LeNet-300-100", quantity, published, tuple(values.values()), tuple(values), f"nnrelief paper {what}")


def _entering(model: nn.Module, layer: str, data: Dataset) -> Tensor:
    """What enters a layer on the test images."""
    acts: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: acts.append(inputs[0].detach()))
    with hook:
        error(model, data.x_test, data.y_test)
    return torch.cat(acts)


def _those_run(context: Context, names: tuple[str, ...]) -> dict[str, list[Run]]:
    return {name: group for name in names if (group := context.runs(name))}


def _title(what: str) -> str:
    return what.replace("figure", "Figure ")
