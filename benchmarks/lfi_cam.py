"""LFI-CAM, ABN and their controls: accuracy, where maps lie, how steady they are.

    python benchmarks/lfi_cam.py C1-10                     # digits on textures: two cores, 20 min
    python benchmarks/lfi_cam.py G1 --time-budget 540      # Tiny-ImageNet-20: on a GPU, repeatedly
    python benchmarks/lfi_cam.py --page                    # writes lfi_cam.md of all results

Every command goes on from where the last one stopped: runs that are done are not done again, and
with ``--time-budget`` it leaves when the seconds are over and says what is left. C is for two
cores, G for a GPU. C1 and G3 are digits on textures (with 10 and with 2 classes), C2 and G1
Tiny-ImageNet-20, C3 and G2 CIFAR-10. Weights are those of the last epoch: nothing is selected. On
a GPU, jax 0.11.2 needs ``XLA_FLAGS=--xla_gpu_enable_triton_gemm=false``: else XLA stops in
``triton_tiling_propagation``.
"""

import argparse
import json
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from attention_measures import curves, kinds_of_pairs, look, merge, no_net, placed, steadiness
from attention_page import OWN, write_page
from attention_runs import ARMS, EXPERIMENTS, Run, Trainer, inputs, listed, train
from measure import RESULTS, environment

from jaxfmi.command import networks
from jaxfmi.report import panel

HERE = Path(__file__).parent
DATA = [HERE.parents[1] / "shared" / "data", HERE.parent / "shared" / "data"]


def measure(trainer: Trainer, state, run: Run, data, x, count: int) -> tuple[dict, dict]:
    """Everything about one network; and its maps [N, S, S] of the test pictures."""
    seen = look(trainer.graph, state, x, data.size)
    right = {k: v.argmax(-1) == data.test_labels for k, v in seen["said"].items()}
    found: dict[str, Any] = {
        **run._asdict(),
        "parameters": networks.count(merge(trainer.graph, *state[:2])),
        "accuracy": {k: float(v.mean()) for k, v in right.items()},
        "maps": {k: placed(m, data.regions, data.small) for k, m in seen["maps"].items()},
    }
    if "effective" in seen:
        found["effective channels"] = float(seen["effective"].mean())
    first = next(iter(trainer.experiment.settings))
    if count and run.setting == first:
        shown = {k: m[:count] for k, m in seen["maps"].items() if k in ("A", "CAM")}
        found["curves"] = curves(trainer.graph, state, x[:count], shown)
    return found, {
        "right": right["own"],
        **{k: m.astype(np.float16) for k, m in seen["maps"].items()},
    }


def sanity(trainer: Trainer, state, x, size: int, seed: int) -> dict[str, float]:
    """How like themselves the map A and the weights w stay (Pearson, mean over pictures).

    With a random FIN, with a random backbone, and the map with equal weights.
    """
    other, seen = trainer.start(seed + 1000), {}
    for part in (None, "fin", "backbone"):
        mixed = [
            type(a)({k: (b if k == part else a)[k] for k in a})
            for a, b in zip(state[:2], other[:2], strict=True)
        ]
        blend = state._replace(params=mixed[0], stats=mixed[1])
        seen[part] = look(trainer.graph, blend, x, size)
    own = seen.pop(None)
    found = {}
    for part, there in seen.items():
        found[f"A, random {part}"] = alike(there["maps"]["A"], own["maps"]["A"])
        found[f"w, random {part}"] = alike(there["importance"], own["importance"])
    return found | {"A, w = 1/C": alike(own["maps"]["w = 1/C"], own["maps"]["A"])}


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of arrays [N, ...], mean over N."""
    rows = [m.reshape(len(m), -1) - m.reshape(len(m), -1).mean(1, keepdims=True) for m in (a, b)]
    a, b = (m / (np.linalg.norm(m, axis=1, keepdims=True) + 1e-12) for m in rows)
    return float((a * b).sum(1).mean())


def perform(name: str, data, folder: Path, options) -> list[Run]:
    """Do all runs of an experiment that are not done; returns those that time did not allow."""
    experiment, deadline = EXPERIMENTS[name], time.monotonic() + options.time_budget
    if options.epochs:
        experiment = experiment._replace(epochs=options.epochs)
    settings = options.settings or list(experiment.settings)
    runs = listed(experiment, settings, options.seeds or experiment.seeds)
    x, left = inputs(data), []
    trainer = cache(lambda arm, s: Trainer(experiment, data, arm, experiment.settings[s]))
    chosen = [run for run in runs if run.arm in options.arms]
    for run in (r for r in chosen if not (folder / f"{r.name}.json").exists()):
        try:
            if time.monotonic() > deadline:
                raise TimeoutError
            complete(trainer(run.arm, run.setting), run, data, x, folder, deadline, options.curves)
        except TimeoutError:
            left.append(run)
    return left


def complete(trainer: Trainer, run: Run, data, x, folder: Path, deadline: float, count: int):
    """Train and measure one run; of a first setting also its start, and the map's sanity."""
    start = time.perf_counter()
    state, losses = train(trainer, run, folder, deadline)
    jax.block_until_ready(state.params)
    seconds = time.perf_counter() - start
    found, maps = measure(trainer, state, run, data, x, count)
    found |= {"losses": losses, "seconds": seconds, "environment": environment()}
    if run.setting == next(iter(trainer.experiment.settings)):
        if run.arm == "lfi":
            found["sanity"] = sanity(trainer, state, x[:200], data.size, run.seed)
        raw = trainer.start(run.seed)
        for label, blank in (("raw", raw), ("untrained", trainer.refreshed(raw, run.seed))):
            before = run._replace(setting=label)
            _keep(folder, before, *measure(trainer, blank, before, data, x, 0))
    _keep(folder, run, found, maps)
    print(f"{run.name}: {found['accuracy']['own']:.3f}, {seconds:.0f} s", flush=True)


