"""Modelfiles: which real chat templates are known by what they print, and what is written for them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from tests.data.real_templates import TEMPLATES, TEXT
from tests.exporting.tiny_cases import MIXED, adapted, apart, model_of, ours
from tests.models.gguf_files import write_gguf

from lorawise.base.files import digest_text
from lorawise.cli.app import run
from lorawise.data.template import ChatTemplate, known_templates
from lorawise.exporting.chat_forms import BOS, EOS, FORMS, known_form
from lorawise.exporting.export import export
from lorawise.exporting.exporters import Exported, Options
from lorawise.models.files import resolve_model
from lorawise.models.open import open_model
from lorawise.store import Provenance, load_adapter, save_adapter
from lorawise.store.algebra.result import Source

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Ada.<|im_end|>\n{% endif %}" + CHATML
KNOWN = {
    "gemma": "gemma", "gemma3": "gemma", "lfm2": "chatml", "lfm2_v2": "chatml", "llama3": "llama3",
    "phi3": "phi3", "phi3_5": "phi3", "qwen2_5": "chatml", "qwen2_5_vl": "chatml",
    "qwen3_instruct_2507": "chatml", "qwen3_vl": "chatml",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", TEXT)
def test_a_real_template_is_known_by_what_it_prints_or_not_at_all(name: str) -> None:
    source = (TEMPLATES / f"{name}.jinja").read_text()
    known = known_form(source)
    assert (known and known.form.name) == KNOWN.get(name)
    if known is None:
        return
    talk = [{"role": "user", "content": "Wer bist du?"}, {"role": "assistant", "content": "Ich."}]
    asked = [*talk, {"role": "user", "content": "Aha."}]
    text = ChatTemplate(source).render(
        asked, add_generation_prompt=True, variables={"bos_token": BOS, "eos_token": EOS}
    )
    lead = [{"role": "system", "content": known.system}] if known.system else []
    assert text.removeprefix(BOS) == known.form.render([*lead, *asked])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_that_is_changed_in_one_place_is_not_taken(form: Any) -> None:
    """The form's own text as a Jinja template is known; with one sign more in a turn it is not."""
    roles = {"assistant": form.names.get("assistant", "assistant")}
    opening = form.opening.replace("{role}", "{{ names[m.role] if m.role in names else m.role }}")
    turn = "{%% for m in messages %%}%s{{ m.content }}%s{%% endfor %%}%s"
    opened = form.opening.format(role=roles["assistant"])
    answer = f"{{{{ {opened!r} }}}}"  # as an expression: at its end Jinja would drop a line's break
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    lead = f"{{% set names = {roles} %}}" + ("" if form.system_turn else refuse)
    closing = form.closing.replace(EOS, "{{ eos_token }}")
    own = lead + turn % (opening, closing + "{{ '' }}", answer)
    assert known_form(own).form is form
    assert known_form(lead + turn % (opening, f"!{closing}", answer)) is None


def exported(tmp_path: Path, template: str, **provenance: Any) -> tuple[Exported, str]:
    model = model_of("llama")
    write_gguf(tmp_path / "base.gguf", model, gguf.GGMLQuantizationType.F16, template=template)
    adapted(model, tmp_path / "own", MIXED)
    if provenance:
        weights = load_adapter(tmp_path / "own")
        save_adapter(tmp_path / "told", weights, base="tiny", provenance=Provenance(**provenance))
    source = Source.open(tmp_path / ("told" if provenance else "own"))
    done = export(source, "ollama", tmp_path / "out", Options(model=str(tmp_path / "base.gguf")))
    assert done.findings[0].code == "other-base"  # it was trained over `tiny`
    return replace(done, findings=done.findings[1:]), (tmp_path / "out" / "Modelfile").read_text()


def test_the_modelfile_holds_template_system_and_stop(tmp_path: Path) -> None:
    done, text = exported(tmp_path, WITH_SYSTEM)
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{- range $i, $_ := .Messages }}')
    assert text.endswith('\nSYSTEM """You are Ada."""\nPARAMETER stop "<|im_end|>"\n')
    assert done.files == ("Modelfile", "model.gguf", "merge.json")
    assert done.flags == (f"ollama create NAME -f {tmp_path / 'out' / 'Modelfile'}",)
    assert [finding.code for finding in done.findings] == []
    wanted = ours(open_model(resolve_model(tmp_path / "base.gguf"), dtype="float32"), tmp_path / "own")
    merged = open_model(resolve_model(tmp_path / "out" / "model.gguf"), dtype="float32")
    assert apart(ours(merged), wanted) < 2e-2


def test_a_template_of_no_known_form_is_left_out_and_told_of(tmp_path: Path) -> None:
    done, text = exported(tmp_path, (TEMPLATES / "qwen3.jinja").read_text())
    assert text == "FROM ./model.gguf\n"
    (told,) = done.findings
    assert (told.code, told.level) == ("template-left-out", "note")


def test_another_template_than_the_runs_is_told_of(tmp_path: Path) -> None:
    done, _ = exported(tmp_path, CHATML, template_digest=digest_text("default", WITH_SYSTEM))
    assert [finding.code for finding in done.findings] == ["other-template"]


@pytest.mark.parametrize("named", ["base", "chatml", "file"])
def test_the_template_of_the_run_is_the_one_that_is_asked_with(named: str, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(WITH_SYSTEM.replace("Ada", "Bob"))
    source = {"base": WITH_SYSTEM, "chatml": known_templates["chatml"], "file": own.read_text()}[named]
    settings = {"data": {"template": {"base": None, "chatml": "chatml", "file": str(own)}[named]}}
    done, text = exported(
        tmp_path, WITH_SYSTEM, template_digest=digest_text("default", source), run={"settings": settings}
    )
    assert not done.findings
    system = {"base": "Ada", "chatml": None, "file": "Bob"}[named]
    assert (f'SYSTEM """You are {system}."""' in text) == (system is not None)
    assert ("SYSTEM" in text) == (system is not None)


def test_the_command_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, CHATML)
    command = ["export", str(tmp_path / "own"), "--to", "ollama", "--model", str(tmp_path / "base.gguf")]
    assert run([*command, "--dtype", "float32", "-o", str(tmp_path / "again"), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verify"]["same"]
    assert run([*command, "-o", str(tmp_path / "out")]) == 2
    assert "exists" in capsys.readouterr().err
