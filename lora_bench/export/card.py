"""The model card of an export: what was trained, its scores, the command that trained it, and how to load it.

The licence is never invented: it is that of the base model's card if there is one, else `other`, for the user to set.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCardData,
    eval_result_entries_to_yaml,
    try_to_load_from_cache,
)

from lora_bench import __version__
from lora_bench.cell import Cell
from lora_bench.export import classifier
from lora_bench.export.trained import Trained
from lora_bench.grid.command import is_bundled, training_command
from lora_bench.records.schema import Record
from lora_bench.report.numbers.statistics import seed_interval
from lora_bench.tasks.glue import HUB_ID

UNKNOWN_LICENCE = "other"


def peft_card(trained: Trained, dtype: str, rank: int) -> str:
    """Return the card of a peft adapter."""
    base = f'"{_hub_id(trained.cell) or "BASE_MODEL"}"'
    labels = ", ".join(f"{name}={value!r}" for name, value in classifier.label_settings(trained.task).items())
    load = f"""from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = AutoModelForSequenceClassification.from_pretrained(
    {base}, dtype="float32", ignore_mismatched_sizes=True,
    {labels},
)
model = PeftModel.from_pretrained(base, "THIS_FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained({base})
{_usage_snippet(trained)}"""
    summary = (
        f"A standard peft LoRA of rank {rank}: the update that `{trained.cell.method}` learnt, as `B A`, and the "
        f"classification head (`modules_to_save`). Stored as {dtype}."
    )
    return _card(trained, summary, load, "peft", f"## In peft\n\n{_peft_notes(trained)}")


def merged_card(trained: Trained, dtype: str) -> str:
    """Return the card of a merged model."""
    load = f"""from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("THIS_FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
{_usage_snippet(trained)}"""
    summary = f"A plain transformers model: what `{trained.cell.method}` learnt is merged into its weights ({dtype})."
    return _card(trained, summary, load, "transformers")


def _usage_snippet(trained: Trained) -> str:
    """Return the lines of a snippet that predict with the model."""
    texts = ", ".join(f'"The {column}."' for column in trained.task.columns)
    answer = "float(logits)" if trained.task.is_regression else "model.config.id2label[int(logits.argmax())]"
    return f"""
inputs = tokenizer({texts}, truncation=True, max_length={trained.cell.max_length}, return_tensors="pt")
logits = model(**inputs).logits
print({answer})"""


def _peft_notes(trained: Trained) -> str:
    """Return what peft can and cannot do with the adapter."""
    if _hub_id(trained.cell):
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
  `model.set_adapter("other")`; `model.set_adapter("default")` chooses the first again. Its task must
  have as many outputs as this one ({trained.task.num_outputs}): all heads of a model have the same size.
- `model.add_weighted_adapter` is refused by peft (0.18 to 0.21 were tried) where two adapters each have a head. Without
  the heads it works: with `config = PeftConfig.from_pretrained(folder)` and
  `config.modules_to_save = config.task_type = None` for each folder, load the first by
  `PeftModel.from_pretrained(base, folder, config=config)`, the second by `model.add_adapter("other", config)` and
  `model.load_adapter(folder, adapter_name="other")`. `combination_type="cat"` adds the updates exactly, `"linear"` does
  not. The model then has the head of the adapter that was loaded last.
- {auto}"""


def _card(trained: Trained, summary: str, load: str, library: str, *sections: str) -> str:
    cell, task = trained.cell, trained.task
    title = f"{_code_text(trained.base)} · {task.title} · {cell.method}"
    parts = [
        f"---\n{_front_matter(trained, title, library)}\n---\n\n# {title}\n\n{summary}",
        f"Base model: {_base_text(cell)}. Data: `{_code_text(cell.data)}` ({_dataset(trained)[1]}).",
        f"## How to load\n\n```python\n{load}\n```",
        *sections,
        f"## Results\n\n{_results(trained)}",
        f"## Settings\n\n{_settings(cell)}",
        f"## How it was trained\n\n{_training(trained)}",
        f"lora-bench {__version__}, record `{trained.record.id}`.",
        f"## Licence\n\n{_licence_text(trained)}",
    ]
    return "\n\n".join(parts) + "\n"


def submission_section(trained: Trained, files: str) -> str:
    """Return the section of a submission's card about the cell that predicted these files."""
    cell = trained.cell
    return (
        f"## {files}: {_code_text(trained.base)} · {cell.method}\n\n{_results(trained)}\n\n{_settings(cell)}\n\n"
        f"{_training(trained)}"
    )


def submission_card(sections: list[str], problems: list[str]) -> str:
    """Return the card of a folder of predictions, with what the leaderboard would not accept in it."""
    data = ModelCardData(license=UNKNOWN_LICENCE, datasets=[HUB_ID], tags=["lora-bench", "glue"])
    problem_list = "\n".join(f"- {problem}" for problem in problems) or "- Nothing is missing."
    summary = "Predictions of GLUE's test splits; `submission.zip` is what the leaderboard takes."
    parts = [
        f"---\n{data.to_yaml().strip()}\n---\n\n# GLUE submission\n\n{summary}",
        problem_list,
        *sections,
        f"lora-bench {__version__}. Licence not known: set `license:` above yourself.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(trained: Trained, title: str, library: str) -> str:
    kind, _ = _dataset(trained)
    is_glue = trained.cell.task_origin is None  # a user's own task may be in any language
    data = ModelCardData(
        base_model=_hub_id(trained.cell),
        license=licence(trained.model.location),
        library_name=library,
        language="en" if is_glue else None,
        pipeline_tag="text-classification",
        datasets=[kind] if _is_hub_dataset(trained.cell) else None,
        metrics=list(_metrics(trained.record)),
        tags=["lora-bench", *(["glue"] if is_glue else []), trained.cell.method],
        model_name=title,
        eval_results=_eval_results(trained) or None,
    )
    return data.to_yaml().strip()


def _hub_id(cell: Cell) -> str | None:
    """Return the base model's id on the Hub; None if it was a directory."""
    return None if "@" in cell.model else cell.model


def _base_text(cell: Cell) -> str:
    """Describe the base model. A directory is called one, as it may have the name of another model."""
    model, label = f"`{_code_text(cell.model)}`", _code_text(cell.model.partition("@")[0])
    if _hub_id(cell):
        return f"{model} of the Hub"
    if is_bundled(cell):
        show = "`python -c 'from lora_bench.sample import ENCODER; print(ENCODER)'`"
        return f"{model}, which comes with lora-bench and is not on the Hub ({show} prints where it is)"
    return f"{model}, a directory called `{label}`, its content named by a hash; no model of the Hub is meant"


def _is_hub_dataset(cell: Cell) -> bool:
    """Return whether the data are a dataset of the Hub: `owner/name@revision`."""
    return "@" in cell.data


def _dataset(trained: Trained) -> tuple[str, str]:
    """Return the type and the name of the data. Only the Hub's GLUE is called GLUE: files may hold anything."""
    title = trained.task.title
    if _is_hub_dataset(trained.cell):
        name = trained.cell.data.partition("@")[0]
        return name, f"GLUE {title}" if name == HUB_ID else title
    if trained.has_bundled_data:
        return "synthetic", f"lora-bench's synthetic sample of {title}"
    return "files", f"local files for {title}"


def _eval_results(trained: Trained) -> list[EvalResult]:
    task, split, (kind, name) = trained.task, trained.record.protocol.split, _dataset(trained)
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=kind,
            dataset_name=name,
            dataset_config=task.name,
            dataset_split=split,
            metric_type=metric,
            metric_value=round(value, 6),
        )
        for metric, value in _metrics(trained.record).items()
    ]


def eval_result_files(trained: Trained) -> dict[str, str]:
    """Return the file of `.eval_results/` that tells the Hub the score, by its name; none for data that are not there.

    The score is the task's main metric, in its own units. The Hub shows it on the leaderboard of a dataset that is
    registered as a benchmark.
    """
    record, task = trained.record, trained.task
    if not _is_hub_dataset(trained.cell) or record.score is None:
        return {}
    dataset, _, revision = trained.cell.data.partition("@")
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=task.name,
        value=round(record.score, 6),
        dataset_revision=revision,
        notes=(
            f"{record.metric}, {record.protocol.split} split; epoch chosen by {record.cell.select}; seed "
            f"{record.cell.seed}; lora-bench record {record.id}"
        ),
    )
    content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, width=120)
    return {f".eval_results/{dataset.rpartition('/')[2]}-{task.name}.yaml": content}


