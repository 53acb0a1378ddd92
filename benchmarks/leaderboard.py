"""The leaderboard: all methods on three networks with real weights and real pictures.

    python benchmarks/leaderboard.py                     # computes what is missing, writes all
    python benchmarks/leaderboard.py --again grad_cam    # after a change of a method
    python benchmarks/leaderboard.py --whole             # slow methods on all pictures: for a GPU

Whoever adds a method runs the first line and commits what changed: rows that are there stay as they
are, also those that ``--whole`` has added. Needs the folder ``shared`` beside the checkout. Several
processes can share the work, each with ``--methods`` and an ``--out`` of its own; ``--join`` brings
their rows together.
"""

import argparse
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from queue import Empty, Queue
from typing import NamedTuple

import jax
import numpy as np

from jaxfmi.command import datasets, networks, tables
from jaxfmi.command.evaluation import ALL, EXPLAINERS, Evaluation, plan_evaluation
from jaxfmi.command.execute import resume, run
from jaxfmi.command.leaderboard import LEGEND, write
from jaxfmi.command.terminal import FAILED, bar, complain

jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would take TF32 for float32

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
OUT = HERE / "leaderboard"
PER_CLASS = 40  # pictures of CIFAR
# As many steps at a time as there are: in a loop XLA's convolutions on a CPU cost four times more.
FEWER = ("integrated_gradients.steps=8", "smooth_grad.samples=8", "smooth_grad.chunk=8")
# What runs the network many times per map is for fewer pictures, or for CIFAR-10 only.
MASKED = ("sise", "ada_sise", "score_cam", "rise", "ss_cam", "is_cam")
MASKS = ("rise.samples=1000", "extremal_perturbation.iterations=100")
SELDOM = (
    *("sise=16", "ada_sise=16", "score_cam=32", "rise=32", "extremal_perturbation=80"),
    *("integrated_gradients=4", "smooth_grad=4"),
    *("occlusion=2", "fd_cam=2", "clrp=2", "sglrp=2"),
)
WITHOUT = ("ss_cam", "is_cam")
NO_MAP = ("lfi_cam",)
WHY = dict.fromkeys(WITHOUT, "left to CIFAR-10") | dict.fromkeys(NO_MAP, "no map of its own")
WINDOWS = ("occlusion.window=75", "occlusion.stride=38", "occlusion.chunk=4")
CURVES = ("deletion.steps", "insertion.steps")
STEPS = 8  # of the curves
EVERY, EVERY_CIFAR = 8, 2  # curves are for one picture in so many
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # fresh pages are a tenth of the time of XLA's programs
COMMAND = ["python", "benchmarks/leaderboard.py"]


HEAD = f"""# Which map is better

All methods on three networks with real weights, and what controls reach that know nothing of the
network. The pictures are few and easier than the full sets: the figures compare methods, and are no
accuracy of ImageNet or CIFAR-10. Each network's folder has the table with a row per image and
method, a summary with intervals, and all tests. Everything was made, and is brought up to date when
a method is added, with

    {" ".join(COMMAND)}

Deletion and insertion have {STEPS} steps, and are for one picture in {EVERY} only (CIFAR-10: in
{EVERY_CIFAR}). Methods that run the network many times for a map explain fewer pictures too, or are
left to CIFAR-10; extremal perturbation has few iterations. More rows are added with `--whole`: an
H100 computed SISE, Ada-SISE, Score-CAM and RISE on all pictures of SqueezeNet and MobileNetV2
(Ada-SISE's of the latter in an earlier run: they are .004, and half a per cent of drop, away from a
CPU's), and more of extremal perturbation's. Boxes are rounded outward to whole pixels. Integrated
gradients and SmoothGrad have fewer steps and samples than by default, and occlusion larger windows
(CIFAR-10: smaller): each network's page says which.

{LEGEND}"""


class Case(NamedTuple):
    """A network, its weights, what it expects, and how much is computed for it."""

    weights: str
    data: str
    model_options: tuple[str, ...] = ()
    preprocess: str | None = None
    options: tuple[str, ...] = ()
    method_every: tuple[str, ...] = SELDOM
    without: tuple[str, ...] = WITHOUT
    costly_every: int = EVERY
    batch_size: int = 16


CASES = {
    "squeezenet1_0": Case(
        "squeezenet_v1.0", "imagenet_val", ("padding=1",), "caffe", (*FEWER, *MASKS, *WINDOWS)
    ),
    "mobilenet_v2": Case(
        "mobilenet_v2_1.0_224",
        "imagenet_val",
        ("num_classes=1001", "norm=false", "padding=SAME"),
        "tensorflow",
        (*FEWER, *MASKS, *WINDOWS),
    ),
    "cifar_resnet56": Case(
        "cifar10_resnet56",
        "cifar10_jpeg_test.npz",
        options=(
            *FEWER,
            *MASKS,
            *("occlusion.window=8", "occlusion.stride=4"),
            *("extremal_perturbation.step=2", "extremal_perturbation.sigma=5.0"),
        ),
        method_every=("rise=8", "ss_cam=16", "is_cam=8", "extremal_perturbation=20"),
        without=(),
        costly_every=EVERY_CIFAR,
        batch_size=20,
    ),
}


