"""Time from starting a command to its answer: help, config, and the message for a mistyped override."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fashion_cnn.cli.main import CONFIG_DIR
from fashion_cnn.errors import UserError, did_you_mean

REPOSITORY = Path(__file__).parent.parent.parent
COMMANDS = sorted(file.stem for file in CONFIG_DIR.glob("*.yaml"))
# Arguments of each request, with the exit status that it ends with.
REQUESTS = {
    "--help": (["--help"], 0),
    "--cfg job": (["--cfg", "job"], 0),
    "mistyped": (["mistyped_key=1"], 2),
}
# Time within which --help should answer, in seconds.
HELP_TARGET = 1.0


def parse_commands(text: str | None) -> list[str]:
    """Split a comma-separated list of commands; None stands for all of them.

    Raises:
        UserError: if a name is not that of a command.
    """
    names = COMMANDS if text is None else list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS)
            raise UserError(f"--commands: '{name}' is not a command.{hint} Commands: {', '.join(COMMANDS)}.", status=2)
    return names


def time_requests(commands: Sequence[str], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Wall time of each request to each command, in seconds, one value per round.

    Each round makes every request to every command once, so that a busy period of the machine affects all of them. One
    further round before these fills the file cache and writes bytecode; it is not counted.

    Raises:
        UserError: if there is no round, or a command ends with another exit status than expected.
    """
    if rounds < 1:
        raise UserError(f"--rounds={rounds} is not possible: give 1 or more.", status=2)
    seconds: dict[tuple[str, str], list[float]] = {(name, request): [] for name in commands for request in REQUESTS}
    for round_number in range(rounds + 1):
        for (name, request), values in seconds.items():
            value = _time_request(name, *REQUESTS[request])
            if round_number:
                values.append(value)
    return seconds


def _time_request(name: str, arguments: Sequence[str], expected_status: int) -> float:
    command = [sys.executable, "-m", f"fashion_cnn.{name}", *arguments]
    # With this variable set, a traceback would replace the error message.
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    started = time.perf_counter()
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if ended.returncode != expected_status:
        last_line = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        command_line = " ".join(["python", *command[1:]])
        raise UserError(f"{command_line} ended with status {ended.returncode}, not {expected_status}: {last_line}")
    return seconds
