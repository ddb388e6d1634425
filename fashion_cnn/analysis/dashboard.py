"""`python -m fashion_cnn.analysis.dashboard --logdir runs`: TensorBoard that opens with the charts of overfitting.

It accepts all options of TensorBoard. Only the root address is redirected, to settings of the Time Series tab. A link
to another tab, such as `/#hparams`, opens that tab: browsers keep the part after the `#`.
"""

import functools
import io
import json
import math
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from absl import app
from omegaconf.errors import OmegaConfBaseException
from tensorboard import assets, default, main_lib, program
from tensorboard.plugins.base_plugin import FlagsError

from fashion_cnn.analysis.settings import BANDS, FIRST_COLUMNS, Setting, repeated_settings, run_settings
from fashion_cnn.runs.files import read_config
from fashion_cnn.runs.finding import list_runs
from fashion_cnn.runs.run import BEST_EVENTS, OVERFITTING_EVENTS, SPLIT_EVENTS, Run

# Charts at the top of the page.
_PINNED = ("gap/accuracy", "loss", "accuracy")
# Colours on a light and on a dark page of the curves and marks of a single run, by subdirectory; those of the plots.
_ROLE_COLORS = {
    SPLIT_EVENTS[0]: ("#0072B2", "#3B9DD6"),
    SPLIT_EVENTS[1]: ("#D55E00", "#F07A1E"),
    BEST_EVENTS: ("#000000", "#FFFFFF"),
    OVERFITTING_EVENTS: ("#F0B400", "#F0D000"),
}
# Colours of other curves, such as the gap of a single run, and of the tab Scalars, without those of the roles.
_RUN_COLORS = (
    *("#CC79A7", "#009E73", "#56B4E9", "#7B2FBE", "#8C5A3C"),
    *("#A0A000", "#E0218A", "#00B5AD", "#7F7F7F", "#5DBB2F"),
)
# Hues of the settings of several runs on a light page. They repeat.
_SETTING_COLORS = (
    *("#7B2FBE", "#00875A", "#D81B7A", "#B58900", "#0091B3"),
    *("#8C5A3C", "#5A5A5A", "#3949AB", "#B3261E", "#5B8C1A"),
)
# Background colours of the light and the dark page, and their share in the colour of a train curve, which is fainter
# than the validation curve of its run.
_PAGES = ("#FFFFFF", "#303030")
_FAINTNESS = 0.5
# A group for each run, so that the page asks for the colour of each.
_COLOR_GROUPS = "^(.*)$"
# Runs that the tab shows at first if there are several: their marks would cover the curves.
_WITHOUT_MARKS = f"(?<!/{BEST_EVENTS}|/{OVERFITTING_EVENTS})$"
_START = {
    "pinnedCards": json.dumps([{"plugin": "scalars", "tag": tag} for tag in _PINNED]),
    "runColorGroup": f"regex:{_COLOR_GROUPS}",
    # There is only one point per epoch.
    "smoothing": "0",
}
# Settings of a browser that has stored none: whole curves in all tabs, and the pane of the settings closed.
_OUTLIERS_KEY = "_ignoreYOutliers"
_SETTINGS_KEY = "_tb_global_settings"
_SETTINGS = {"ignoreOutliers": False, "timeSeriesSettingsPaneOpened": False}
# The time in the name of a run directory, which leaves no room for the rest in the charts.
_TIME = r"\d{4}(?:-\d\d){2}_\d\d(?:-\d\d){2}-"
# The name that TensorBoard gives to a run that is the --logdir itself is a dot. The colours, numbers in the palette by
# group of `_COLOR_GROUPS`, are requested with the runs, whose curves are drawn next.
_SCRIPT = f"""const shortRunName = (name) =>
  name === "." ? "this run" : name.replace(/{_TIME}([0-9a-f]{{6}})(?=\\/|$)/g, "$1");
let runColors = {{}};
const withRunColors = (runs) => {{
  try {{
    const request = new XMLHttpRequest();
    request.open("GET", "data/run_colors", false);
    request.send();
    const colors = Object.entries(JSON.parse(request.responseText));
    runColors = Object.fromEntries(colors.map(([name, color]) => [JSON.stringify([shortRunName(name)]), color]));
  }} catch {{}}
  return runs;
}};
try {{
  const stored = JSON.parse(localStorage.getItem("{_SETTINGS_KEY}") ?? "{{}}");
  localStorage.setItem("{_SETTINGS_KEY}", JSON.stringify({{...{json.dumps(_SETTINGS)}, ...stored}}));
  localStorage.setItem("{_OUTLIERS_KEY}", localStorage.getItem("{_OUTLIERS_KEY}") ?? "false");
}} catch {{}}
"""
# Settings that HParams shows at first.
_MAX_COLUMNS = 8
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def _mix(color: str, other: str, share: float) -> str:
    """Mix two colours, such as `#7B2FBE`, with a share of the second in [0, 1]."""
    channels = (int(color[at : at + 2], 16) * (1 - share) + int(other[at : at + 2], 16) * share for at in (1, 3, 5))
    return "#" + "".join(f"{round(channel):02X}" for channel in channels)