def _metrics(record: Record) -> dict[str, float]:
    """Return the metrics of the epoch whose weights were saved."""
    epoch = record.selected_epoch
    return {name: value for name, value in epoch.metrics.items() if value is not None} if epoch else {}


def _results(trained: Trained) -> str:
    record = trained.record
    rows = "\n".join(f"| {name} | {value * 100:.2f} |" for name, value in _metrics(record).items())
    source = f"{record.protocol.split} split, epoch {record.score_epoch} of {record.cell.epochs}"
    table = f"| metric ({source}; epoch chosen by `{record.cell.select}`) | ×100 |\n|---|---|\n{rows}"
    scores = [other.score for other in trained.seeds if other.score is not None]
    if len(scores) < 2:
        return f"{table}\n\nOne seed ({record.cell.seed}): how much the scores vary between seeds is not known."
    line = f"{record.metric} over {len(scores)} seeds: {fmean(scores) * 100:.2f} ± {stdev(scores) * 100:.2f}"
    interval = seed_interval(scores)
    interval_text = (
        "" if interval is None else f", 95% interval of the mean {interval.low * 100:.2f} to {interval.high * 100:.2f}"
    )
    return f"{table}\n\n{line}{interval_text}. This folder holds seed {record.cell.seed}."


def _settings(cell: Cell) -> str:
    rows = [f"| {name} | `{_code_text(str(value))}` |" for name, value in cell.model_dump(exclude_none=True).items()]
    return "| setting | value |\n|---|---|\n" + "\n".join(rows)


