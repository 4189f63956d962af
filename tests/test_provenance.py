"""The fingerprint of the code: computed from what runs, blind to what does not."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_bench import methods, provenance

METHOD = "mini"
MODULES = sorted(provenance.modules_behind(METHOD))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's code, to change."""
    root = tmp_path_factory.mktemp("copy") / "lora_bench"
    return Path(shutil.copytree(provenance.ROOT, root, ignore=shutil.ignore_patterns("*.jsonl", "*.safetensors")))


def path_of(root: Path, module: str) -> Path:
    folder = root.joinpath(*module.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def fingerprint_after(root: Path, module: str, edit: Callable[[str], str]) -> str:
    """The method's fingerprint once a module's text is edited; the text is restored."""
    path = path_of(root, module)
    before = path.read_text(encoding="utf-8")
    after = edit(before)
    assert after != before
    path.write_text(after, encoding="utf-8")
    try:
        return fresh(root)
    finally:
        path.write_text(before, encoding="utf-8")


def fresh(root: Path) -> str:
    for cached in (provenance.code, provenance.module_digest, provenance._read):
        cached.cache_clear()
    return provenance.code(METHOD, root)


def with_comments(text: str) -> str:
    """The same code with comments, a blank line and a docstring in every function that has none."""
    lines = text.splitlines()
    inserts = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is None:
            first = node.body[0]
            line = min([first.lineno, *(each.lineno for each in getattr(first, "decorator_list", []))])
            if not lines[line - 1][: first.col_offset].strip("@ "):  # the body has a line of its own
                inserts.append((line - 1, " " * first.col_offset + '"""What it does."""'))
    for index, line in sorted(inserts, reverse=True):
        lines.insert(index, line)
    return "# why\n\n" + "\n".join(lines) + "\n\n# the end\n"


class _ChangesOneConstant(ast.NodeTransformer):
    """Changes the first constant that is no docstring and in no error's message or type-checking import."""

    def __init__(self) -> None:
        self.done = False

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return node if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if self.done or isinstance(node.value, bool | None):
            return node
        self.done = True
        return ast.Constant(node.value + 1 if isinstance(node.value, int | float) else "another")


def with_one_constant_changed(text: str) -> str:
    change = _ChangesOneConstant()
    changed = ast.unparse(change.visit(ast.parse(text)))
    return changed if change.done else text + "\nANOTHER = 1\n"


def test_the_closure_holds_what_decides_a_number_and_no_more() -> None:
    decides = {
        "engine.trainer",
        "engine.kernels.layers",
        "engine.randomness",
        "data.tokens",
        "data.sources",
        "data.windows",
    }
    decides |= {"tasks.metrics", "tasks.task", "tasks.glue", "cell", "methods.mini", "methods.recipe"}
    assert decides <= set(MODULES)
    other = {"cli", "store", "runner", "report", "errors", "text", "forecast", "grid", "resume", "methods.lora"}
    assert {name for name in MODULES if name.partition(".")[0] in other or name in other} == set()


@pytest.mark.parametrize("module", MODULES)
def test_comments_docstrings_and_formatting_change_nothing(module: str, package: Path) -> None:
    before = fresh(package)
    assert fingerprint_after(package, module, with_comments) == before
    assert fingerprint_after(package, module, lambda text: ast.unparse(ast.parse(text))) == before


@pytest.mark.parametrize("module", MODULES)
def test_a_changed_constant_changes_the_fingerprint(module: str, package: Path) -> None:
    assert fingerprint_after(package, module, with_one_constant_changed) != fresh(package)


def test_a_moved_and_renamed_file_changes_nothing(package: Path) -> None:
    before = fresh(package)
    source, target = package / "engine" / "losses.py", package / "engine" / "each" / "per_cell.py"
    target.parent.mkdir()
    (target.parent / "__init__.py").write_text('"""New."""\n', encoding="utf-8")
    source.rename(target)
    importers = [path for path in package.rglob("*.py") if "engine.losses" in path.read_text(encoding="utf-8")]
    assert importers
    texts = {path: path.read_text(encoding="utf-8") for path in importers}
    for path, text in texts.items():
        path.write_text(text.replace("engine.losses", "engine.each.per_cell"), encoding="utf-8")
    try:
        assert fresh(package) == before
    finally:
        target.rename(source)
        shutil.rmtree(target.parent)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")


def test_another_import_of_the_same_name_changes_the_fingerprint(package: Path) -> None:
    """Both modules are in the closure; only which of them a name comes from differs."""
    (package / "engine" / "other_losses.py").write_text(
        (package / "engine" / "losses.py").read_text(encoding="utf-8").replace("square()", "abs()"), encoding="utf-8"
    )
    changed = fingerprint_after(
        package, "engine.trainer", lambda text: text.replace("engine.losses", "engine.other_losses")
    )
    assert changed != fresh(package)


def test_the_wording_of_an_error_changes_nothing(package: Path) -> None:
    before = fresh(package)
    assert fingerprint_after(package, "errors", lambda text: text.replace("Did you mean", "Perhaps")) == before
    raised = fingerprint_after(
        package, "data.tokens", lambda text: text.replace("cannot be divided.", "is too short to divide.")
    )
    assert raised == before


def test_methods_differ_by_their_own_files() -> None:
    prints = {name: provenance.code(name) for name in methods.RECIPES}
    assert len(set(prints.values())) == len(prints)
    assert "methods.mini" in provenance.modules_behind("mini-svd"), "a variant counts with what it varies"


def test_the_fingerprint_needs_no_torch_and_little_time() -> None:
    assert len(provenance.code(METHOD)) == 12
    assert provenance.current(METHOD).keys() == {"code", *provenance.LIBRARIES}


@pytest.mark.parametrize("method", [name for name, recipe in methods.RECIPES.items() if recipe.posterior])
def test_the_code_of_posteriors_counts_for_methods_that_have_one(method: str) -> None:
    assert {"engine.posterior", "engine.fisher"} <= provenance.modules_behind(method)
    assert "engine.posterior" not in provenance.modules_behind("lora")


def test_all_of_the_engine_counts_but_what_saves_adapters_and_sizes_packs() -> None:
    paths = (path.relative_to(provenance.ROOT).with_suffix("") for path in (provenance.ROOT / "engine").rglob("*.py"))
    modules = {".".join(path.parts) for path in paths if path.name != "__init__"}
    counted = set().union(*map(provenance.modules_behind, methods.RECIPES))
    assert modules - counted == {"engine.adapters.saved", "engine.memory"}