def _setting_colors(color: str) -> list[tuple[str, str]]:
    """Colours of validation and train curves of a setting, on a light and a dark page."""
    light, dark = color, _mix(color, "#FFFFFF", 0.3)
    faint_light, faint_dark = (_mix(shade, page, _FAINTNESS) for shade, page in zip((light, dark), _PAGES, strict=True))
    return [(light, dark), (faint_light, faint_dark)]


def _palette() -> str:
    colors = [*_ROLE_COLORS.values(), *((color, color) for color in _RUN_COLORS)]
    colors += [pair for color in _SETTING_COLORS for pair in _setting_colors(color)]
    return json.dumps([{"name": light, "lightHex": light, "darkHex": dark} for light, dark in colors])


# Patterns in TensorBoard's script and their replacements. In a version without a pattern its own colours stay.
_SCRIPT_CHANGES = {
    r'(colorPalette:\{id:"default".*?colors:)\[.*?\]': lambda match: match[1] + _palette(),
    r"(/data/runs`\)\.pipe\(\w+\(\(?(\w+)\)?=>)\2(?=\.map)": lambda match: f"{match[1]}withRunColors({match[2]})",
    r"(let (\w+)=)((\w+)\.get\((\w+)\)\?\?\4\.size;\4\.set\(\5,\2\))": (
        lambda match: f"{match[1]}runColors[{match[5]}]??{match[3]}"
    ),
    r"(tensorboardColorBlindAssist:)\[.*?\]": lambda match: match[1] + json.dumps(_RUN_COLORS),
    r"(\(\w+\)=>|\w+=>)(\(\{id:\w+\(\w+,\w+\),name:)(\w+)(?=,startTime:0\}\))": (
        lambda match: f"{match[1]}{match[2]}shortRunName({match[3]})"
    ),
    # The tabs Scalars and Custom Scalars smooth no more than Time Series.
    r'("_smoothingWeight",\{defaultValue:)\.6': lambda match: f"{match[1]}0",
    # HParams shows the columns that the server marks, see `_order_columns`.
    r"Math\.min\(5,(\w+)\.length\)(?=;for)": lambda match: f"{match[1]}.filter(({{info}})=>info.differs).length",
    # Narrower columns of HParams: settings, accuracy and gap fit on a page.
    r'(flex-grow="0" width=)"10em"': lambda match: f'{match[1]}"9em"',
    r'(flex-grow="2" width=)"10em"': lambda match: f'{match[1]}"7.5em"',
}


