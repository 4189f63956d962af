"""What files say of a grid before any model or row is loaded: its rows, and heads that cannot be trained. No torch."""

from __future__ import annotations

from lora_bench.errors import MISSING, BenchError
from lora_bench.forecast.geometry import load_geometry
from lora_bench.grid.cells import Grid
from lora_bench.sample import DATA

# The model types whose own classification head can be trained: those of `engine.encoder.head_forms`, which needs torch.
HEAD_TYPES = frozenset(
    {
        "albert", "bert", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
        "esm", "jina_embeddings_v3", "megatron-bert", "mpnet", "roberta", "roberta-prelayernorm", "roformer",
        "xlm-roberta", "xlm-roberta-xl",
    }
)  # fmt: skip


def require_heads(grid: Grid) -> None:
    """Refuse a grid that asks for the head of a model type which cannot be trained, where the type is known.

    Raises:
        BenchError: Exit code 3.
    """
    cells = dict.fromkeys(entry.draft.cell for entry in grid.entries if entry.draft.cell.head is not None)
    for model in dict.fromkeys(grid.model_source(cell).name for cell in cells):
        geometry = load_geometry(model)
        if geometry is not None and geometry.model_type and geometry.model_type not in HEAD_TYPES:
            what = f"head=model: the classification head of '{geometry.model_type}' cannot be trained here."
            raise BenchError(what, "Leave `head` unset, to train RoBERTa's head over this encoder.", MISSING)


def sample_rows(grid: Grid) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the rows of the bundled data's splits, which are not the official ones, by identity and task."""
    rows = {}
    for (task, identity), source in grid.data.items():
        if source.kind == "sample":
            lines = {path.stem: path.read_bytes().count(b"\n") for path in sorted((DATA / task).glob("*.jsonl"))}
            train = lines.pop("train", 0)
            rows[identity, task] = train, sum(lines.values())
    return rows
