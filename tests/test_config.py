"""Reading a config or a --set: one line says where and what is wrong, one how to fix it, and nothing else escapes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.errors import USAGE, BenchError
from lora_bench.grid.config import Config, load_config, normalize_value, parse_config, parse_set


def refused(text: str) -> BenchError:
    with pytest.raises(BenchError) as caught:
        parse_config(text, "grid.yaml")
    assert caught.value.code == USAGE
    assert "\n" not in caught.value.what
    assert caught.value.hint
    return caught.value


# ---- files


def test_a_file_of_two_megabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"# filler\n" * 230_000)
    with pytest.raises(BenchError, match="larger than 1 MB"):
        load_config(path)


@pytest.mark.parametrize("name", ["absent.yaml", ".", "nul\0.yaml"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchError) as caught:
        load_config(tmp_path / name)
    assert caught.value.code == USAGE


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: x\ndescription: \xe9t\xe9\n")
    with pytest.raises(BenchError, match=r"latin\.yaml:2: this is not UTF-8"):
        load_config(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert load_config(path).name == "x"


# ---- what is wrong in a text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name: x\nname: y\n", "grid.yaml:2: key 'name' is given twice."),
        ("name: x\ndefaults:\n  lr: 1\n  rank: 2\n  lr: 3\n", "grid.yaml:5: key 'lr' is given twice."),
        ("name: &here x\n", "grid.yaml:1: anchor 'here' is not allowed."),
        ("name: x\ndescription: *there\n", "grid.yaml:2: anchor 'there' is not allowed."),
        ("name: x\ndescription: !!str y\n", "grid.yaml:2: tag 'tag:yaml.org,2002:str' is not allowed."),
        ("name: x\ndefaults: !!python/object/apply:os.getcwd []\n", "grid.yaml:2: tag "),
        ("name: [x\n", "grid.yaml:2: expected ',' or ']'"),
        ("name: x\n\tdefaults: 1\n", "grid.yaml:2: "),
        ("name: x\n---\nname: y\n", "grid.yaml:2: found another document."),
        ("name: x\n\x07\n", "grid.yaml:2: special characters are not allowed."),
        ("[" * 5000, "grid.yaml: the YAML is nested too deeply."),
        ("? [a]\n: 1\n", "grid.yaml:1: this key is not a word."),
        ("1: x\n", "grid.yaml:1: this key is not a word."),
        ("", "grid.yaml:1: the file is empty."),
        ("name: Con\n", "grid.yaml:1: name: 'Con' is a device on Windows."),
        ('name: x\ndescription: "\\ud800"\n', "grid.yaml:2: half of a character"),
        ("- a\n- b\n", "grid.yaml:1: a config is a mapping, not ['a', 'b']."),
        ("word\n", "grid.yaml:1: a config is a mapping, not 'word'."),
        ("description: y\n", "grid.yaml:1: there is no 'name'."),
        ("name: ../up\n", "grid.yaml:1: name: '../up' is not allowed."),
        ("name: x\nblocks: 3\n", "grid.yaml:2: blocks: 3 is not allowed."),
        ("name: x\nblocks:\n- rank: 2\n- 3\n", "grid.yaml:4: 3 is not a mapping."),
        ("name: x\ndefaults: [1]\n", "grid.yaml:2: [1] is not a mapping."),
        ("name: x\ndefaults:\n  rank: 0\n", "grid.yaml:3: rank: 0 is not allowed."),
        ("name: x\nblocks:\n- rank: 2\n- a: x\n", "grid.yaml:4: a: 'x' is not allowed."),
        ("name: x\ndefaults: {lr: nan}\n", "grid.yaml:2: lr: 'nan' is not allowed."),
        ("name: x\ndefaults: {lr: 1e400}\n", "grid.yaml:2: lr: inf is not allowed."),
        ("name: x\ndefaults: {rank: 3000000000}\n", "grid.yaml:2: rank: 3000000000 is not allowed."),
        ("name: x\ndefaults: {seed: true}\n", "grid.yaml:2: seed: True is not a value."),
        ("name: x\ndefaults: {rank: []}\n", "grid.yaml:2: rank: the list is empty."),
        ("name: x\ndefaults: {rank: [[1]]}\n", "grid.yaml:2: rank: [1] is not a value."),
        ("name: x\ndefaults: {rank: {}}\n", "grid.yaml:2: rank: {} is not a value."),
        ("name: x\ndefaults: {task: {default: rte}}\n", "grid.yaml:2: task: {'default': 'rte'} is not a value."),
        ("name: x\nnotes: {all: 3}\n", "grid.yaml:2: 3 is not a text."),
        ("name: x\nnotes: y\n", "grid.yaml:2: 'y' is not a mapping."),
    ],
)
def test_one_line_says_where_and_what(text: str, what: str) -> None:
    assert refused(text).what.startswith(what)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("name: x\ndefalts: {}\n", "Did you mean 'defaults'?"),
        ("name: x\ndefaults: {epoch: 3}\n", "Did you mean 'epochs'?"),
        ("name: x\nblocks: [{bach_size: 3}]\n", "Did you mean 'batch_size'?"),
        ("name: x\ndefaults: {zzzzzz: here}\n", "Known: a, alpha, b, "),
        ("name: x\ndefaults: {task: sst3}\n", "Did you mean 'sst2'?"),
        ("name: x\ndefaults: {method: min}\n", "Did you mean 'mini'?"),
        ("name: x\ndefaults: {epochs: {colla: 3}}\n", "Did you mean 'cola'?"),
        ("name: x\ndefaults: {epochs: {defualt: 3}}\n", "Did you mean 'default'?"),
        ("name: x\nnotes: {rtee: text}\n", "Did you mean 'rte'?"),
        ("name: x\ndefaults: {select: bst}\n", "select should be 'best', 'last' or 'held-out'."),
        ("name: x\ndefaults: {warmup: 2}\n", "warmup should be less than or equal to 1."),
    ],
)
def test_one_line_says_how_to_fix_it(text: str, hint: str) -> None:
    assert refused(text).hint.startswith(hint)


def test_more_than_one_mistake_is_counted() -> None:
    assert refused("name: 3\ndescription: 4\n").what.endswith("(and 1 more).")


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 0.001), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("+2", 2.0), ("0.1", 0.1), ('"1e-3"', 0.001)],
)
def test_numbers_are_read_as_people_write_them(written: str, value: float) -> None:
    assert parse_config(f"name: x\ndefaults: {{lr: {written}}}", "-").defaults["lr"] == (value,)


@pytest.mark.parametrize("word", ["no", "on", "1:30", "2024-01-01", "0x10", "<<"])
def test_words_stay_words(word: str) -> None:
    assert parse_config(f"name: x\ndescription: {word}", "-").description == word


def test_empty_keys_are_as_good_as_absent() -> None:
    assert parse_config("name: x\ndefaults:\nblocks:\nnotes:\n", "-") == Config(name="x")


def test_notes_of_a_task_come_after_those_of_all() -> None:
    config = parse_config("name: x\nnotes: {rte: [b, c], all: a}", "-")
    assert config.notes_for("rte") == ("a", "b", "c")
    assert config.notes_for("cola") == ("a",)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*tasks.TASKS])
)
KEYS = st.sampled_from([*Config.model_fields, *Cell.model_fields, *tasks.TASKS, "default", "all"]) | st.text(max_size=3)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
MARKS = [
    "name: x\n",
    "defaults:",
    "blocks:",
    "\n",
    "  ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    ": ",
    "rank",
    "lr",
    "task",
    "sst2",
]
MARKS += [
    "&a",
    "*a",
    "!t",
    "'",
    '"',
    "\\",
    "#",
    "|",
    ">",
    "%",
    "?",
    "---",
    "...",
    "\t",
    "\0",
    "\ud800",
    "9" * 40,
    "1e999",
]


def assert_config_or_error(text: str) -> None:
    try:
        assert isinstance(parse_config(text, "-"), Config)
    except BenchError as error:
        assert error.code == USAGE


@given(st.text() | st.lists(st.sampled_from(MARKS), max_size=25).map("".join))
def test_any_text_gives_a_config_or_a_clear_error(text: str) -> None:
    assert_config_or_error(text)


@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_any_tree_gives_a_config_or_a_clear_error(tree: dict[str, object]) -> None:
    assert_config_or_error(yaml.safe_dump({"name": "x", **tree}))
    assert_config_or_error(yaml.safe_dump({"name": "x", "defaults": tree}))


# ---- --set


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rank=8", ("rank", (8,))),
        ("rank=[4, 8, 4]", ("rank", (4, 8))),
        ("weight-decay = 0.1", ("weight_decay", (0.1,))),
        ("lr=1e-3", ("lr", (0.001,))),
        ("head_lr=null", ("head_lr", (None,))),
        ("targets=query,value", ("targets", ("query,value",))),
        ("model=dir/a=b", ("model", ("dir/a=b",))),
    ],
)
def test_set_reads_a_value_or_a_list(text: str, expected: tuple[str, tuple[object, ...]]) -> None:
    assert parse_set(text) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rank", "--set 'rank' has no '='."),
        ("rnk=3", "Did you mean 'rank'?"),
        ("data=here", "Unknown setting 'data'."),
        ("rank=[3", "--set rank:1: expected ',' or ']'"),
        ("rank={cola: 3}", "rank: {'cola': 3} is not a value."),
        ("lr=", "lr: None is not allowed."),
        ("epochs=0", "epochs should be greater than 0."),
    ],
)
def test_set_says_what_is_wrong(text: str, line: str) -> None:
    with pytest.raises(BenchError, match=re.escape(line)):
        parse_set(text)


def test_the_largest_and_the_smallest_values_are_allowed() -> None:
    assert normalize_value("seed", 2**63 - 1) == 2**63 - 1
    assert normalize_value("lr", 5e-324) == 5e-324
    assert normalize_value("weight_decay", -0.0) == 0.0
