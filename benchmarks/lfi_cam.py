"""LFI-CAM, ABN and their controls: accuracy, where maps lie, how steady they are.

    python benchmarks/lfi_cam.py C1-10                     # digits on textures: two cores, 20 min
    python benchmarks/lfi_cam.py G1 --time-budget 540      # Tiny-ImageNet-20: on a GPU, repeatedly
    python benchmarks/lfi_cam.py --page                    # writes lfi_cam.md of all results

Every command goes on from where the last one stopped: runs that are done are not done again, and
with ``--time-budget`` it leaves when the seconds are over and says what is left. C is for two
cores, G for a GPU; 1 and 3 are digits on textures (C1, G3) and CIFAR-10 (C3), G2 is CIFAR-10.
Weights are those of the last epoch: nothing is selected.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from attention_measures import curves, kinds_of_pairs, look, merge, no_net, placed, steadiness
from attention_page import write_page
from attention_runs import EXPERIMENTS, Run, Trainer, inputs, listed, train
from measure import RESULTS, environment

from jaxfmi.command import networks

HERE = Path(__file__).parent
DATA = [HERE.parents[1] / "shared" / "data", HERE.parent / "shared" / "data"]
UNTRAINED = "untrained"


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
    """How like itself the map stays (Pearson) with a random FIN, and with a random backbone."""
    other = trainer.start(seed + 1000)
    maps = {"": look(trainer.graph, state, x, size)["maps"]["A"]}
    for part in ("fin", "backbone"):
        mixed = [
            type(a)({**dict(a), part: dict(b)[part]})
            for a, b in zip(state[:2], other[:2], strict=True)
        ]
        maps[part] = look(trainer.graph, state._replace(params=mixed[0], stats=mixed[1]), x, size)[
            "maps"
        ]["A"]
    flat = {
        k: m.reshape(len(m), -1) - m.reshape(len(m), -1).mean(1)[:, None] for k, m in maps.items()
    }
    norm = {k: np.linalg.norm(m, axis=1) + 1e-12 for k, m in flat.items()}
    return {
        f"random {k}": float(((flat[k] * flat[""]).sum(1) / (norm[k] * norm[""])).mean())
        for k in ("fin", "backbone")
    }


def perform(name: str, data, folder: Path, options) -> list[Run]:
    """Do all runs of an experiment that are not done; returns those that time did not allow."""
    experiment, deadline = EXPERIMENTS[name], time.monotonic() + options.time_budget
    if options.epochs:
        experiment = experiment._replace(epochs=options.epochs)
    settings = options.settings or list(experiment.settings)
    runs = listed(experiment, settings, options.seeds or experiment.seeds)
    trainers: dict[tuple[str, str], Trainer] = {}
    x, left = inputs(data), []
    for run in runs:
        if (folder / f"{run.name}.json").exists():
            continue
        if time.monotonic() > deadline:
            left.append(run)
            continue
        start, key = time.perf_counter(), (run.arm, run.setting)
        if key not in trainers:
            trainers[key] = Trainer(experiment, data, run.arm, experiment.settings[run.setting])
        trainer = trainers[key]
        try:
            state, losses = train(trainer, run, folder, deadline)
        except TimeoutError:
            left.append(run)
            continue
        jax.block_until_ready(state.params)
        seconds = time.perf_counter() - start
        found, maps = measure(trainer, state, run, data, x, options.curves)
        found |= {"losses": losses, "seconds": seconds}
        if run.arm == "lfi" and run.setting == settings[0]:
            found["sanity"] = sanity(trainer, state, x[:200], data.size, run.seed)
        if run.setting == settings[0]:
            fresh = trainer.start(run.seed)
            blank = run._replace(setting=UNTRAINED)
            _keep(
                folder,
                blank,
                *measure(trainer, trainer.refreshed(fresh, run.seed), blank, data, x, 0),
            )
            blank = run._replace(setting="raw")
            _keep(folder, blank, *measure(trainer, fresh, blank, data, x, 0))
        _keep(folder, run, found, maps)
        print(f"{run.name}: {found['accuracy']['own']:.3f}, {seconds:.0f} s", flush=True)
    return left


def _keep(folder: Path, run: Run, found: Mapping, maps: Mapping) -> None:
    np.savez(folder / f"{run.name}.maps.npz", **maps)
    (folder / f"{run.name}.json").write_text(json.dumps(found))


def gather(name: str, data, folder: Path) -> dict[str, Any]:
    """All that an experiment has come to: its runs, what no network gives, and steadiness."""
    runs = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    x = inputs(data)
    controls = {k: placed(m, data.regions, data.small) for k, m in no_net(x, data.size).items()}
    chance = {k: float(m.mean()) for k, m in data.regions.items()}
    steady = {}
    settings = EXPERIMENTS[name].settings
    for arm, map_name in (
        ("lfi", "A"),
        ("abn", "A"),
        ("uniform", "A"),
        ("baseline", "CAM"),
        ("deep", "CAM"),
    ):
        mine = [r for r in runs if r["arm"] == arm and r["setting"] in settings]
        loaded = [
            np.load(folder / f"{Run(arm, r['setting'], r['seed']).name}.maps.npz") for r in mine
        ]
        maps = [m[map_name].astype(np.float32) for m in loaded]
        right = [m["right"] for m in loaded]
        for kind, pairs in kinds_of_pairs([(r["setting"], r["seed"]) for r in mine]).items():
            steady[f"{arm} {map_name}, {kind} differs"] = steadiness(maps, right, pairs)
    example = _examples(data, folder)
    return {"runs": runs, "no net": controls, "chance": chance, "steadiness": steady} | example


def _examples(data, folder: Path, count: int = 6) -> dict[str, Any]:
    """A figure of a few test pictures and their maps, beside the results."""
    from jaxfmi.report import panel

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", choices=[[], *EXPERIMENTS])
    parser.add_argument("--data", type=Path, default=next((d for d in DATA if d.is_dir()), DATA[0]))
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "lfi_cam")
    parser.add_argument("--time-budget", type=float, default=1e9, help="seconds for each")
    parser.add_argument("--settings", nargs="+", help="a, b, c; else all")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--epochs", type=int, default=0, help="instead of the recipe's")
    parser.add_argument("--limit", type=int, default=0, help="of training pictures, to try it")
    parser.add_argument(
        "--curves", type=int, default=200, help="pictures of deletion and insertion"
    )
    parser.add_argument("--page", action="store_true", help="write lfi_cam.md")
    options = parser.parse_args()
    for name in options.experiments:
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        data, start = EXPERIMENTS[name].data(options.data, options.limit), time.perf_counter()
        left = perform(name, data, folder, options)
        content = {"environment": environment(), "seconds": time.perf_counter() - start}
        content |= {"left": [run.name for run in left]} | gather(name, data, folder)
        (RESULTS / f"lfi_cam_{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"{name}: {len(left)} runs left" if left else f"{name}: finished")
    if options.page or options.experiments:
        write_page()


if __name__ == "__main__":
    sys.exit(main())
