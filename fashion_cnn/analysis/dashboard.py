"""`python -m fashion_cnn.analysis.dashboard --logdir runs`: TensorBoard that opens with the charts of overfitting.

It accepts all options of TensorBoard. Only the root address is redirected, to settings of the Time Series tab. A link
to another tab, such as `/#hparams`, opens that tab: browsers keep the part after the `#`.
"""

import functools
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

from absl import app
from tensorboard import assets, default, main_lib, program
from tensorboard.plugins.base_plugin import FlagsError

from fashion_cnn.analysis.settings import FIRST_COLUMNS
from fashion_cnn.runs.run import BEST_EVENTS, OVERFITTING_EVENTS, SPLIT_EVENTS

# Charts at the top: is it overfitting, since when, and what does it cost?
_PINNED = ("gap/accuracy", "loss", "accuracy")
# Colors on a light and on a dark page of the curves and marks of all runs, by subdirectory; those of the plots.
_ROLE_COLORS = {
    SPLIT_EVENTS[0]: ("#0072B2", "#3B9DD6"),
    SPLIT_EVENTS[1]: ("#D55E00", "#F07A1E"),
    BEST_EVENTS: ("#000000", "#FFFFFF"),
    OVERFITTING_EVENTS: ("#F0B400", "#F0D000"),
}
# Colors of the other curves, such as the gap, one for each run. They repeat, without those of the roles.
_RUN_COLORS = (
    *("#CC79A7", "#009E73", "#56B4E9", "#7B2FBE", "#8C5A3C"),
    *("#A0A000", "#E0218A", "#00B5AD", "#7F7F7F", "#5DBB2F"),
)
_REPETITIONS = 50
_COLOR_GROUPS = f"^(?:.*/)?({'|'.join(_ROLE_COLORS)})$|^(.*)$"
_START_PAGE = "?" + urlencode(
    {
        "pinnedCards": json.dumps([{"plugin": "scalars", "tag": tag} for tag in _PINNED]),
        "runColorGroup": f"regex:{_COLOR_GROUPS}",
        # There is only one point per epoch.
        "smoothing": 0,
    }
)
# Settings of a browser that has stored none: whole curves in all tabs, and the pane of the settings closed.
_OUTLIERS_KEY = "_ignoreYOutliers"
_SETTINGS_KEY = "_tb_global_settings"
_SETTINGS = {"ignoreOutliers": False, "timeSeriesSettingsPaneOpened": False}
# The time in the name of a run directory, which leaves no room for the rest in the charts.
_TIME = r"\d{4}(?:-\d\d){2}_\d\d(?:-\d\d){2}-"
# The name that TensorBoard gives to a run that is the --logdir itself is a dot.
_SCRIPT = f"""const shortRunName = (name) =>
  name === "." ? "this run" : name.replace(/{_TIME}([0-9a-f]{{6}})(?=\\/|$)/g, "$1");
try {{
  const stored = JSON.parse(localStorage.getItem("{_SETTINGS_KEY}") ?? "{{}}");
  localStorage.setItem("{_SETTINGS_KEY}", JSON.stringify({{...{json.dumps(_SETTINGS)}, ...stored}}));
  localStorage.setItem("{_OUTLIERS_KEY}", localStorage.getItem("{_OUTLIERS_KEY}") ?? "false");
}} catch {{}}
"""
# Settings that HParams shows at first.
_MAX_COLUMNS = 8
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def _palette() -> str:
    colors = [*_ROLE_COLORS.values(), *((color, color) for color in _RUN_COLORS * _REPETITIONS)]
    return json.dumps([{"name": light, "lightHex": light, "darkHex": dark} for light, dark in colors])


def _color_groups() -> str:
    """The groups of `_COLOR_GROUPS` that have the first colors, whether there are such runs or not."""
    return json.dumps(
        [[json.dumps([role, None], separators=(",", ":")), number] for number, role in enumerate(_ROLE_COLORS)]
    )


# Patterns in TensorBoard's script and their replacements. In a version without a pattern its own colors stay.
_SCRIPT_CHANGES = {
    r'(colorPalette:\{id:"default".*?colors:)\[.*?\]': lambda match: match[1] + _palette(),
    r"groupKeyToColorId:new Map\b": lambda match: f"{match[0]}({_color_groups()})",
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


def wrap(application: WSGIApp) -> WSGIApp:
    """Wrap TensorBoard's application.

    Requests of `/` are redirected to the start page, run directories are listed before their parts, in the Time Series
    tab without those that have no curve, and HParams shows the settings that differ, `FIRST_COLUMNS` first.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/" and not environ.get("QUERY_STRING"):
            start_response("302 Found", [("Location", _START_PAGE), ("Content-Length", "0")])
            return []
        if path.startswith("/experiment/") and path.endswith("/data/runs"):
            shown = _runs_with_curves(application, environ)
            return _respond(application, environ, start_response, lambda runs: [run for run in runs if run in shown])
        if path == "/data/runs":
            return _respond(application, environ, start_response, _order_runs)
        if path.endswith("/data/plugin/hparams/experiment"):
            return _respond(application, environ, start_response, _order_columns)
        if path.endswith("/data/plugin/hparams/session_groups") and not _has_order(environ):
            return _respond(application, environ, start_response, _order_rows)
        return application(environ, start_response)

    return answer


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
    return {run for run, tags in json.loads(content).items() if tags}


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


def _order_columns(experiment: dict[str, Any]) -> dict[str, Any]:
    """Put `FIRST_COLUMNS` first, and mark the columns to show: those that differ, or the first ones if none does."""
    columns = experiment.get("hparamInfos", [])
    first = [column for name in FIRST_COLUMNS for column in columns if column["name"] == name]
    ordered = first + [column for column in columns if column["name"] not in FIRST_COLUMNS]
    shown = [column for column in ordered if column.get("differs")][:_MAX_COLUMNS] or first
    return {**experiment, "hparamInfos": [{**column, "differs": column in shown} for column in ordered]}


def _order_rows(table: dict[str, Any]) -> dict[str, Any]:
    """Sort the rows of HParams by the directories of the runs; their names begin with a random id."""
    rows = table.get("sessionGroups", [])
    return {**table, "sessionGroups": sorted(rows, key=lambda row: row["sessions"][0]["name"])}


def _has_order(environ: dict[str, Any]) -> bool:
    """Return whether the request of the rows of HParams names a column to sort by."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return any(column.get("order") for column in json.loads(body or b"{}").get("colParams", []))


def _serve(application: WSGIApp, flags: Any) -> Any:
    return program.create_port_scanning_werkzeug_server(wrap(application), flags)


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
