# Sourced by the other scripts. Creates .venv, installs the tested versions and downloads the data; skips completed steps.
# Sets $python, and changes to the repository root. Environment variables:
#
#   PYTHON=python3.12        interpreter with which to create .venv
#   TORCH_INDEX_URL=URL      package index of torch and torchvision, such as
#                            https://download.pytorch.org/whl/cpu (1.5 GB installed instead of 6 GB)
#   USE_UV=1                 install with uv, if it is on the PATH, in place of pip

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv
python=$venv/bin/python

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed; found: $("${PYTHON:-python3}" --version 2>&1 || true)." \
    "Install it, or give its path: PYTHON=/path/to/python3.11 $0"
}

# check_disk: check the free disk space, unless torch is installed already.
check_disk() {
  local needed_gb=7 free_kb
  ! "$python" -c 'import sys, importlib.util; sys.exit(not importlib.util.find_spec("torch"))' 2>/dev/null || return 0
  [ -z "${TORCH_INDEX_URL:-}" ] || needed_gb=3
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge $((needed_gb * 1024 * 1024)) ] ||
    fail "$((free_kb / 1024)) MB are free on this disk, the packages need about $needed_gb GB." \
      "Free some space, or install the CPU version: TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu $0"
}

# pip_install STEP ARGUMENT…: announce the step, and run pip install, with a line that shows its progress.
# Its output goes to a file. After a failure print one message, and the end of the output if the cause is unknown.
pip_install() {
  local log=$venv/install.log
  local -a installer=("$python" -m pip install --disable-pip-version-check --progress-bar off)
  [ "${USE_UV:-}" != 1 ] || ! command -v uv >/dev/null || installer=(uv pip install --no-progress --python "$python")
  echo "Installing $1 into .venv …" >&2
  shift
  PYTHONUNBUFFERED=1 "${installer[@]}" "$@" 2>&1 | tee -a "$log" | show_progress && return
  if grep -qiE 'do not match the hashes|hash mismatch' "$log"; then
    fail "A downloaded file is not the one that scripts/requirements.lock names by its hash (see $log): it was altered, or" \
      "the package index serves other files. Nothing of it was installed."
  elif grep -q 'No space left' "$log"; then
    fail "The disk is full. Free some space and run the same command again to continue."
  elif [ "$1" = --index-url ]; then
    fail "torch and torchvision cannot be installed from TORCH_INDEX_URL=$2 (see $log): the address is" \
      "unreachable or holds no version of them for this Python. Correct it, or leave it out."
  elif grep -qE 'ConnectionError|NewConnectionError|ConnectTimeout|Name or service|name resolution|ProxyError|from versions: none' "$log"; then
    fail "The package index is unreachable. Check the network and PIP_INDEX_URL, and run the same command again."
  fi
  tail -n 15 "$log" >&2
  fail "pip failed, see the end of its output above and all of it in $log."
}

# show_progress: show the present line of pip's output and the elapsed time, on a terminal in one line that changes, else
# as a further line every progress_seconds, with the size of the environment while pip unpacks the packages.
progress_seconds=30
show_progress() {
  local line='' text='Starting pip' size='' status start=$SECONDS shown=$SECONDS width format=$'\r\033[K  %d:%02d  %s' end=$'\r\033[K'
  [ -t 2 ] || format=$'  %d:%02d  %s\n' end=
  width=$(stty size <&2 2>/dev/null | cut -d' ' -f2) || width=
  [ "${width:-0}" -gt 20 ] || width=80
  while :; do
    status=0
    IFS= read -r -t 1 line || status=$?
    # After a second without a line the status is above 128, at the end of the output 1.
    [ "$status" -ne 1 ] || break
    case $status$line in
      # Without the address of the package index.
      0*Collecting* | 0*Downloading* | 0*Building* | 0*Installing*) text=${line#"${line%%[! ]*}"} text=${text/http*\//} ;;
    esac
    # Their names are longer than a line.
    if [[ $text == "Installing collected packages: "* ]]; then
      text=${text//[!,]/} text="Installing $((${#text} + 1)) packages"
    fi
    # Name, version and size of a file, without its tags.
    if [[ $text =~ ^Downloading\ ([^\ -]+-[^\ -]+).*(\(.*\))$ ]]; then
      text="Downloading ${BASH_REMATCH[1]} ${BASH_REMATCH[2]}"
    fi
    if [ -z "$end" ]; then
      [ $((SECONDS - shown)) -ge "$progress_seconds" ] || continue
      shown=$SECONDS size=
      [[ $text != Installing*packages ]] || size=$(du -sm "$venv" 2>/dev/null | cut -f1) || true
    fi
    # shellcheck disable=SC2059 # one of the two formats above
    printf "$format" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) "${text:0:width-12}${size:+, .venv has $size MB so far}" >&2
  done
  printf '%s' "$end" >&2
}

# install_locked: install the core packages and the build tools, each file checked against its hash. The list is complete,
# so pip needs to look for nothing else. setuptools comes first: one package is built with it.
install_locked() {
  # A build of TORCH_INDEX_URL, such as 2.14.1+cpu, is there already, now or from an earlier installation: the hashes are
  # those of another one, which needs CUDA's packages.
  local skipped='^$' lock=$venv/requirements.lock
  [ -z "${TORCH_INDEX_URL:-}" ] && ! compgen -G "$venv/lib/python*/site-packages/torch-*+*.dist-info" >/dev/null ||
    skipped='^(torch|torchvision|triton|nvidia-.*|cuda-.*)=='
  awk '/^[^ #]/ { kept = /^setuptools==/ } kept' scripts/requirements.lock >"$lock"
  pip_install "setuptools" --require-hashes --no-deps -r "$lock"
  awk -v skipped="$skipped" '/^[^ #]/ { kept = $0 !~ skipped } kept' scripts/requirements.lock >"$lock"
  pip_install "the core packages" --require-hashes --no-deps --no-build-isolation -r "$lock"
  pip_install "fashion_cnn" --no-deps --no-build-isolation -e .
}

