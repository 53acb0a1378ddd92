"""Which map explains a similarity? Four experiments on real data, and a page of what came out.

    python benchmarks/similarity.py --experiment A B C D      # or one of them; --quick for a trial
    python benchmarks/similarity.py --page                    # only the page, from the results

A: ProtoNet on Omniglot. B: ProtoNet on Tiny-ImageNet. C: SimCLR on CIFAR-10. D: retrieval with
MobileNet. Networks are trained in `--runs` and found there again. Figures of the results are in
`results/similarity_*.json`, pictures in `figures/`, and the page is `similarity.md`.
"""

import argparse
import json
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from measure import RESULTS, environment
from similarities import page, pictures

HERE = Path(__file__).parent
EXPERIMENTS = {"A": "omniglot", "B": "tiny", "C": "cifar", "D": "retrieval"}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experiment", nargs="+", choices=EXPERIMENTS, default=[])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs/similarity")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--curves", type=int, default=0, help="pictures of deletion and insertion")
    parser.add_argument("--quick", action="store_true", help="a trial: its figures mean nothing")
    parser.add_argument("--page", action="store_true", help="write the page")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.results = options.runs / "quick", options.runs / "quick"
    options.results.mkdir(parents=True, exist_ok=True)
    for letter in options.experiment:
        measure(letter, options)
    if options.page or not options.quick:
        page.write(options.results, (options.results if options.quick else HERE) / "similarity.md")


def measure(letter: str, options) -> None:
    """Run one experiment, and keep what it found and a picture of examples."""
    start = time.perf_counter()
    found = import_module(f"similarities.{EXPERIMENTS[letter]}").run(options)
    folder = options.results if options.quick else HERE / "figures"
    for name, test in found.items():
        if isinstance(test, dict) and "figure" in test:
            folder.mkdir(exist_ok=True)
            path = folder / f"similarity_{letter}_{name.replace(', ', '_').replace(' ', '_')}.jpg"
            pictures.write(path, **test.pop("figure"))
    seconds = time.perf_counter() - start
    content = {"environment": environment(), "seconds": round(seconds, 1)} | found
    path = options.results / f"similarity_{letter}.json"
    path.write_text(json.dumps(rounded(content), indent=1) + "\n")
    print(f"{letter}: {seconds:.0f} s, written to {path.name}")


def rounded(value):
    """Floats with four digits, which is what their intervals allow."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