def samples(case: Case, limit: int | None) -> datasets.Data:
    """The pictures: all of a folder; of CIFAR the first 40 of every class in a fixed shuffle."""
    data = datasets.open_data(DATA / case.data)
    if case.data.startswith("cifar"):
        data = data._replace(samples=balanced(data.samples))
    return data._replace(samples=data.samples[:limit])


def balanced(listed):
    order = np.random.default_rng(0).permutation(len(listed))
    labels = np.array([listed[i].label for i in order])
    first = [np.flatnonzero(labels == label)[:PER_CLASS] for label in np.unique(labels)]
    return [listed[order[i]] for i in np.sort(np.concatenate(first))]


def planned(name: str, args) -> Evaluation:
    """What is computed for one network."""
    case = CASES[name]
    weights = DATA / "weights" / f"{case.weights}.npz"
    network = networks.open_network(name, str(weights), case.model_options, case.preprocess)
    without = (*case.without, *NO_MAP)
    chosen = set(args.methods or (name for name in EXPLAINERS if name not in without))
    chunks = [f"{method}.chunk={args.chunk}" for method in MASKED if args.chunk]
    seldom = () if args.whole else case.method_every
    return plan_evaluation(
        network,
        samples(case, args.limit),
        args.methods or [ALL],
        options=[*about([*case.options, *chunks], chosen), *(f"{o}={args.steps}" for o in CURVES)],
        costly_every=case.costly_every,
        method_every=about(seldom, chosen),
        without=without,
        batch_size=case.batch_size,
    )


def prepare(name: str, plan: Evaluation, args) -> None:
    """Make a network's folder ready: begin anew, take methods out, take over rows."""
    for method, why in plan.left_out.items():
        print(f"{name}: left out: {method}: {why}", flush=True)
    out = args.out / name
    if args.overwrite:
        tables.clear(out)
    resume(plan, out, [method for method in args.again if method not in plan.left_out])
    for folder in args.join:
        tables.bring(out, folder / name)


def compute(name: str, args, counts: Queue) -> tuple[tables.Table, list[str]]:
    """All of one network, in a process of its own; counts maps as they are done."""
    plan = planned(name, args)
    return run(plan, args.out / name, command=COMMAND, done=counts.put, warn=complain)


def compute_all(plans: dict[str, Evaluation], args) -> dict[str, tuple[tables.Table, list[str]]]:
    """All networks, on a CPU side by side: what one compiles leaves a core for the others.

    In processes: threads that run programs of XLA on a CPU can block each other for ever.
    """
    total = sum(len(plan.data.samples) * len(plan.job.steps) for plan in plans.values())
    with bar(total, sys.stderr.isatty()) as done:
        if len(plans) == 1 or jax.default_backend() != "cpu":
            how = {"command": COMMAND, "done": done, "warn": complain}
            return {name: run(plan, args.out / name, **how) for name, plan in plans.items()}
        os.environ.setdefault("GLIBC_TUNABLES", HUGE_PAGES)
        return side_by_side(list(plans), args, done)


def side_by_side(names: list[str], args, done) -> dict[str, tuple[tables.Table, list[str]]]:
    """A process for each network."""
    spawn = get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(len(names), spawn) as pool:
        counts = manager.Queue()
        runs = {name: pool.submit(compute, name, args, counts) for name in names}
        while not all(run.done() for run in runs.values()):
            try:
                done(counts.get(timeout=1))
            except Empty:
                continue
        return {name: run.result() for name, run in runs.items()}


def about(words, methods: set[str]) -> list[str]:
    """The words ``METHOD.name=value`` and ``METHOD=N`` that are about some methods."""
    return [word for word in words if re.split("[.=]", word)[0] in methods]


def chapter(out: Path, name: str) -> str:
    """What the README says about one network: head and table of its own page, and the curves."""
    text = (out / name / "leaderboard.md").read_text(encoding="utf-8")
    top = text.partition(LEGEND)[0].strip()
    return f"#{top}\n\n![Mean curves]({name}/curves.png)\n\n[All about it]({name}/leaderboard.md)"


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring the leaderboard up to date.")
    parser.add_argument(
        "--again", nargs="*", default=[], choices=list(EXPLAINERS), help="methods to compute anew"
    )
    parser.add_argument(
        "--methods", nargs="*", default=[], choices=list(EXPLAINERS), help="these only"
    )
    parser.add_argument(
        "--join", nargs="*", type=Path, default=[], help="folders whose rows are taken over"
    )
    parser.add_argument("--chunk", type=int, help="masks at a time: many for a GPU")
    parser.add_argument("--whole", action="store_true", help="all pictures for slow methods too")
    parser.add_argument("--overwrite", action="store_true", help="begin anew")
    parser.add_argument("--networks", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--limit", type=int, help="pictures, to try it")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the curves, to try it")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    plans = {name: planned(name, args) for name in args.networks}
    for name, plan in plans.items():
        prepare(name, plan, args)
    unreadable = []
    for name, (table, failures) in compute_all(plans, args).items():
        left_out = {method: WHY[method] for method in (*CASES[name].without, *NO_MAP)}
        write(args.out / name, table, plans[name].left_out | left_out, as_html=False)
        unreadable += failures
        print(f"{name}: {len(table.rows)} rows", flush=True)
    there = [name for name in CASES if (args.out / name / tables.TABLE).is_file()]
    text = "\n\n".join([HEAD, *(chapter(args.out, name) for name in there)])
    (args.out / "README.md").write_text(text + "\n", encoding="utf-8")
    return FAILED if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
