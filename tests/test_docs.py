"""README and docs: links resolve, commands compose, options and their defaults are those of conf/, the site builds."""

import ast
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from test_architecture import LAYERS

from fashion_cnn import __main__ as list_commands
from fashion_cnn import train
from fashion_cnn.runs.files import dotted_items
from fashion_cnn.training.callbacks import HEADER

README = REPOSITORY / "README.md"
CONF = REPOSITORY / "conf"
DOCUMENTS = {path.name: path for path in [README, *sorted((REPOSITORY / "docs").glob("*.md"))]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(path):
    """The text of a document without its code blocks."""
    return FENCE.sub("", path.read_text())


def code_blocks(path, *languages):
    return [body for language, body in FENCE.findall(path.read_text()) if language in languages]


def anchors(path):
    """The anchors of a document's headings, as GitHub and MkDocs make them."""
    headings = [re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(prose(path))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def written_commands():
    """Each `python -m fashion_cnn...` of the documents, as a module and its arguments."""
    texts = []
    for path in DOCUMENTS.values():
        texts += SPAN.findall(prose(path))
        texts += [line for block in code_blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()]
    commands = {}
    for text in texts:
        # The installed program has the same commands.
        text = re.sub(r"^fashion-cnn (\w+)", r"python -m fashion_cnn.\1", text)
        # TensorBoard has options of its own, and `new` takes a directory.
        if match := re.search(r"-m (fashion_cnn(?!\.analysis\.dashboard|\.new)\S*)(.*)", text):
            commands[match[1], *shlex.split(match[2], comments=True)] = None
    return list(commands)


COMMANDS = written_commands()
# The examples of extending.md need files of their own.
EXTENDING_COMMANDS = [words for words in COMMANDS if "--config-dir" in words]


def test_readme_has_at_most_150_lines():
    assert len(README.read_text().splitlines()) <= 150


def test_the_output_in_the_readme_has_the_columns_of_the_program():
    assert f"{HEADER}\n" in README.read_text()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_and_picture_exists(name):
    path = DOCUMENTS[name]
    targets = [target for pair in LINK.findall(prose(path)) for target in pair if target]
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_every_picture_is_shown_somewhere():
    linked = {Path(target).name for path in DOCUMENTS.values() for pair in LINK.findall(prose(path)) for target in pair}
    assert {path.name for path in (REPOSITORY / "docs" / "images").iterdir()} <= linked


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_of_the_repository_exists(name):
    for span in SPAN.findall(prose(DOCUMENTS[name])):
        if re.fullmatch(r"(conf|docs|fashion_cnn|scripts|tests)/[\w./-]*", span.partition(" ")[0]):
            assert (REPOSITORY / span.partition(" ")[0]).exists(), span


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_name_of_the_package_exists(name):
    for span in SPAN.findall(prose(DOCUMENTS[name])):
        if re.fullmatch(r"fashion_cnn(\.\w+)+", span):
            pkgutil.resolve_name(span)
    for directive in re.findall(r"^::: (\S+)$", DOCUMENTS[name].read_text(), re.MULTILINE):
        pkgutil.resolve_name(directive)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_import_of_a_python_example_resolves(name):
    for block in code_blocks(DOCUMENTS[name], "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    pkgutil.resolve_name(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


def first_choice(argument):
    """An argument of a sweep with the first of its values, as the sweep's first job has it."""
    if "=" not in argument:
        return argument
    (override,) = OverridesParser.create().parse_overrides([argument])
    if not override.is_sweep_override():
        return argument
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def main_of(module):
    is_package = (REPOSITORY / module.replace(".", "/")).is_dir()
    return importlib.import_module(f"{module}.__main__" if is_package else module).main


def test_the_documents_contain_every_command():
    names = {path.stem for path in CONF.glob("*.yaml")}
    assert {module.removeprefix("fashion_cnn.") for module, *_ in COMMANDS} >= names


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words not in EXTENDING_COMMANDS], ids=lambda words: " ".join(words)[:80]
)
def test_every_command_composes(words, command):
    module, *arguments = words
    if module == "fashion_cnn.train":
        arguments = [first_choice(argument) for argument in arguments if argument != "-m"]
    # --cfg reads no data: placeholders such as photos/ need not exist.
    if module != "fashion_cnn" and not {"--help", "--cfg"} & set(arguments):
        arguments = ["--cfg", "job", *arguments]
    status, out, err = command(main_of(module), *arguments)
    assert (status, err) == (0, "")
    assert out


def test_the_list_of_commands_is_that_of_the_guide(command):
    _, out, _ = command(list_commands.main)
    text = DOCUMENTS["getting-started.md"].read_text()
    documented = re.findall(r"^\| `python -m fashion_cnn\.(\w+)` \|", text, re.MULTILINE)
    assert sorted(documented) == sorted(re.findall(r"^  (\w+) ", out, re.MULTILINE))


def test_the_table_of_layers_is_that_of_the_architecture_test():
    documented = [set() for _ in LAYERS]
    for row in code_rows(DOCUMENTS["architecture.md"]):
        for span in row[1:]:
            name = span.removeprefix("fashion_cnn/").removesuffix(".py").strip("/").replace("/", ".")
            if int(row[0]) <= len(LAYERS):
                documented[int(row[0]) - 1].add(name)
    assert documented == [set(layer) for layer in LAYERS]


def code_rows(path):
    """The rows of a document's tables that begin with a number: the number and the code of the second cell."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", path.read_text(), re.MULTILINE)
    return [(number, *SPAN.findall(cell)) for number, cell in rows]


def option_text(value):
    """A default as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(option_text, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_config(file):
    """The values of a config file itself, with those of the files `_...` that it is built from."""
    config = yaml.safe_load(file.read_text()) or {}
    config.pop("hydra", None)
    for base in config.pop("defaults", []):
        if isinstance(base, str) and base.startswith("_") and base != "_self_":
            config = read_config(file.with_name(f"{base}.yaml")) | config
    return config


def options_of(file):
    """The options of a config file with their defaults; of a part that `_target_` builds, its class."""
    group = ".".join(file.relative_to(CONF).parts[:-1])
    options = {}
    for key, value in dotted_items(read_config(file), f"{group}." if group else ""):
        part, _, name = key.rpartition(".")
        if name == "_target_" and part != group:
            options[part] = value.rpartition(".")[2]
        elif name not in ("_target_", "_partial_") and not (isinstance(value, dict) and value):
            options[key] = option_text(value)
    return options


def documented_options():
    """The sections of configuration.md that describe a config file: heading, text and table."""
    sections = re.split(r"^##+ ", DOCUMENTS["configuration.md"].read_text(), flags=re.MULTILINE)
    options = {}
    for section in sections:
        heading, _, body = section.partition("\n")
        if match := re.fullmatch(r"`([\w/]+)(?:=(\w+))?`", heading):
            rows = re.findall(r"^\| `([^`]+)` \| `([^`]*)` \| \S", body, re.MULTILINE)
            options["/".join(filter(None, match.groups()))] = (body, dict(rows))
    return options


OPTION_FILES = {
    str(path.relative_to(CONF).with_suffix("")): path
    for path in sorted(CONF.rglob("*.yaml"))
    if path.relative_to(CONF).parts[0] not in ("experiment", "hydra", "remedy", "sweep")
    and not path.stem.startswith("_")
}


def test_configuration_describes_every_config_file_and_no_other():
    assert set(documented_options()) == set(OPTION_FILES)


@pytest.mark.parametrize("name", OPTION_FILES)
def test_configuration_lists_every_option_with_its_default(name):
    body, documented = documented_options()[name]
    assert documented == options_of(OPTION_FILES[name])
    if target := read_config(OPTION_FILES[name]).get("_target_"):
        assert f"`{target}`" in body


def test_configuration_lists_every_choice_of_every_group():
    spans = set(SPAN.findall(prose(DOCUMENTS["configuration.md"])))
    files = [path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml") if not path.stem.startswith("_")]
    choices = {f"{path.parent}={path.name}" for path in files if len(path.parts) > 1 and path.parts[0] != "hydra"}
    assert choices <= spans


@pytest.mark.slow
def test_the_examples_of_extending_train_together(command, tmp_path, monkeypatch):
    page = DOCUMENTS["extending.md"]
    (tmp_path / "my_project.py").write_text("\n\n".join(code_blocks(page, "python")))
    for block in code_blocks(page, "yaml"):
        file = tmp_path / block.partition("\n")[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # The other command is that of a project which fashion_cnn.new has written (tests/test_new.py).
    ((_, *arguments),) = (words for words in EXTENDING_COMMANDS if "experiment=my_parts" not in words)
    # Without the parts of the overfitting analysis that take the most time.
    faster = ["trainer.accelerator=cpu", "callbacks.dynamics=null", "callbacks.histograms=null"]
    status, out, _ = command(train.main, *arguments, *faster)
    assert status == 0
    assert out.count("learning rate: ") == 2
    assert len(list(tmp_path.glob("runs/my_network/*/results.json"))) == 1


@pytest.fixture
def finished_run(tiny, tmp_path, monkeypatch):
    """A run on tiny images below runs/ of the working directory, and pictures by the names that the documents use."""
    train.train(tiny("callbacks=default", "trainer.max_epochs=1"))
    monkeypatch.chdir(tmp_path)
    for name in ("shirt.jpg", "photos/1.png", "stripes/1.png", "stripes/2.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("L", (60, 80), 200).save(name)


@pytest.mark.slow
def test_the_examples_of_inference_run(finished_run, capsys):
    with_network = [block for block in code_blocks(DOCUMENTS["inference.md"], "python") if "find_finished_run" in block]
    assert len(with_network) == 2
    for block in with_network:
        capsys.readouterr()
        exec(compile(block, "inference.md", "exec"), {})
        assert capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_for_a_trained_network_run(finished_run, command):
    for line in (
        "runs",
        "evaluate run=latest",
        "evaluate run=latest robustness=true",
        "predict images=shirt.jpg",
        "teach run=latest name='striped shirt' images=stripes/",
        "teach run=latest",
        "predict run=latest images=photos/",
        "index run=latest",
        "search run=latest concept='striped shirt'",
    ):
        module, *arguments = shlex.split(f"fashion_cnn.{line}")
        assert (module, *arguments) in COMMANDS
        status, out, err = command(main_of(module), *arguments)
        assert status == 0, err
        assert out


@pytest.mark.slow
def test_the_parts_used_alone_run(fashion_mnist_root, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").symlink_to(fashion_mnist_root)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in code_blocks(DOCUMENTS["api.md"], "python"):
        exec(compile(block, "api.md", "exec"), names)
    assert re.fullmatch(r"gap [+-]\d+\.\d\d% \(.*% to .*%\), temperature \d\.\d\d\n", capsys.readouterr().out)
    predictions = names["val"]
    assert (predictions.logits.argmax(1) == predictions.targets).float().mean() > 0.6
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: it comes with the extra docs")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: it comes with the extra docs")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("load", "inference.hub.export_to_hub", "training.learning_rate.find_learning_rate", "metrics.gap"):
        assert f'id="fashion_cnn.{name}"' in page