def _training(trained: Trained) -> str:
    """Return the command that trains the cell, and what comes before it if it continues from another cell."""
    cell, start = trained.cell, _code_text(trained.record.protocol.start)
    origins = dict.fromkeys(filter(None, (cell.origin, cell.task_origin)))
    command = training_command(cell, [origin.rpartition("@")[0] for origin in origins])
    command = f"```sh\n{command}\n```"
    if cell.start is None:
        return command
    return (
        f"{command}\n\nThis is the command without its start. The cell continued from cell `{cell.start}`, which was "
        f"trained on `{start}` first: a config with `start: {{{_code_text(cell.task)}: {start}}}` trains both."
    )


def licence(model: str) -> str:
    """Return the licence that the base model's own card states; `other` if there is no card, or no licence in it."""
    path = Path(model) / "README.md" if Path(model).is_dir() else try_to_load_from_cache(model, "README.md")
    try:
        text = Path(str(path)).read_text(encoding="utf-8")
        opening, front, _ = text.split("---", 2)
        content = yaml.safe_load(front) if not opening.strip() else None
        name = content.get("license") if isinstance(content, dict) else None
    except (OSError, ValueError, yaml.YAMLError):
        return UNKNOWN_LICENCE
    return name if isinstance(name, str) and name.replace("-", "").replace(".", "").isalnum() else UNKNOWN_LICENCE


def _licence_text(trained: Trained) -> str:
    name = licence(trained.model.location)
    if name == UNKNOWN_LICENCE:
        return "Not known: set `license:` above yourself, from the base model's licence and that of the data."
    return f"`{name}` is the base model's; license what you trained within its terms. The data have their own."


def _code_text(text: str) -> str:
    """Return `text` as it can stand within inline Markdown code."""
    return "".join(character for character in text if character.isprintable() and character not in "`|")
