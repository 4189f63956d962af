"""The model card: what was trained, how good it is, the command that made it, how to load it.

The licence is never invented: it is the base model's where its card says one, else `other`, for the user to set.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import fmean, stdev

import yaml
from huggingface_hub import EvalResult, ModelCardData, try_to_load_from_cache

from lora_bench import __version__, tasks
from lora_bench.cell import Cell
from lora_bench.export import classifier
from lora_bench.export.trained import Trained, is_bundled
from lora_bench.models import SAMPLE
from lora_bench.records.schema import Record
from lora_bench.report.numbers.statistics import seed_interval
from lora_bench.tasks import Files
from lora_bench.tasks.glue import HUB_ID

UNKNOWN_LICENCE = "other"


def peft(trained: Trained, dtype: str, rank: int) -> str:
    """The card of an adapter."""
    base = f'"{_public(trained.cell) or "BASE_MODEL"}"'
    labels = ", ".join(f"{name}={value!r}" for name, value in classifier.labelled(trained.task).items())
    load = f"""from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = AutoModelForSequenceClassification.from_pretrained(
    {base}, dtype="float32", ignore_mismatched_sizes=True,
    {labels},
)
model = PeftModel.from_pretrained(base, "THIS_FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained({base})
{_use(trained)}"""
    what = (
        f"A standard peft LoRA of rank {rank}: the update that `{trained.cell.method}` learnt, as `B A`, and the "
        f"classification head (`modules_to_save`). Stored as {dtype}."
    )
    return _card(trained, what, load, "peft", f"## In peft\n\n{_in_peft(trained)}")


def merged(trained: Trained, dtype: str) -> str:
    """The card of a merged model."""
    load = f"""from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("THIS_FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
{_use(trained)}"""
    what = f"A plain transformers model: what `{trained.cell.method}` learnt is merged into its weights ({dtype})."
    return _card(trained, what, load, "transformers")


def _use(trained: Trained) -> str:
    """The lines of a snippet that ask the model for an answer."""
    texts = ", ".join(f'"The {column}."' for column in trained.task.columns)
    answer = "float(logits)" if trained.task.is_regression else "model.config.id2label[int(logits.argmax())]"
    return f"""
inputs = tokenizer({texts}, truncation=True, max_length={trained.cell.max_length}, return_tensors="pt")
logits = model(**inputs).logits
print({answer})"""


def _in_peft(trained: Trained) -> str:
    """What peft can do with the adapter, and what it cannot."""
    if _public(trained.cell):
        auto = (
            '`AutoPeftModelForSequenceClassification.from_pretrained("THIS_FOLDER", num_labels='
            f"{trained.task.num_outputs}, ignore_mismatched_sizes=True)` finds the base model by itself."
        )
    else:
        auto = (
            "`AutoPeftModelForSequenceClassification` cannot find the base model by itself, since it is not on the "
            "Hub: load it as above."
        )
    return f"""- `model.merge_and_unload()` gives the plain transformers model.
- A second adapter is loaded by `model.load_adapter("OTHER_FOLDER", adapter_name="other")` and chosen by
  `model.set_adapter("other")`; `model.set_adapter("default")` goes back. Its task must have as many outputs as this one
  ({trained.task.num_outputs}): the heads of one model are of one size.
- `model.add_weighted_adapter` is refused by peft (0.18 to 0.21 were tried) where two adapters each have a head. Without
  the heads it works: with `config = PeftConfig.from_pretrained(folder)` and
  `config.modules_to_save = config.task_type = None` for each folder, load the first by
  `PeftModel.from_pretrained(base, folder, config=config)`, the second by `model.add_adapter("other", config)` and
  `model.load_adapter(folder, adapter_name="other")`. `combination_type="cat"` adds the updates exactly, `"linear"` does
  not. The head of the adapter that was loaded last is the model's then.
- {auto}"""


def _card(trained: Trained, what: str, load: str, library: str, *sections: str) -> str:
    cell, task = trained.cell, trained.task
    title = f"{_plain(trained.base)} · {task.title} · {cell.method}"
    parts = [
        f"---\n{_front_matter(trained, title, library)}\n---\n\n# {title}\n\n{what}",
        f"Base model: {_base(cell)}. Data: `{_plain(cell.data)}` ({_data(trained)[1]}).",
        f"## How to load\n\n```python\n{load}\n```",
        *sections,
        f"## Results\n\n{_results(trained)}",
        f"## Settings\n\n{_settings(cell)}",
        f"## How it was made\n\n```sh\n{command(cell)}\n```\n\nlora-bench {__version__}, record `{trained.record.id}`.",
        f"## Licence\n\n{_licence_text(trained)}",
    ]
    return "\n\n".join(parts) + "\n"


def section(trained: Trained, files: str) -> str:
    """What answered these files of a submission."""
    cell = trained.cell
    return (
        f"## {files}: {_plain(trained.base)} · {cell.method}\n\n{_results(trained)}\n\n{_settings(cell)}\n\n"
        f"```sh\n{command(cell)}\n```"
    )


def submission(sections: list[str], problems: list[str]) -> str:
    """What a folder of predictions holds and what the leaderboard would miss in it."""
    data = ModelCardData(license=UNKNOWN_LICENCE, datasets=[HUB_ID], tags=["lora-bench", "glue"])
    faults = "\n".join(f"- {problem}" for problem in problems) or "- Nothing is missing."
    opening = "Predictions of GLUE's test splits; `submission.zip` is what the leaderboard takes."
    return "\n\n".join([
        f"---\n{data.to_yaml().strip()}\n---\n\n# GLUE submission\n\n{opening}", faults, *sections,
        f"lora-bench {__version__}. Licence not known: set `license:` above yourself.",
    ]) + "\n"  # fmt: skip


def _front_matter(trained: Trained, title: str, library: str) -> str:
    kind, _ = _data(trained)
    is_glues = trained.cell.task_origin is None  # and not a user's, which may be of any language
    data = ModelCardData(
        base_model=_public(trained.cell),
        license=licence(trained.model.location),
        library_name=library,
        language="en" if is_glues else None,
        pipeline_tag="text-classification",
        datasets=[kind] if _is_of_the_hub(trained.cell) else None,
        metrics=list(_metrics(trained.record)),
        tags=["lora-bench", *(["glue"] if is_glues else []), trained.cell.method],
        model_name=title,
        eval_results=_eval_results(trained) or None,
    )
    return data.to_yaml().strip()


def _public(cell: Cell) -> str | None:
    """The base model's id on the Hub, if it is from there."""
    return None if "@" in cell.model else cell.model


def _base(cell: Cell) -> str:
    """What the base model is, in words: a directory may have the name of a model that it is not."""
    model, label = f"`{_plain(cell.model)}`", _plain(cell.model.partition("@")[0])
    if _public(cell):
        return f"{model} of the Hub"
    if is_bundled(cell):
        show = "`python -c 'from lora_bench.sample import ENCODER; print(ENCODER)'`"
        return f"{model}, which comes with lora-bench and is not on the Hub ({show} prints where it is)"
    return f"{model}, a directory called `{label}`, its content named by a hash; no model of the Hub is meant"


def _is_of_the_hub(cell: Cell) -> bool:
    """Whether the data are a dataset of the Hub: `owner/name@revision`."""
    return "@" in cell.data


def _data(trained: Trained) -> tuple[str, str]:
    """What the numbers are of: kind and name. Only the Hub's data are called GLUE: files may be anything."""
    title = trained.task.title
    if _is_of_the_hub(trained.cell):
        name = trained.cell.data.partition("@")[0]
        return name, f"GLUE {title}" if name == HUB_ID else title
    if trained.cell.data.startswith(SAMPLE):
        return "synthetic", f"lora-bench's synthetic sample of {title}"
    return "files", f"local files for {title}"


def _eval_results(trained: Trained) -> list[EvalResult]:
    task, split, (kind, name) = trained.task, trained.record.protocol.split, _data(trained)
    return [
        EvalResult(
            task_type="text-classification", dataset_type=kind, dataset_name=name,
            dataset_config=task.name, dataset_split=split, metric_type=metric, metric_value=round(value, 6),
        )
        for metric, value in _metrics(trained.record).items()
    ]  # fmt: skip


def _metrics(record: Record) -> dict[str, float]:
    """The metrics of the epoch that was kept."""
    epoch = next((each for each in record.epochs if each.epoch == record.score_epoch), None)
    return {name: value for name, value in epoch.metrics.items() if value is not None} if epoch else {}


def _results(trained: Trained) -> str:
    record, kept = trained.record, _metrics(trained.record)
    rows = "\n".join(f"| {name} | {value * 100:.2f} |" for name, value in kept.items())
    where = f"{record.protocol.split} split, epoch {record.score_epoch} of {record.cell.epochs}"
    table = f"| metric ({where}; epoch chosen by `{record.cell.select}`) | ×100 |\n|---|---|\n{rows}"
    scores = [other.score for other in trained.seeds if other.score is not None]
    if len(scores) < 2:
        return f"{table}\n\nOne seed ({record.cell.seed}): how far another seed would be is not known."
    line = f"{record.metric} over {len(scores)} seeds: {fmean(scores) * 100:.2f} ± {stdev(scores) * 100:.2f}"
    interval = seed_interval(scores)
    known = (
        "" if interval is None else f", 95% interval of the mean {interval.low * 100:.2f} to {interval.high * 100:.2f}"
    )
    return f"{table}\n\n{line}{known}. This folder holds seed {record.cell.seed}."


def _settings(cell: Cell) -> str:
    rows = [f"| {name} | `{_plain(str(value))}` |" for name, value in cell.model_dump(exclude_none=True).items()]
    return "| setting | value |\n|---|---|\n" + "\n".join(rows)


def command(cell: Cell) -> str:
    """The command that trains this cell; a directory or a data folder stands as MODEL_DIR and DATA_DIR."""
    model = SAMPLE if is_bundled(cell) else _public(cell) or "MODEL_DIR"
    words = ["lora-bench", "run", "--model", model]
    if cell.data.startswith("files:") and not isinstance(tasks.of(cell).source, Files):
        words += ["--data-dir", "DATA_DIR"]
    for origin in dict.fromkeys(filter(None, (cell.origin, cell.task_origin))):
        words += ["--include", origin.rpartition("@")[0]]
    words += ["--task", cell.task, "--method", cell.method]
    given = cell.model_dump(exclude_none=True, exclude={"model", "data", "task", "method", "origin", "task_origin"})
    for name, value in given.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def licence(model: str) -> str:
    """What the base model's own card says, a lower-case word of it; `other` if there is no card or it says nothing."""
    path = Path(model) / "README.md" if Path(model).is_dir() else try_to_load_from_cache(model, "README.md")
    try:
        text = Path(str(path)).read_text(encoding="utf-8")
        opening, front, _ = text.split("---", 2)
        content = yaml.safe_load(front) if not opening.strip() else None
        found = content.get("license") if isinstance(content, dict) else None
    except (OSError, ValueError, yaml.YAMLError):
        return UNKNOWN_LICENCE
    return found if isinstance(found, str) and found.replace("-", "").replace(".", "").isalnum() else UNKNOWN_LICENCE


def _licence_text(trained: Trained) -> str:
    found = licence(trained.model.location)
    if found == UNKNOWN_LICENCE:
        return "Not known: set `license:` above yourself, from the base model's licence and that of the data."
    return f"`{found}` is the base model's; what you trained is yours to license within it. The data have their own."


def _plain(text: str) -> str:
    """`text` within a line of Markdown code."""
    return "".join(character for character in text if character.isprintable() and character not in "`|")
