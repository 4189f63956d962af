"""Sources and their identity, tokens, the token file, and the slice held out."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lora_bench.data import DataSource, load, tokens
from lora_bench.data.sources import Rows
from lora_bench.data.tokens import TokenTable, held_out, tokenize
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.tasks import TASKS, Task, get

GLUE = os.environ.get("LORA_BENCH_GLUE")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
SST2 = get("sst2")
FROZEN = [5, 7, 12, 16, 17]


def make_tokenizer(types: bool = True, special: bool = True, words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token a word, in BERT's frame; with padding and truncation baked in, as some tokenizer.json have them."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    core.enable_padding(length=32)
    core.enable_truncation(5)
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    kind: Any = PreTrainedTokenizerFast  # untyped in transformers
    tokenizer: PreTrainedTokenizerFast = kind(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_input_names=inputs, model_max_length=6
    )
    return tokenizer


def rows_of(*texts: list[str]) -> Rows:
    return Rows(texts, np.arange(len(texts[0]), dtype=np.int64) % 2)


def same(one: TokenTable, other: TokenTable) -> bool:
    fields = ("ids", "offsets", "labels", "types")
    arrays = [(getattr(one, name), getattr(other, name)) for name in fields]
    return all(
        (a is None and b is None) or (a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b))
        for a, b in arrays
    )


def write(root: Path, task: Task, count: int = 3) -> Path:
    """A data folder with the task's splits as jsonl."""
    (root / task.name).mkdir(parents=True, exist_ok=True)
    for split in task.splits:
        rows = [{**dict.fromkeys(task.columns, f"{split} {i}"), "label": i % task.num_outputs} for i in range(count)]
        (root / task.name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_parse_takes_a_folder_before_the_sample_before_the_hub(tmp_path: Path) -> None:
    assert DataSource.parse() == DataSource("task")
    assert DataSource.parse(sample=True).kind == "sample"
    assert DataSource.parse(tmp_path) == DataSource.parse(tmp_path, sample=True) == DataSource("folder", tmp_path)


def test_parse_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"does not exist.\n.*<task>.train.parquet") as caught:
        DataSource.parse(tmp_path / "no")
    assert caught.value.code == MISSING


def test_the_hubs_identity_is_its_revision() -> None:
    assert DataSource("task").identity(SST2) == "nyu-mll/glue@bcdcba79"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_folders_identity_is_its_content_and_not_its_path(task: Task, tmp_path: Path) -> None:
    one, two, more = (write(tmp_path / name, task, count) for name, count in (("one", 3), ("two", 3), ("more", 4)))
    identity = DataSource("folder", one).identity(task)
    assert identity == DataSource("folder", two).identity(task) != DataSource("folder", more).identity(task)
    kind, _, digest = identity.partition(":")
    assert kind == "files" and len(digest) == 12 and int(digest, 16) >= 0
    assert DataSource("sample", one).identity(task) == f"sample:{digest}"


def test_identity_tells_rows_moved_between_splits(tmp_path: Path) -> None:
    root = write(tmp_path, SST2)
    before = DataSource("folder", root).identity(SST2)
    train, validation = (root / "sst2" / f"{split}.jsonl" for split in SST2.splits)
    lines = validation.read_bytes().splitlines(keepends=True)
    train.write_bytes(train.read_bytes() + lines[0])
    validation.write_bytes(b"".join(lines[1:]))
    assert DataSource("folder", root).identity(SST2) != before


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_load_gives_every_split_by_its_name(task: Task, tmp_path: Path) -> None:
    loaded = load(task, DataSource("folder", write(tmp_path, task)))
    assert list(loaded.evals) == list(task.eval_splits)
    assert loaded.train.texts[0][0] == "train 0"
    assert all(rows.texts[-1][2] == f"{name} 2" for name, rows in loaded.evals.items())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_identity_is_the_hash_that_it_always_was(task: Task, tmp_path: Path) -> None:
    """Records of years ago are found by it: over each split's name, the file's size, and its bytes."""
    source = DataSource("folder", write(tmp_path, task))
    digest = hashlib.sha256()
    for split in task.splits:
        content = (tmp_path / task.name / f"{split}.jsonl").read_bytes()
        digest.update(f"{split} {len(content)}\n".encode() + content)
    assert source.identity(task) == source.read(task, source.files(task))[0] == f"files:{digest.hexdigest()[:12]}"


def test_data_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    source = DataSource("folder", write(tmp_path, SST2))
    planned = source.identity(SST2)
    assert len(load(SST2, source, planned=planned).train) == 3
    for content in ('{"sentence": "other", "label": 1}\n', "broken"):
        (tmp_path / "sst2" / "validation.jsonl").write_text(content)
        with pytest.raises(BenchError, match="changed since the plan") as caught:
            load(SST2, source, planned=planned)
        assert caught.value.code == MISSING and planned in caught.value.what


