"""The layers of the package, from the imports of its modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fashion_cnn"
# Lowest first; a module imports from its own layer and from those below it.
LAYERS = (
    {"errors", "terminal"},
    {"runs", "pictures", "metrics"},
    {"data"},
    {"models"},
    {"inference.network", "evaluation.corruptions"},
    {"training", "plots", "analysis"},
    {"inference", "evaluation", "sweeps"},
    {"concepts", "retrieval"},
    {"cli"},
)
COMMANDS = len(LAYERS)
MAX_MODULES = 165


def _module(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {_module(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def _layer(module: str) -> int:
    """The position in LAYERS; `__main__.py` files and the modules beside the folders are commands."""
    if module.endswith(".__main__"):
        return COMMANDS
    path = module.split(".")[1:]
    for prefix in (".".join(path[:length]) for length in range(len(path), 0, -1)):
        for number, layer in enumerate(LAYERS):
            if prefix in layer:
                return number
    return COMMANDS


def _imports(module: str, *, for_types: bool) -> set[str]:
    """Modules of the package that a module imports, anywhere in it; for_types: those for type checkers too."""
    imported: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            return
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` imports the module, `from module import name` the module before it.
            imported.update(name if name in FILES else str(node.module) for name in names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(FILES[module].read_text()))
    return {name for name in imported if name in FILES}


@pytest.mark.parametrize("module", FILES)
def test_modules_import_only_from_their_own_layer_and_lower_ones(module):
    upward = {name for name in _imports(module, for_types=True) if _layer(name) > _layer(module)}
    # An empty list of exceptions: a value that a lower layer needs is passed in.
    assert upward == set()


def test_the_imports_form_no_cycle():
    finished: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in finished:
            return
        path.append(module)
        for name in sorted(_imports(module, for_types=False)):
            visit(name)
        path.pop()
        finished.add(module)

    for module in FILES:
        visit(module)


def test_nothing_below_the_command_line_imports_it():
    below = [module for module in FILES if _layer(module) < LAYERS.index({"cli"})]
    assert [module for module in below if any(".cli" in name for name in _imports(module, for_types=True))] == []


def test_the_number_of_modules_is_limited():
    assert len(FILES) <= MAX_MODULES


def test_metrics_import_neither_lightning_nor_matplotlib():
    texts = [file.read_text() for module, file in FILES.items() if module.startswith("fashion_cnn.metrics")]
    roots = {
        name.partition(".")[0]
        for text in texts
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not roots & {"lightning", "matplotlib"}


def test_metrics_are_imported_without_lightning_and_hydra():
    modules = [module for module in FILES if module.startswith("fashion_cnn.metrics")]
    code = f"import sys, {', '.join(modules)}\nprint({{'lightning', 'hydra', 'matplotlib'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_predict_help_imports_no_sweep_code():
    code = (
        "import sys\n"
        "sys.argv = ['predict', '--help']\n"
        "from fashion_cnn.predict import main\n"
        "main()\n"
        "print([name for name in sys.modules if name.startswith('fashion_cnn.sweeps') or name.endswith('multirun')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_pillow_is_always_told_which_formats_to_open():
    """It would start an external program for an EPS, and a file may come from someone else."""
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                assert "formats" in {keyword.arg for keyword in node.keywords}, f"{module}, line {node.lineno}"
