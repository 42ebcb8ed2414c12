"""The contract of the command line (DESIGN 3): streams, exit codes, errors, and how quickly it answers."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lorawise.base.cache import cache_folder
from lorawise.base.errors import ConfigError, DivergedError, Interrupted, LorawiseError
from lorawise.base.findings import Finding
from lorawise.cli.app import run
from lorawise.report.events import Reader
from lorawise.runfile import RunFile
from lorawise.training.peers import Peers
from lorawise.training.result import RunResult

RUN_FILE = "model: user/model\ndata: {train: user/rows}\nlora: {r: 16, alpha: 32}\n"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "first.yaml"
    path.write_text(RUN_FILE, encoding="utf-8")
    return path


class FakeTrain:
    """Stands for `lorawise.training.run.train`: remembers its call; prints, as a library might."""

    problem: BaseException | None = None

    def __init__(self) -> None:
        self.run: RunFile | None = None
        self.out = Path()
        self.modes: tuple[bool, bool] = (False, False)
        self.readers = 0

    def __call__(
        self,
        run_file: RunFile,
        *,
        out: Path,
        resume: bool,
        dry_run: bool,
        findings: Sequence[Finding],
        readers: tuple[Reader, ...],
        peers: Peers,
    ) -> RunResult:
        print("a library talks")
        assert peers.leads
        self.run, self.out, self.modes, self.readers = run_file, out, (resume, dry_run), len(readers)
        if self.problem is not None:
            raise self.problem
        return RunResult(
            run=out,
            adapter=out / "adapter",
            reason="finished",
            steps=3,
            tokens=300,
            trained_tokens=100,
            train_seconds=1.0,
            tokens_per_second=300.0,
            validation_loss=float("nan"),
            base_validation_loss=2.0,
            peak_memory=1 << 20,
            findings=tuple(findings),
        )


@pytest.fixture
def fake_train(monkeypatch: pytest.MonkeyPatch) -> FakeTrain:
    fake = FakeTrain()
    monkeypatch.setattr("lorawise.training.run.train", fake)
    return fake


def document(capsys: Capture) -> dict:
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)


def test_under_json_stdout_holds_one_document_whatever_a_library_prints(
    run_file: Path, fake_train: FakeTrain, capsys: Capture
) -> None:
    assert run(["train", str(run_file), "--json", "--set", "lora.r=32"]) == 0
    held = document(capsys)
    fixed = {"run", "adapter", "steps", "tokens", "trained_tokens", "train_seconds", "tokens_per_second"}
    assert fixed | {"validation_loss", "base_validation_loss", "peak_memory"} <= set(held)
    assert held["validation_loss"] is None
    assert [finding["code"] for finding in held["findings"]] == ["scaling-changed"]
    assert fake_train.readers == 0


def test_without_json_prose_goes_to_stderr_and_says_what_to_type_next(
    run_file: Path, fake_train: FakeTrain, capsys: Capture
) -> None:
    assert run(["train", str(run_file), "--set", "lora.r=32"]) == 0
    shown = capsys.readouterr()
    assert "next     lorawise chat user/model --adapter first=runs/first/adapter" in shown.err
    assert "runs/first" not in shown.out


def test_without_o_the_folder_is_named_after_the_run_file(run_file: Path, fake_train: FakeTrain) -> None:
    run(["train", str(run_file)])
    assert fake_train.out == Path("runs/first")
    run(["train", str(run_file), "-o", "else/where", "--resume", "--dry-run"])
    assert (fake_train.out, fake_train.modes) == (Path("else/where"), (True, True))


def test_a_model_and_data_are_a_run_without_a_file(run_file: Path, fake_train: FakeTrain) -> None:
    assert run(["train", "--model", "user/other", "--data", "rows.jsonl", "--set", "train.steps=5"]) == 0
    assert fake_train.run is not None
    assert (fake_train.run.model, fake_train.run.train.steps) == ("user/other", 5)
    assert fake_train.run.data.train[0].path == str(Path.cwd() / "rows.jsonl")
    assert fake_train.out == Path("runs/rows")


def test_a_model_from_the_call_goes_over_the_file_even_when_yaml_would_read_a_number(
    run_file: Path, fake_train: FakeTrain
) -> None:
    assert run(["train", str(run_file), "--model", "1e3"]) == 0
    assert fake_train.run is not None
    assert fake_train.run.model == "1e3"


def test_a_folder_alone_can_be_resumed(run_file: Path, fake_train: FakeTrain) -> None:
    folder = Path("runs/first")
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(RUN_FILE, encoding="utf-8")
    assert run(["train", "-o", str(folder), "--resume"]) == 0
    assert fake_train.run is not None


@pytest.mark.parametrize(
    ("problem", "code", "exit_code"),
    [
        (DivergedError("loss is NaN at step 3", expected="a finite loss", cure="lower the rate"), "diverged", 1),
        (Interrupted("stopped by SIGINT", cure="--resume"), "interrupted", 130),
        (KeyboardInterrupt(), "interrupted", 130),
        (ZeroDivisionError("by zero"), "unexpected", 1),
    ],
)
def test_a_failure_under_json_is_a_document_with_its_exit_code(
    problem: BaseException, code: str, exit_code: int, run_file: Path, fake_train: FakeTrain, capsys: Capture
) -> None:
    fake_train.problem = problem
    assert run(["train", str(run_file), "--json"]) == exit_code
    error = document(capsys)["error"]
    assert set(error) == {"code", "found", "expected", "cure"}
    assert error["code"] == code
    if isinstance(problem, LorawiseError):
        assert error["found"] == problem.found


def test_a_failure_without_json_says_found_expected_and_cure_on_stderr(
    run_file: Path, fake_train: FakeTrain, capsys: Capture
) -> None:
    fake_train.problem = DivergedError("loss is NaN", expected="a finite loss", cure="lower the rate")
    assert run(["train", str(run_file)]) == 1
    assert capsys.readouterr().err.endswith("error: loss is NaN\n  expected: a finite loss\n  cure: lower the rate\n")


def test_what_nobody_expected_is_one_line_and_a_traceback_only_when_asked(
    run_file: Path, fake_train: FakeTrain, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_train.problem = ZeroDivisionError("by zero")
    assert run(["train", str(run_file)]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in err
    assert "report it" in err
    assert "Traceback" not in err
    monkeypatch.setenv("LORAWISE_DEBUG", "1")
    run(["train", str(run_file)])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--drun"], "--dry-run"),
        (["eval", "model"], "DATA"),
        (["train", "none.yaml"], "no run file none.yaml"),
        (["train"], "no run file was given"),
        (["train", "first.yaml", "--set", "lora.rnk=3"], "unknown key lora.rnk"),
        (["eval", "m", "d", "--answers", "-1"], "--answers"),
        (["chat", "m", "--adapter", "dir", "--adapter", "other"], "NAME=DIR"),
        (["chat", "m", "--adapter", "base=dir"], "the model without adapters"),
    ],
)
def test_a_wrong_call_exits_2_and_is_told_in_either_form(
    arguments: list[str], told: str, run_file: Path, capsys: Capture
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""
    assert run([*arguments, "--json"]) == 2
    error = document(capsys)["error"]
    assert told in error["found"] + error["expected"]


def fresh(*arguments: str, code: str = "from lorawise.cli import main; main()") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from lorawise.cli.app import run\n"
        "assert run(sys.argv[1:]) == 0; spent = time.perf_counter() - start\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'datasets', 'rich', 'numpy', 'plotly'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr); print(spent, file=sys.stderr)"
    )
    spent = []
    for arguments in (["--help"], [], ["train", "--help"]):
        done = fresh(*arguments, code=code)
        assert done.returncode == 0, done.stderr
        assert "Usage: lorawise" in done.stdout
        heavy, seconds = done.stderr.splitlines()
        assert heavy == "[]"
        spent.append(float(seconds))
    assert min(spent) < 0.3


@pytest.mark.parametrize("command", [(), ("train",), ("eval",), ("chat",), ("demo",)])
def test_the_whole_process_answers_help_in_under_a_third_of_a_second(command: tuple[str, ...]) -> None:
    def spent() -> float:
        """Of processor time, which a busy machine does not stretch as it does the clock's."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def once() -> float:
        before = spent()
        assert fresh(*command, "--help").returncode == 0
        return spent() - before

    assert min(once() for _ in range(2)) < 0.3


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", "from lorawise.cli import main; main()", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_the_version_is_told(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lorawise 0.")


@pytest.mark.parametrize(
    ("redirect", "code"),
    [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 1)],
)
def test_closed_and_full_streams_give_no_traceback(redirect: str, code: int, tmp_path: Path) -> None:
    if "full" in redirect and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = f"{sys.executable} -m lorawise --version {redirect}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--json", "--dry-run"])
def test_a_terminal_that_knows_ascii_alone_gets_escapes(flag: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorawise", "train", "nöpe.yaml", flag],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    if flag == "--json":
        assert json.loads(done.stdout.decode("ascii"))["error"]["found"] == "there is no run file nöpe.yaml"
    else:
        assert rb"n\xf6pe.yaml" in done.stderr


def test_a_cache_in_nobodys_home_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAWISE_CACHE", "~nobody-of-that-name")
    with pytest.raises(ConfigError, match="LORAWISE_CACHE"):
        cache_folder()
