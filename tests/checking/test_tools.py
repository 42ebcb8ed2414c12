"""A setting written for a tool and read back is the same setting, whatever the tool."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.base.errors import ConfigError
from lorawise.checking.conversion import convert
from lorawise.checking.reading import read_settings
from lorawise.checking.script import read_script
from lorawise.checking.script_setting import settings_of
from lorawise.checking.setting import Setting
from lorawise.checking.tools import TOOLS
from lorawise.checking.tools.writing import ATTENTION, MLP
from lorawise.checking.tree import read_yaml
from lorawise.runfile.load import load_run_file

READABLE = [name for name in TOOLS if name not in ("peft", "lorawise")]

settings = st.builds(
    Setting,
    tool=st.just("peft"),
    model=st.just("some/model"),
    r=st.integers(1, 256),
    alpha=st.floats(0.5, 512, allow_nan=False).map(lambda value: round(value, 3)),
    rslora=st.booleans(),
    targets=st.sampled_from([("q_proj", "v_proj"), (*ATTENTION, *MLP), (*ATTENTION,)]),
    learning_rate=st.floats(1e-6, 1e-2).map(lambda value: float(f"{value:.3g}")),
    rows_at_once=st.integers(1, 16),
    accumulation=st.integers(1, 16),
    steps=st.integers(1, 5000),
)


def _close(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and math.isclose(one, other, rel_tol=1e-9)


def _same(one: Setting, other: Setting) -> None:
    assert one.r == other.r
    assert _close(one.scaling, other.scaling)
    assert _close(one.learning_rate, other.learning_rate)
    assert _close(one.strength, other.strength)
    assert one.batch == other.batch
    assert one.steps == other.steps
    assert set(one.names) == set(other.names)


@pytest.mark.parametrize("name", READABLE)
@given(setting=settings)
def test_written_then_read_is_the_same_setting(name: str, setting: Setting) -> None:
    write = TOOLS[name].write
    assert write is not None
    tree = read_yaml(write(setting))
    assert next(tool for tool in READABLE if TOOLS[tool].recognises(tree)) == name
    _same(setting, TOOLS[name].read(tree, ""))


@given(setting=settings)
def test_peft_code_read_back_is_the_same_setting(setting: Setting) -> None:
    write = TOOLS["peft"].write
    assert write is not None
    head = "from peft import LoraConfig\nfrom transformers import TrainingArguments\n"
    (read,) = settings_of(read_script(head + write(setting), "x.py"))
    _same(setting, read)


def test_what_is_written_for_lorawise_is_a_run_file(tmp_path: Path) -> None:
    source = tmp_path / "axolotl.yml"
    source.write_text(
        "base_model: a/b\nadapter: lora\nlora_r: 64\nlora_alpha: 128\npeft_use_rslora: true\nlora_target_linear: true\n"
        "learning_rate: 2e-5\nmicro_batch_size: 2\ngradient_accumulation_steps: 8\nnum_epochs: 3\n",
        encoding="utf-8",
    )
    setting, text = convert(source, "lorawise")
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("lora:", "data: {train: rows.jsonl}\nlora:", 1), encoding="utf-8")
    run, _ = load_run_file(path)
    assert run.lora_config().r == setting.r
    assert run.lora_config().scaling == setting.scaling == 16
    assert run.train.batch_size == 16


def test_mlx_takes_the_scaling_itself(tmp_path: Path) -> None:
    source = tmp_path / "train.py"
    source.write_text("from peft import LoraConfig\nc = LoraConfig(r=8, lora_alpha=16)\n", encoding="utf-8")
    _, text = convert(source, "mlx-lm")
    assert "scale: 2 " in text
    assert "rank: 8" in text


def test_ms_swift_is_told_how_to_quantize_or_it_would_not(tmp_path: Path) -> None:
    text = "base_model: m\nadapter: qlora\nload_in_4bit: true\nlora_r: 8\nlora_alpha: 16\n"
    (tmp_path / "axolotl.yaml").write_text(text, encoding="utf-8")
    assert "quant_method: bnb\nquant_bits: 4\n" in convert(tmp_path / "axolotl.yaml", "ms-swift")[1]


def test_a_schedule_of_mlx_goes_by_the_name_other_tools_have_for_it(tmp_path: Path) -> None:
    text = "model: m\nlora_parameters: {rank: 8, scale: 2.0}\nlr_schedule: {name: cosine_decay, warmup: 10}\n"
    (tmp_path / "mlx.yaml").write_text(text, encoding="utf-8")
    assert "lr_scheduler_type: cosine\n" in convert(tmp_path / "mlx.yaml", "llama-factory")[1]


def test_layers_that_another_tool_left_alone_are_told(tmp_path: Path) -> None:
    (tmp_path / "mlx.yaml").write_text("model: m\nlora_parameters: {rank: 8, scale: 2.0}\n", encoding="utf-8")
    assert "adapted the last 16" in convert(tmp_path / "mlx.yaml", "axolotl")[1]
    assert "all layers" not in convert(tmp_path / "mlx.yaml", "mlx-lm")[1]


def test_a_path_that_holds_nothing_to_convert_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        convert(tmp_path / "gone.yaml", "axolotl")
    with pytest.raises(ConfigError, match="folder without an adapter"):
        convert(tmp_path, "axolotl")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("from peft import LoraConfig\nLoraConfig(r=RANK)\n", "not known"),
        ("from peft import LoraConfig\nLoraConfig(r=8)\nLoraConfig(r=16)\n", "2 settings"),
        ("from peft import PeftModel\n", "0 settings"),
    ],
)
def test_what_cannot_be_converted_is_refused(text: str, says: str, tmp_path: Path) -> None:
    source = tmp_path / "train.py"
    source.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        convert(source, "axolotl")
    with pytest.raises(ConfigError, match="axolotl"):
        convert(source, "axolotle")


def test_an_adapter_folder_can_be_converted(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}', encoding="utf-8"
    )
    (setting,) = read_settings(tmp_path)
    assert (setting.r, setting.scaling, setting.names) == (4, 2, ("q_proj",))
