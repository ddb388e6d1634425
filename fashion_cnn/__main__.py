"""List the commands: `python -m fashion_cnn`."""

import sys
import textwrap

from omegaconf import OmegaConf

from fashion_cnn.cli.errors import exit_with
from fashion_cnn.cli.main import CONFIG_DIR, closed_output_ends_quietly
from fashion_cnn.terminal import table_console


def main() -> None:
    """Print each command with the first line of its help text."""
    if arguments := [argument for argument in sys.argv[1:] if not argument.startswith("-")]:
        exit_with(f"unknown argument '{arguments[0]}': to run a command, type python -m fashion_cnn.COMMAND.", 2)
    print("python -m fashion_cnn.COMMAND, with one of these commands:\n")
    for file in sorted(CONFIG_DIR.glob("*.yaml")):
        summary = OmegaConf.load(file).hydra.help.template.partition("\n")[0]
        width = min(table_console().width, 120)
        print(textwrap.fill(summary, width, initial_indent=f"  {file.stem:16} ", subsequent_indent=" " * 19))
    print("\nEach command explains its options with --help.")


if __name__ == "__main__":
    with closed_output_ends_quietly():
        main()
