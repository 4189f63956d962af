"""The definitions of the nine GLUE tasks.

Sources: tasks and metrics are from Wang et al. 2019 (arXiv 1804.07461); names of columns, the order of labels and the
numbers of rows from `nyu-mll/glue` on the Hub; numbers of test rows from published submissions; names of submission
files and of their labels from several public exporters.

Mean lengths were counted on the train splits, QNLI's on a tenth of its train split. QQP's and MNLI's are estimated from
the sizes of their train splits on the Hub's dataset card (119.9 and 170.0 bytes a row without labels) and the tokens
per byte of the other tasks with pairs (0.20 to 0.23); their spread is chosen.
"""

from __future__ import annotations

from dataclasses import replace

from lora_bench.tasks.task import Hub, Submission, Task, Tsv

HUB_ID = "nyu-mll/glue"
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"

_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")


def _hub(task: str) -> Hub:
    return Hub(HUB_ID, HUB_REVISION, config=task)


RECORDS = (
    Task(
        name="cola",
        title="CoLA",
        columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        source=_hub("cola"),
        rows=(8551, 1043),
        tsv=Tsv(folder="CoLA", columns=("sentence",), names=("source", "label", "mark", "sentence")),
        submissions=(Submission("test", "CoLA", 1063),),
        mean_tokens=11.4,
        token_spread=0.35,
    ),
    Task(
        name="sst2",
        title="SST-2",
        columns=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        source=_hub("sst2"),
        rows=(67349, 872),
        tsv=Tsv(folder="SST-2", columns=("sentence",)),
        submissions=(Submission("test", "SST-2", 1821),),
        mean_tokens=14.4,
        token_spread=0.65,
        eval_mean_tokens=27.2,  # train has many phrases; counted by another tokenizer: 1.89 times those of train
    ),
    Task(
        name="mrpc",
        title="MRPC",
        columns=_PAIR,
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        source=_hub("mrpc"),
        rows=(3668, 408),
        tsv=Tsv(folder="MRPC", columns=("#1 String", "#2 String"), label="Quality"),
        submissions=(Submission("test", "MRPC", 1725),),
        mean_tokens=54.1,
        token_spread=0.24,
    ),
    Task(
        name="stsb",
        title="STS-B",
        columns=_PAIR,
        labels=(),
        bounds=(0.0, 5.0),
        metrics=("pearson", "spearman"),
        source=_hub("stsb"),
        rows=(5749, 1500),
        tsv=Tsv(folder="STS-B", columns=_PAIR, label="score"),
        submissions=(Submission("test", "STS-B", 1379),),
        mean_tokens=29.1,
        token_spread=0.49,
        eval_mean_tokens=32.8,
    ),
    Task(
        name="qqp",
        title="QQP",
        columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        source=_hub("qqp"),
        rows=(363846, 40430),
        tsv=Tsv(folder="QQP", columns=("question1", "question2"), label="is_duplicate", from_quoted=True),
        submissions=(Submission("test", "QQP", 390965),),
        mean_tokens=30.0,
        token_spread=0.45,
    ),
    Task(
        name="mnli",
        title="MNLI",
        columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy", "accuracy_matched", "accuracy_mismatched"),
        source=_hub("mnli"),
        eval_splits=("validation_matched", "validation_mismatched"),
        rows=(392702, 9815, 9832),
        tsv=Tsv(folder="MNLI", columns=_PAIR, label="gold_label"),
        submissions=(Submission("test_matched", "MNLI-m", 9796), Submission("test_mismatched", "MNLI-mm", 9847)),
        mean_tokens=40.2,
        token_spread=0.45,
        submits_names=True,
    ),
    Task(
        name="qnli",
        title="QNLI",
        columns=("question", "sentence"),
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        source=_hub("qnli"),
        rows=(104743, 5463),
        tsv=Tsv(folder="QNLI", columns=("question", "sentence")),
        submissions=(Submission("test", "QNLI", 5463),),
        mean_tokens=50.7,
        token_spread=0.35,
        submits_names=True,
    ),
    Task(
        name="rte",
        title="RTE",
        columns=_PAIR,
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        source=_hub("rte"),
        rows=(2490, 277),
        tsv=Tsv(folder="RTE", columns=_PAIR),
        submissions=(Submission("test", "RTE", 3000),),
        mean_tokens=67.5,
        token_spread=0.48,
        submits_names=True,
    ),
    Task(
        name="wnli",
        title="WNLI",
        columns=_PAIR,
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        source=_hub("wnli"),
        rows=(635, 71),
        tsv=Tsv(folder="WNLI", columns=_PAIR),
        submissions=(Submission("test", "WNLI", 146),),
        mean_tokens=37.7,
        token_spread=0.41,
    ),
)

# GLUE's diagnostic set: only a test split, which is predicted by a model trained on MNLI.
DIAGNOSTIC = replace(
    next(task for task in RECORDS if task.name == "mnli"),
    name="ax",
    title="AX",
    source=_hub("ax"),
    submissions=(Submission("test", "AX", 1104),),
    tsv=Tsv(folder="diagnostic", columns=_PAIR),
)


def tsv_file(split: str) -> str:
    """Return the name of a split's file in GLUE's download: `dev_matched.tsv` for `validation_matched`."""
    return split.replace("validation", "dev") + ".tsv"