@functools.cache
def _changed_assets(provider: Callable[[], Any]) -> bytes:
    archive = io.BytesIO()
    with provider() as file, zipfile.ZipFile(file) as source, zipfile.ZipFile(archive, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "index.js":
                content = (_SCRIPT + _change_script(content.decode())).encode()
            target.writestr(name, content)
    return archive.getvalue()


def _change_script(script: str) -> str:
    """Apply `_SCRIPT_CHANGES` to TensorBoard's script."""
    for pattern, replacement in _SCRIPT_CHANGES.items():
        script = re.sub(pattern, replacement, script)
    return script


def wrap(application: WSGIApp, logdir: Path | None = None) -> WSGIApp:
    """Wrap TensorBoard's application.

    Requests of `/` are redirected to the start page, run directories are listed before their parts, in the Time Series
    tab without those that have no curve, and HParams shows the settings that differ, `FIRST_COLUMNS` first.

    Args:
        application: that of TensorBoard.
        logdir: the directory that it shows, whose runs hold their settings; without it, each run counts as a setting.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/" and not environ.get("QUERY_STRING"):
            start_response("302 Found", [("Location", _start_page(logdir)), ("Content-Length", "0")])
            return []
        if path.endswith("/data/run_colors"):
            content = json.dumps(_run_colors(_runs_with_curves(application, environ), logdir)).encode()
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
            return [content]
        if path.startswith("/experiment/") and path.endswith("/data/runs"):
            shown = _runs_with_curves(application, environ)
            return _respond(application, environ, start_response, lambda runs: [run for run in runs if run in shown])
        if path == "/data/runs":
            return _respond(application, environ, start_response, _order_runs)
        if path.endswith("/data/plugin/hparams/experiment"):
            rows = _fill_rows(_all_rows(application, environ), logdir)["sessionGroups"]
            return _respond(application, environ, start_response, lambda columns: _order_columns(columns, rows))
        if path.endswith("/data/plugin/hparams/session_groups"):
            order = (lambda table: table) if _has_order(environ) else _order_rows
            return _respond(application, environ, start_response, lambda table: _fill_rows(order(table), logdir))
        return application(environ, start_response)

    return answer


def _start_page(logdir: Path | None) -> str:
    """Address of the settings of the Time Series tab, without the marks of several runs."""
    runs = list_runs(logdir) if logdir else []
    several = sum(any(run.path.glob("events.out.tfevents.*")) for run in runs) > 1
    return "?" + urlencode({**_START, "runFilter": _WITHOUT_MARKS} if several else _START)


@functools.lru_cache(maxsize=4096)
def _read_settings(file: Path, changed: int) -> tuple[dict[str, Setting], frozenset[tuple[str, Setting]]]:
    """Settings in the config of a run, and those that its repetitions share; `changed` is the time of the file."""
    config = read_config(file)
    return run_settings(config), frozenset(repeated_settings(config).items())


def _settings_of(run: Run) -> tuple[dict[str, Setting], frozenset[tuple[str, Setting]]] | None:
    """Settings of a run, see `_read_settings`; None if they cannot be read."""
    with suppress(OSError, ValueError, OmegaConfBaseException):
        return _read_settings(run.config_file, run.config_file.stat().st_mtime_ns)
    return None


def _run_colors(names: Iterable[str], logdir: Path | None) -> dict[str, int]:
    """Numbers in the palette of the runs of TensorBoard, by name.

    A single run has the colours of `_ROLE_COLORS`. Of several, those that differ in `REPETITIONS` alone have one hue.
    """
    roles = {role: number for number, role in enumerate(_ROLE_COLORS)}
    parts = {name: name.rpartition("/") for name in names}
    directories = {name: ((parent or ".") if role in roles else name) for name, (parent, _, role) in parts.items()}
    # A grouping that the user types, such as (train|val)$, has the colours of the roles.
    colors = dict(roles)
    if len(set(directories.values())) < 2:
        return colors | {name: roles.get(parts[name][2], len(roles)) for name in parts}
    hues: dict[Any, int] = {}
    for directory in sorted(set(directories.values()), key=lambda directory: _start_key(directory, logdir)):
        setting = _shared_settings(directory, logdir)
        hues[directory] = hues.setdefault(setting, len(set(hues.values())))
    first = len(roles) + len(_RUN_COLORS)
    for name, directory in directories.items():
        role = parts[name][2]
        hue = first + 2 * (hues[directory] % len(_SETTING_COLORS))
        is_mark = role in (BEST_EVENTS, OVERFITTING_EVENTS)
        colors[name] = roles[role] if is_mark else hue + (role == SPLIT_EVENTS[0])
    return colors


def _start_key(directory: str, logdir: Path | None) -> tuple[float, str]:
    """Key that sorts run directories by their start, so that a new run does not change the colours of the others."""
    with suppress(OSError, ValueError):
        return Run(logdir / directory).started if logdir else math.inf, directory
    return math.inf, directory


def _shared_settings(directory: str, logdir: Path | None) -> object:
    """Settings that a run shares with its repetitions; the directory itself if they cannot be read."""
    settings = _settings_of(Run(logdir / directory)) if logdir else None
    return settings[1] if settings else directory


def _read(application: WSGIApp, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
    """Status, headers without the length, and uncompressed content of a response."""
    started: list[Any] = []
    environ = {name: value for name, value in environ.items() if name != "HTTP_ACCEPT_ENCODING"}
    content = b"".join(application(environ, lambda *arguments: started.extend(arguments)))
    status, headers = started[:2]
    return status, [header for header in headers if header[0].lower() != "content-length"], content


def _runs_with_curves(application: WSGIApp, environ: dict[str, Any]) -> set[str]:
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": "/data/plugin/scalars/tags", "QUERY_STRING": ""}
    _, _, content = _read(application, {**environ, **request})
    # Bands over repeated runs are charts of the Custom Scalars tab.
    return {run for run, tags in json.loads(content).items() if any(not tag.startswith(f"{BANDS}/") for tag in tags)}


def _respond(
    application: WSGIApp, environ: dict[str, Any], start_response: Callable[..., Any], change: Callable[[Any], Any]
) -> Iterable[bytes]:
    """Answer with the changed JSON of the application, or with its error as it is."""
    status, headers, content = _read(application, environ)
    if status.startswith("200"):
        content = json.dumps(change(json.loads(content))).encode()
    start_response(status, [*headers, ("Content-Length", str(len(content)))])
    return [content]


def _order_runs(runs: list[str]) -> list[str]:
    return sorted(runs, key=lambda run: run.rpartition("/")[2] in _ROLE_COLORS)


def _order_columns(experiment: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put `FIRST_COLUMNS` first, and mark the columns to show: those that differ, or the first ones if none does.

    TensorBoard itself compares only the runs that have a value.
    """
    columns = [_complete(column, rows) for column in experiment.get("hparamInfos", [])]
    first = [column for name in FIRST_COLUMNS for column in columns if column["name"] == name]
    ordered = first + [column for column in columns if column["name"] not in FIRST_COLUMNS]
    shown = [column for column in ordered if column.get("differs")][:_MAX_COLUMNS] or first
    return {**experiment, "hparamInfos": [{**column, "differs": column in shown} for column in ordered]}


def _complete(column: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Complete the values of a column by those of `rows`, and mark it if they differ."""
    if not rows:
        return column
    values = [row["hparams"].get(column["name"]) for row in rows]
    changed = {**column, "differs": len(set(values)) > 1}
    if "domainInterval" in column:
        numbers = [value for value in values if isinstance(value, int | float)]
        changed["domainInterval"] = {"minValue": min(numbers), "maxValue": max(numbers)} if numbers else {}
    elif "domainDiscrete" in column:
        known = column["domainDiscrete"]
        changed["domainDiscrete"] = [*known, *dict.fromkeys(value for value in values if value not in (None, *known))]
    return changed


def _all_rows(application: WSGIApp, environ: dict[str, Any]) -> dict[str, Any]:
    """Request the rows of HParams of all runs."""
    statuses = [f"STATUS_{status}" for status in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
    request = {"experimentName": "", "allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 10**6}
    body = json.dumps(request).encode()
    changes = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": environ["PATH_INFO"].removesuffix("experiment") + "session_groups",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    status, _, content = _read(application, {**environ, **changes})
    table: dict[str, Any] = json.loads(content) if status.startswith("200") else {}
    return table


def _fill_rows(table: dict[str, Any], logdir: Path | None) -> dict[str, Any]:
    """Add the settings that a row lacks, which only the other runs have typed, from the config of its run."""
    rows = []
    for row in table.get("sessionGroups", []):
        directory = _run_of_row(row)
        settings = _settings_of(Run(logdir / directory)) if logdir else None
        rows.append({**row, "hparams": {**(settings[0] if settings else {}), **row["hparams"]}})
    return {**table, "sessionGroups": rows}


def _order_rows(table: dict[str, Any]) -> dict[str, Any]:
    """Sort the rows of HParams by the directories of the runs, those of a sweep without a remedy before the others.

    The names of the rows begin with a random id.
    """

    def key(row: dict[str, Any]) -> tuple[str, bool, str]:
        directory = _run_of_row(row)
        return directory.rpartition("/")[0], row["hparams"].get("remedy", "none") != "none", directory

    return {**table, "sessionGroups": sorted(table.get("sessionGroups", []), key=key)}


def _run_of_row(row: dict[str, Any]) -> str:
    """Directory of the run of a row of HParams, whose hyperparameters are among the events of its best epoch."""
    name: str = row["sessions"][0]["name"]
    return name.removesuffix(BEST_EVENTS).rstrip("/") or "."


def _has_order(environ: dict[str, Any]) -> bool:
    """Return whether the request of the rows of HParams names a column to sort by."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return any(column.get("order") for column in json.loads(body or b"{}").get("colParams", []))


def _serve(application: WSGIApp, flags: Any) -> Any:
    logdir = Path(flags.logdir).expanduser() if flags.logdir else None
    return program.create_port_scanning_werkzeug_server(wrap(application, logdir), flags)


def main() -> None:
    """Run TensorBoard."""
    main_lib.global_init()
    provider = assets.get_default_assets_zip_provider()
    tensorboard = program.TensorBoard(
        plugins=default.get_plugins(),
        assets_zip_provider=provider and (lambda: io.BytesIO(_changed_assets(provider))),
        server_class=_serve,
    )
    try:
        app.run(tensorboard.main, flags_parser=tensorboard.configure)
    except FlagsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