# list_extras: print each extra of pyproject.toml with the comment above it.
list_extras() {
  awk '/^\[/ { inside = /^\[project.optional-dependencies\]/ }
       inside && /^# / { text = substr($0, 3) }
       inside && /^[a-z]+ = / { printf "%-12s  %s\n", $1, $1 == "dev" ? "All of these, and the tools of developers." : text }' \
    pyproject.toml
}

# check_extras [EXTRA …]: fail unless pyproject.toml defines each extra.
check_extras() {
  local extra known
  known=$(list_extras | cut -d ' ' -f 1)
  for extra in "$@"; do
    grep -qxF -- "$extra" <<<"$known" || fail "There is no extra '$extra'. Choose from: $(tr '\n' ' ' <<<"$known")"
  done
}

# install [EXTRA …]: install fashion_cnn, editable, with the dependencies of these extras and those installed before.
install() {
  local extra extras= folder= hash= missing= stamp=$venv/.installed wanted
  check_extras "$@"
  wanted=$(cat pyproject.toml scripts/constraints.txt scripts/requirements.lock | sha256sum | cut -c 1-16)
  [ ! -f "$stamp" ] || { read -r hash extras && read -r folder; } <"$stamp" || true
  for extra in "$@"; do
    # The developers' extra contains every other one.
    grep -qwE "dev|$extra" <<<"$extras" || missing="$missing $extra"
  done
  if [ -x "$python" ] && [ -z "$missing" ] && [ "$hash" = "$wanted" ] && [ "$folder" = "$PWD" ]; then
    return
  fi
  local base
  base=$(find_python)
  check_disk
  if ! "$python" -c '' 2>/dev/null; then
    echo "Creating the virtual environment .venv with $base …" >&2
    "$base" -m venv --clear "$venv" >&2 ||
      fail "$base cannot create a virtual environment. On Debian or Ubuntu: sudo apt-get install python3-venv"
    extras=
  fi
  extras=$(xargs <<<"$extras$missing")
  echo "Setting up .venv, which takes some minutes the first time (log: .venv/install.log)" >&2
  rm -f "$stamp" "$venv/install.log"
  [ -z "${TORCH_INDEX_URL:-}" ] || pip_install "torch and torchvision from $TORCH_INDEX_URL" \
    --index-url "$TORCH_INDEX_URL" -c scripts/constraints.txt torch torchvision
  install_locked
  [ -z "$extras" ] || pip_install "the packages for: $extras" -c scripts/constraints.txt -e ".[${extras// /,}]"
  printf '%s %s\n%s\n' "$wanted" "$extras" "$PWD" >"$stamp"
}

# get_data ROOT: download Fashion-MNIST, from Debian's archive if no other source is available, without root.
get_data() {
  local raw=$1/FashionMNIST/raw file missing=
  for file in {train,t10k}-{images-idx3,labels-idx1}-ubyte; do
    [ -f "$raw/$file" ] || missing=yes
  done
  [ -n "$missing" ] || return 0
  echo "Downloading Fashion-MNIST into $1 …" >&2
  get() { "$python" -m fashion_cnn.data "$@"; }
  local folder reason
  folder=$(mktemp -d)
  # shellcheck disable=SC2064 # expand the folder now
  trap "rm -rf '$folder'" EXIT
  if ! reason=$(get "$1" 2>&1); then
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "${reason#error: }"
    echo "Fashion-MNIST cannot be downloaded; trying the Debian package …" >&2
    unpack_package "$folder" >"$folder/log" 2>&1 ||
      fail "${reason#*error: } ($(grep -m 1 'Failed to fetch' "$folder/log" || tail -n 1 "$folder/log"))"
    get "$1" "$folder/unpacked" || exit 1
  fi
  rm -rf "$folder"
  trap - EXIT
}

# unpack_package FOLDER: download the package and unpack it into FOLDER/unpacked. Called in a condition, where set -e has
# no effect: && stops after a failed step.
unpack_package() (
  cd "$1" && { apt-get download dataset-fashion-mnist || download_with_own_lists; } &&
    dpkg -x dataset-fashion-mnist_*.deb unpacked
)

# The system's package lists may be missing, and updating them needs root.
download_with_own_lists() {
  mkdir -p lists/partial cache/archives/partial
  local own=(-o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD/cache")
  apt-get "${own[@]}" update && apt-get "${own[@]}" download dataset-fashion-mnist
}

# get_browser: provide Chromium for the tests of the search page: an installed one, Debian's package, or Playwright's.
# Without a browser these tests are skipped.
get_browser() {
  local log=$venv/browser.log
  browser_is_there() {
    "$python" - 2>/dev/null <<'EOF'
import os, shutil, sys
from pathlib import Path
from playwright.sync_api import sync_playwright
named = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if not named:
    with sync_playwright() as playwright:
        named = playwright.chromium.executable_path
sys.exit(not Path(named).exists())
EOF
  }
  browser_is_there && return
  echo "Installing a browser for the tests of the search page …" >&2
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get install -y --no-install-recommends chromium ||
      { apt-get update && apt-get install -y --no-install-recommends chromium; }; } >"$log" 2>&1 || true
  fi
  browser_is_there || "$python" -m playwright install chromium >>"$log" 2>&1 || true
  browser_is_there || echo "No browser could be installed: its tests are skipped (see $log)." >&2
}

# Scripts that start at the same time wait for each other.
if command -v flock >/dev/null; then
  exec 9>.setup.lock || fail "$PWD is not writable."
  flock 9
fi