@pytest.mark.parametrize("act", ["load", "identity"])
def test_a_missing_split_file_is_one_error(act: str, tmp_path: Path) -> None:
    source = DataSource("folder", write(tmp_path, get("mnli")))
    (tmp_path / "mnli" / "validation_mismatched.jsonl").unlink()
    with pytest.raises(BenchError, match="split 'validation_mismatched'") as caught:
        load(get("mnli"), source) if act == "load" else source.identity(get("mnli"))
    assert caught.value.code == MISSING


def test_load_asks_the_hub_offline_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_bench.data import hub

    rows = rows_of(["a"])
    monkeypatch.setattr(hub, "read_hub", lambda task, offline: {"train": rows, "validation": offline})
    loaded: Any = load(SST2, DataSource("task"), offline=True)
    assert loaded.train is rows and loaded.evals == {"validation": True}


def test_tokens_lie_end_to_end_in_their_frame() -> None:
    table = tokenize(rows_of(["a b", "", "zz c"]), make_tokenizer(), 8)
    assert table.ids.tolist() == [2, 4, 5, 3, 2, 3, 2, 1, 6, 3]
    assert table.offsets.tolist() == [0, 4, 6, 10]
    assert table.lengths.tolist() == [4, 2, 4] and len(table) == 3 and table.max_id == 6
    assert [str(array.dtype) for array in (table.ids, table.offsets, table.labels)] == ["int32", "int64", "int64"]


def test_pairs_have_token_types_where_the_tokenizer_has_them() -> None:
    rows = rows_of(["a", "b c"], ["d", "e"])
    table = tokenize(rows, make_tokenizer(), 16)
    assert table.types is not None and table.types.dtype == np.uint8
    assert table.types.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    assert tokenize(rows, make_tokenizer(types=False), 16).types is None


def test_the_longer_text_is_cut_first_and_baked_in_lengths_are_ignored() -> None:
    long = " ".join("abcdefghij")
    table = tokenize(rows_of([long, long], ["a", long]), make_tokenizer(), 9)
    assert table.lengths.tolist() == [9, 9]
    assert table.ids[:9].tolist() == [2, 4, 5, 6, 7, 8, 3, 4, 3]
    assert tokenize(rows_of([long]), make_tokenizer(), 99).lengths.tolist() == [12]


@pytest.mark.parametrize(("texts", "least"), [((["a b c"],), 3), ((["a b c"], ["d"]), 4)])
def test_a_length_without_room_for_text(texts: tuple[list[str], ...], least: int) -> None:
    with pytest.raises(BenchError, match=f"--max-length {least} or more") as caught:
        tokenize(rows_of(*texts), make_tokenizer(), least - 1)
    assert caught.value.code == USAGE
    assert tokenize(rows_of(*texts), make_tokenizer(), least).lengths.tolist() == [least]


def test_a_row_without_any_token_is_an_error() -> None:
    with pytest.raises(BenchError, match="no token for row 2") as caught:
        tokenize(rows_of(["a", ""]), make_tokenizer(special=False), 8)
    assert caught.value.code == MISSING


def test_awkward_texts_do_not_stop_the_tokenizer() -> None:
    assert len(tokenize(rows_of(["nul \x00", "\ufffd", "\U0001f600", "\u2028", "'\"\\"]), make_tokenizer(), 8)) == 5


