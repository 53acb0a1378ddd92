"""What the training of a classifier is made of: options with their defaults, and recipes."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Config", "read_file"]

CHOICES = {
    "schedule": ("steps", "cosine"),
    "select": ("last", "val", "test"),
    "precision": ("float32", "bfloat16"),
}
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Config:
    """What a run is made of; every field is an option of the command line.

    Attributes:
      data: `<data>_train.npz` with `<data>_val.npz` or `<data>_test.npz`; a folder with `train`
        and `val` or `test`, each of class folders; `digits_on_textures`, also
        `digits_on_textures(size=32,classes=2)`; the name of a prepared data set of
        tensorflow-datasets, or the folder of one.
      out: folder for checkpoints, `log.jsonl`, TensorBoard files, `model.safetensors` and
        `model.json`. A run that was stopped goes on from there.
      model: a name of `jaxfmi models`, or demo, the embedded network's backbone.
      model_options: words key=value for the network's constructor.
      start: weights to start from, as `jaxfmi.models.pretrained.load` takes them, or "".
      data_dir: where tensorflow-datasets keeps its data sets; "" for its usual place.
      hold_out: pictures of each class that are taken out of the training split to validate on;
        the data's own other split is then the test split.
      size: side to which pictures are brought as they are read: to train, a random crop of
        `min_scale`..1 of the area; to evaluate, the middle of a resized picture. Boxes do not lie
        on these, and count for nothing. 0: as they are.
      epochs: passes over the training split.
      batch_size: pictures in a step; the rest of an epoch that fills no batch is left out.
      sizes: sides of the training pictures inside the step, in equal shares of the epochs. Small
        pictures first make a run shorter; evaluation takes pictures as they are.
      learning_rate: the highest, reached after `warmup_epochs`.
      schedule: steps, which multiplies by `drop` at `drops`, or cosine, which falls to 0.
      drops: epochs, or shares of all epochs below 1, at whose start the rate drops.
      drop: what the rate is multiplied by there.
      warmup_epochs: epochs of linear warm-up, at the most all but the last step.
      momentum: of stochastic gradient descent.
      nesterov: take Nesterov's form of it.
      weight_decay: added to the loss's gradient, times the weights.
      decay_all: decay all parameters, as the references do; else tensors of rank 2 and more only.
      label_smoothing: share of the target that is spread over all classes.
      ema: decay of averages of weights and batch statistics, which then are evaluated and kept;
        0 for none.
      precision: float32, or bfloat16 to compute in (weights and losses stay float32).
      pad: zeros around a picture, out of which a random part of its own size is cut.
      flip: mirror half of the pictures.
      min_scale: smallest random crop, as a share of the picture's area; 1 for none.
      stretch: largest change of the crop's aspect ratio, as a factor.
      jitter: largest change of brightness, contrast and saturation.
      grey: probability of taking all colour away.
      cast: largest change of the colours' balance.
      erase: probability of blanking a rectangle.
      mean: subtracted from the colours in 0..1.
      std: divides them then.
      select: which weights count: the last, or the best on val or on test; `model.json` says it.
      evaluate_every: epochs from one evaluation to the next.
      panel_every: evaluations from one panel of attention maps to the next; 0 for none.
      log_every: steps from one line of the log to the next; 0: a line per epoch.
      save_every: steps from one checkpoint to the next; 0: one per epoch.
      keep: latest checkpoints that are kept, beside the best one.
      time_budget: seconds after which the run saves and stops, to be gone on with; 0 for none.
      devices: how many share a batch; 0 for all.
      workers: processes that read pictures; 0: a thread of this one.
      layer: tag where Grad-CAM's peak is held against the boxes of the data, or "".
      half: write the kernels of `model.safetensors` in 16 bits.
      note: kept in `model.json`: licence, origin.
      seed: of weights, order and augmentation.

    """

    data: str
    out: str
    model: str = "demo"
    model_options: tuple[str, ...] = ()
    start: str = ""
    data_dir: str = ""
    hold_out: int = 0
    size: int = 0
    epochs: int = 12
    batch_size: int = 64
    sizes: tuple[int, ...] = ()
    learning_rate: float = 0.05
    schedule: str = "steps"
    drops: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = True
    label_smoothing: float = 0.0
    ema: float = 0.0
    precision: str = "float32"
    pad: int = 0
    flip: bool = False
    min_scale: float = 1.0
    stretch: float = 1.0
    jitter: float = 0.0
    grey: float = 0.0
    cast: float = 0.0
    erase: float = 0.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    select: str = "last"
    evaluate_every: int = 1
    panel_every: int = 5
    log_every: int = 0
    save_every: int = 0
    keep: int = 1
    time_budget: float = 0.0
    devices: int = 0
    workers: int = 0
    layer: str = "auto"
    half: bool = False
    note: str = ""
    seed: int = 0

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if (given := getattr(self, name)) not in choices:
                raise ValueError(f"{name} is {' or '.join(choices)}, got {given!r}")
        for name in ("epochs", "batch_size", "evaluate_every", "keep"):
            if (given := getattr(self, name)) < 1:
                raise ValueError(f"{name} is at least 1, got {given}")


def read_file(path: str | Path) -> dict[str, Any]:
    """Read options from a TOML or JSON file, or from the recipe of that name.

    `config` of a `model.json`, and a whole `config.json`, are such options too.

    Raises:
      ValueError: the file is neither; says where.
      FileNotFoundError: there is no such file or recipe.
    """
    recipe = RECIPES / f"{path}.toml"
    path = recipe if recipe.is_file() else Path(path)
    if not path.is_file():
        names = sorted(file.stem for file in RECIPES.glob("*.toml"))
        raise FileNotFoundError(f"no file {str(path)!r}, and no recipe; the recipes are {names}")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"'{path}' is no TOML (.toml) and no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"'{path}' holds no table of options")
    return values["config"] if isinstance(values.get("config"), dict) else values
