"""docs/tutorial.ipynb: stored without outputs, and every cell runs."""

import ast
import json

import pytest
from conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"
# Without the parts of the training that take the most time.
FAST = ["trainer.accelerator=cpu", "trainer.limit_train_batches=4", "callbacks.dynamics=null", "data.probe_size=500"]


def test_the_notebook_is_stored_without_outputs_in_one_format():
    text = NOTEBOOK.read_text()
    notebook = json.loads(text)
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{n:02}" for n in range(1, len(notebook["cells"]) + 1)]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))
        assert all(len(line.rstrip("\n")) <= 125 for line in cell["source"])


@pytest.mark.processes
@pytest.mark.training
def test_every_cell_runs_on_the_real_images(fashion_mnist_root, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: it comes with the extra dev")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    (tmp_path / "data").symlink_to(fashion_mnist_root)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    settings = next(cell for cell in notebook.cells if "settings = [" in cell.source)
    changed = ", ".join(f'"{setting}"' for setting in FAST)
    assert '"name=tutorial"]' in settings.source
    settings.source = settings.source.replace('"name=tutorial"]', f'"name=tutorial", {changed}]')
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "55,000 training, 5,000 validation, 10,000 test images" in printed
    assert "95% interval" in printed
    assert len(list((tmp_path / "runs" / "tutorial").glob("*/results.json"))) == 1
