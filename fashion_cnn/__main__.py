"""`python -m fashion_cnn` lists the commands."""

import sys

from omegaconf import OmegaConf

from fashion_cnn.cli.errors import exit_with
from fashion_cnn.cli.main import CONFIG_DIR, reader_may_leave


def main() -> None:
    """Print each command with what it does, in the words of its own help."""
    if typed := [argument for argument in sys.argv[1:] if not argument.startswith("-")]:
        exit_with(f"'{typed[0]}': each command is a module of its own: type python -m fashion_cnn.COMMAND.", 2)
    for file in sorted(CONFIG_DIR.glob("*.yaml")):
        what = OmegaConf.load(file).hydra.help.template.partition("\n")[0]
        print(f"python -m fashion_cnn.{file.stem:16} {what}")
    print("Each says more with --help.")


if __name__ == "__main__":
    with reader_may_leave():
        main()