def _keep(folder: Path, run: Run, found: Mapping, maps: Mapping) -> None:
    np.savez(folder / f"{run.name}.maps.npz", **maps)
    (folder / f"{run.name}.json").write_text(json.dumps(found))


def gather(name: str, data, folder: Path) -> dict[str, Any]:
    """All that an experiment has come to: its runs, what no network gives, and steadiness."""
    runs = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    x = inputs(data)
    controls = {k: placed(m, data.regions, data.small) for k, m in no_net(x, data.size).items()}
    chance = {k: float(m.mean()) for k, m in data.regions.items()}
    chance |= {
        f"small {k}": float(m[data.small].mean())
        for k, m in data.regions.items()
        if data.small.any()
    }
    steady = {}
    for arm, map_name in OWN.items():
        mine = [r for r in runs if r["arm"] == arm and r["setting"] in EXPERIMENTS[name].settings]
        files = [folder / f"{Run(arm, r['setting'], r['seed']).name}.maps.npz" for r in mine]
        loaded = [np.load(file) for file in files]
        maps = [m[map_name].astype(np.float32) for m in loaded]
        right = [m["right"] for m in loaded]
        for kind, pairs in kinds_of_pairs([(r["setting"], r["seed"]) for r in mine]).items():
            steady[f"{arm} {map_name}, {kind}"] = steadiness(maps, right, pairs)
    example = _examples(data, folder)
    found = {"runs": runs, "classes": data.classes, "no net": controls, "chance": chance}
    return found | {"steadiness": steady} | example


def _examples(data, folder: Path, count: int = 6) -> dict[str, Any]:
    """A figure of a few test pictures and their maps, beside the results."""
    columns = {}
    for arm, name in (("lfi", "A"), ("abn", "A"), ("baseline", "CAM"), ("lfi", "w = 1/C")):
        path = next(iter(sorted(folder.glob(f"{arm}-a-*.maps.npz"))), None)
        if path:
            columns[f"{arm} {name}"] = list(np.load(path)[name][:count].astype(np.float32))
    path = RESULTS / f"lfi_cam_{folder.name}.jpg"
    RESULTS.mkdir(exist_ok=True)
    if columns:
        panel([i / 255 for i in data.test_images[:count]], columns, path=path)
    return {"figure": path.name}


def perform_all(names: list[str], options) -> None:
    """Go on with experiments, one after the other, and write what they have come to."""
    for name in names:
        folder = options.out / "-".join([name, *changes(options)])
        folder.mkdir(parents=True, exist_ok=True)
        data = EXPERIMENTS[name].data(options.data, options.limit)
        left = perform(name, data, folder, options)
        content = {"left": [run.name for run in left]} | gather(name, data, folder)
        (RESULTS / f"lfi_cam_{folder.name}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"{name}: {len(left)} runs left" if left else f"{name}: finished")


def changes(options) -> list[str]:
    """What is unlike the recipe: such runs have a folder and results of their own."""
    given = {"epochs": options.epochs, "limit": options.limit}
    return [f"{name}{value}" for name, value in given.items() if value]


def main() -> None:
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("experiments", nargs="*", help=" ".join(EXPERIMENTS))
    parser.add_argument("--data", type=Path, default=next((d for d in DATA if d.is_dir()), DATA[0]))
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "lfi_cam")
    parser.add_argument("--time-budget", type=float, default=1e9, help="seconds for each")
    parser.add_argument("--settings", nargs="+", help="a, b, c; else all")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--epochs", type=int, default=0, help="instead of the recipe's")
    parser.add_argument(
        "--limit", type=int, default=0, help="of pictures (of CIFAR-10: of a class), to try it"
    )
    parser.add_argument("--curves", type=int, default=200, help="pictures of deletion, insertion")
    parser.add_argument("--page", action="store_true", help="write lfi_cam.md and no more")
    options = parser.parse_args()
    if unknown := set(options.experiments) - EXPERIMENTS.keys():
        parser.error(f"no experiment {sorted(unknown)}; there are {list(EXPERIMENTS)}")
    if not options.experiments and not options.page:
        parser.error("name an experiment, or --page")
    perform_all(options.experiments, options)
    write_page()


if __name__ == "__main__":
    main()
