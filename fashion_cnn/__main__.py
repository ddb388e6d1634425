"""List the commands: `python -m fashion_cnn`; run one of them: `fashion-cnn train model=small`."""

import difflib
import os
import runpy
import sys
import textwrap
from pathlib import Path

from omegaconf import OmegaConf

from fashion_cnn import __version__
from fashion_cnn.cli.errors import exit_with
from fashion_cnn.cli.main import closed_output_ends_quietly
from fashion_cnn.errors import PROGRAM_VARIABLE, as_typed
from fashion_cnn.runs.overrides import CONFIG_DIR
from fashion_cnn.terminal import table_console

# Commands without options in conf/, by the module below fashion_cnn.
_OTHER_COMMANDS = {
    "analysis.dashboard": "Start TensorBoard, which opens with the charts of overfitting.",
    "new": "Write a package of your own: network, data set, augmentation, metric, loss, experiment and test.",
}


def main() -> None:
    """Print each command with the first line of its help text."""
    commands = _commands()
    if arguments := [argument for argument in sys.argv[1:] if not argument.startswith("-")]:
        near = difflib.get_close_matches(arguments[0], commands, n=1)
        hint = (
            f"Did you mean python -m fashion_cnn.{near[0]}?"
            if near
            else "Type python -m fashion_cnn.COMMAND; without arguments, this lists the commands."
        )
        exit_with(f"'{arguments[0]}' is no argument here: the name of a command follows a dot. {hint}", 2)
    print(as_typed("python -m fashion_cnn.COMMAND, with one of these commands:\n"))
    for name, summary in commands.items():
        shown = name.rpartition(".")[2] if PROGRAM_VARIABLE in os.environ else name
        width = min(table_console().width, 120)
        print(textwrap.fill(summary, width, initial_indent=f"  {shown:18} ", subsequent_indent=" " * 21))
    print("\nEach command explains its options with --help.")


def console() -> None:
    """Run the installed program: `fashion-cnn COMMAND` does what `python -m fashion_cnn.COMMAND` does."""
    os.environ[PROGRAM_VARIABLE] = Path(sys.argv[0]).name.removesuffix(".exe")
    with closed_output_ends_quietly():
        typed = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if typed in ("-h", "--help"):
            del sys.argv[1:]
            main()
            return
        if typed in ("-V", "--version"):
            print(__version__)
            return
        modules = {name.rpartition(".")[2]: name for name in _commands()}
        if typed not in modules:
            near = difflib.get_close_matches(typed, modules, n=1)
            hint = f" Did you mean {as_typed(f'python -m fashion_cnn.{near[0]}')}?" if near else ""
            exit_with(f"'{typed}' is no command.{hint} {as_typed('python -m fashion_cnn')} --help lists them.", 2)
        del sys.argv[1]
        if not sys.flags.safe_path:
            sys.path.insert(0, str(Path.cwd()))
        # With `alter_sys`, processes that the command starts find it as `python -m` does.
        runpy.run_module(f"fashion_cnn.{modules[typed]}", run_name="__main__", alter_sys=True)


def _commands() -> dict[str, str]:
    """The commands with the first line of their help texts."""
    files = sorted(CONFIG_DIR.glob("*.yaml"))
    return {
        **{file.stem: OmegaConf.load(file).hydra.help.template.partition("\n")[0] for file in files},
        **_OTHER_COMMANDS,
    }


if __name__ == "__main__":
    with closed_output_ends_quietly():
        main()