texts = st.lists(st.text("abc z", max_size=30), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None)
@given(texts, st.integers(4, 12), st.integers(1, 7))
def test_the_table_is_what_the_tokenizer_gives_row_by_row(column: list[str], length: int, chunk: int) -> None:
    tokenizer, rows = make_tokenizer(), rows_of(column, column[::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "CHUNK", chunk)
        table = tokenize(rows, tokenizer, length)
    for i, (first, second) in enumerate(zip(*rows.texts, strict=True)):
        # As batches of one: called with plain strings, the tokenizer takes an empty second text for none.
        alone = tokenizer([first], [second], truncation=True, max_length=length)
        part = slice(table.offsets[i], table.offsets[i + 1])
        assert table.ids[part].tolist() == alone["input_ids"][0]
        assert table.types is not None and table.types[part].tolist() == alone["token_type_ids"][0]


def test_the_fingerprint_sees_ids_cuts_and_labels() -> None:
    tables = [
        tokenize(rows_of(column), make_tokenizer(special=False), 8)
        for column in (["a b", "c"], ["a", "b c"], ["a b", "d"])
    ]
    flipped = TokenTable(tables[0].ids, None, tables[0].offsets, 1 - tables[0].labels)
    prints = [table.fingerprint for table in (*tables, flipped)]
    assert len(set(prints)) == 4 and all(len(one) == 16 and int(one, 16) >= 0 for one in prints)
    assert tokenize(rows_of(["a b", "c"]), make_tokenizer(special=False), 8).fingerprint == prints[0]


@pytest.mark.parametrize("types", [True, False])
def test_the_token_file_gives_the_same_table(types: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tokenizer = rows_of(["a b", "c"], ["d", ""]), make_tokenizer(types)
    first = tokenize(rows, tokenizer, 8, tmp_path / "new")
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".tokens"]
    monkeypatch.setattr(tokens, "_encode", lambda *_: pytest.fail("not from the file"))
    assert same(first, tokenize(rows, make_tokenizer(types), 8, tmp_path / "new"))


def test_whatever_changes_the_tokens_changes_the_file(tmp_path: Path) -> None:
    rows, words = rows_of(["a b", "c"]), [*WORDS[:4], *reversed(WORDS[4:])]
    calls: list[tuple[Rows, PreTrainedTokenizerFast, int]] = [
        (rows, make_tokenizer(), 8),
        (rows, make_tokenizer(), 9),
        (rows_of(["a", "b c"]), make_tokenizer(), 8),
        (rows_of(["a b"], ["c"]), make_tokenizer(), 8),
        (rows, make_tokenizer(types=False), 8),
        (rows, make_tokenizer(words=words), 8),
    ]
    tables = [tokenize(rows, tokenizer, length, tmp_path) for rows, tokenizer, length in calls]
    assert len(list(tmp_path.iterdir())) == 6
    assert not same(tables[0], tables[5])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_token_file_is_made_again(tmp_path: Path, draw: st.DataObject) -> None:
    rows, tokenizer = rows_of(["a b", "c"]), make_tokenizer()
    good = tokenize(rows, tokenizer, 8, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    place = draw.draw(st.integers(0, len(content) - 1))
    if draw.draw(st.booleans()):
        path.write_bytes(content[:place])
    else:
        content[place] ^= draw.draw(st.integers(1, 255))
        path.write_bytes(content)
    assert same(good, tokenize(rows, tokenizer, 8, tmp_path))
    assert same(good, tokenize(rows, tokenizer, 8, tmp_path)) and list(tmp_path.iterdir()) == [path]


def test_tokens_of_other_texts_never_come_from_the_cache(tmp_path: Path) -> None:
    """As many rows, of the same lengths, under the same file name: the cache is named by what was tokenised."""
    tables = [tokenize(rows_of([text]), make_tokenizer(), 8, tmp_path) for text in ("a b", "c d", "a b")]
    assert [table.ids.tolist() for table in tables] == [[2, 4, 5, 3], [2, 6, 7, 3], [2, 4, 5, 3]]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert len(tokenize(rows_of(["a"]), make_tokenizer(), 8, tmp_path / "file")) == 1


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenize(rows_of(["a"]), make_tokenizer(), 8, tmp_path)
    assert not list(tmp_path.iterdir())


def numbered(count: int) -> TokenTable:
    """Sequence i is i + 1 times the token i, and its label is i."""
    lengths = np.arange(1, count + 1)
    ids = np.repeat(np.arange(count), lengths).astype(np.int32)
    return TokenTable(ids, (ids % 2).astype(np.uint8), np.append(0, np.cumsum(lengths)), np.arange(count))


@given(st.integers(2, 40), st.integers(0, 2**63 - 1), st.floats(0, 1))
def test_holding_out_divides_the_rows(count: int, seed: int, fraction: float) -> None:
    table = numbered(count)
    train, held = held_out(table, seed, fraction)
    assert len(held) == min(max(round(count * fraction), 1), count - 1)
    assert sorted([*train.labels, *held.labels]) == list(range(count))
    for part in (train, held):
        assert part.lengths.tolist() == [label + 1 for label in part.labels]
        assert np.array_equal(part.ids, np.repeat(part.labels, part.lengths))
        assert part.types is not None and np.array_equal(part.types, part.ids % 2)


def test_holding_out_is_frozen_for_a_seed() -> None:
    table = numbered(20)
    parts = [held_out(table, seed, 0.25)[1].labels.tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert parts[0] == FROZEN


def test_one_row_cannot_be_divided() -> None:
    with pytest.raises(BenchError, match="one row"):
        held_out(numbered(1), 0, 0.5)


@pytest.mark.skipif(not GLUE, reason="LORA_BENCH_GLUE names no folder with the real GLUE")
@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "rte", "wnli"])
def test_real_tasks_load_and_have_an_identity(name: str) -> None:
    source = DataSource.parse(Path(str(GLUE)))
    task = get(name)
    loaded = load(task, source)
    assert len(loaded.train) == task.train_rows and len(loaded.evals["validation"]) == task.eval_rows
    assert source.identity(task).startswith("files:")
