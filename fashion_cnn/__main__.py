"""List the commands: `python -m fashion_cnn`."""

import difflib
import sys
import textwrap

from omegaconf import OmegaConf

from fashion_cnn.cli.errors import exit_with
from fashion_cnn.cli.main import closed_output_ends_quietly
from fashion_cnn.runs.overrides import CONFIG_DIR
from fashion_cnn.terminal import table_console


def main() -> None:
    """Print each command with the first line of its help text."""
    files = {file.stem: file for file in sorted(CONFIG_DIR.glob("*.yaml"))}
    if arguments := [argument for argument in sys.argv[1:] if not argument.startswith("-")]:
        near = difflib.get_close_matches(arguments[0], files, n=1)
        hint = (
            f"Did you mean python -m fashion_cnn.{near[0]}?"
            if near
            else "Type python -m fashion_cnn.COMMAND; without arguments, this lists the commands."
        )
        exit_with(f"'{arguments[0]}' is no argument here: the name of a command follows a dot. {hint}", 2)
    print("python -m fashion_cnn.COMMAND, with one of these commands:\n")
    for name, file in files.items():
        summary = OmegaConf.load(file).hydra.help.template.partition("\n")[0]
        width = min(table_console().width, 120)
        print(textwrap.fill(summary, width, initial_indent=f"  {name:16} ", subsequent_indent=" " * 19))
    print("\nEach command explains its options with --help.")


if __name__ == "__main__":
    with closed_output_ends_quietly():
        main()
