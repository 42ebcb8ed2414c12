from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.data.real_templates import write_folder
from tests.models.saved_models import save_tiny

import lorawise
from lorawise.base.errors import AdapterError, DataError, ModelError
from lorawise.data.encode import prompt_and_answer
from lorawise.data.rows import Row, Where
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.lora import LoraConfig, adapters_of, eject, inject
from lorawise.models.load import Loaded
from lorawise.models.open import open_model, resolve_model
from lorawise.store import save_adapter
from lorawise.store.provenance import Provenance

IDS = torch.arange(3, 20)[None]


def trained(base: Path, folder: Path, seed: int, *, digest: str = "", labels: list[str] | None = None) -> torch.Tensor:
    """An adapter with random A and B saved to `folder`; the logits that the model had with it."""
    model = open_model(resolve_model(base), labels=labels)
    config = LoraConfig(r=4, target_modules="attention", modules_to_save=("score",) if labels else ())
    adapters = inject(model, config)
    with torch.no_grad():
        for _, parameter in adapters.trainable():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
        logits = model(IDS).logits
    provenance = Provenance(base_digest=digest, run={"labels": labels} if labels else {})
    save_adapter(folder, adapters.weights("default"), base=str(base), provenance=provenance)
    return logits


def logits_of(loaded: Loaded) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(IDS).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load") / "base"
    save_tiny(folder)
    return folder


def test_loaded_adapters_answer_as_when_they_were_saved_and_switch(base: Path, tmp_path: Path) -> None:
    first, second = trained(base, tmp_path / "a", 1), trained(base, tmp_path / "b", 2)
    loaded = lorawise.load(base, adapters={"a": tmp_path / "a", "b": str(tmp_path / "b")}, device="cpu")
    assert loaded.adapters.names == ("a", "b")
    assert loaded.findings == ()
    torch.testing.assert_close(logits_of(loaded), first)
    torch.testing.assert_close(logits_of(loaded.use("b")), second)
    torch.testing.assert_close(logits_of(loaded.scale("b", 0.0)), logits_of(loaded.use(None)))
    torch.testing.assert_close(logits_of(loaded.scale("b", 1.0).stack({"a": 0.0, "b": 1.0})), second)


def test_a_loaded_model_answers_text_and_conversations(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", 1)
    loaded = lorawise.load(base, adapters={"a": tmp_path / "a"}, device="cpu")
    answer = loaded.generate("the cat", max_new_tokens=6)
    assert answer == loaded.generate([{"role": "user", "content": "the cat"}], max_new_tokens=6)
    assert answer != loaded.use(None).generate("the cat", max_new_tokens=6)
    assert loaded.tokenizer.decode(loaded.prompt("the cat")) == "<s>user the cat<|im_end|><s>assistant "


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", ["llama3", "qwen2_5"])  # one prints BOS itself, one leaves it to the tokenizer
def test_a_question_is_read_as_the_ids_that_training_saw(adds_bos: bool, template: str, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.open(write_folder(tmp_path, template, adds_bos=adds_bos))
    turns = ({"role": "user", "content": "Lima?"}, {"role": "assistant", "content": "Peru."})
    row = Row(kind="messages", where=Where(path="a", line=1), messages=turns, trained_turns=(1,))
    trained_on, _ = prompt_and_answer(row, tokenizer)
    assert Loaded.prompt(SimpleNamespace(tokenizer=tokenizer), turns[:1]) == trained_on.tolist()
    assert Loaded.prompt(SimpleNamespace(tokenizer=tokenizer), "Lima?") == trained_on.tolist()


def test_a_base_alone_loads_and_takes_adapters_later(base: Path, tmp_path: Path) -> None:
    from lorawise.store import load_adapter

    logits = trained(base, tmp_path / "a", 1)
    loaded = lorawise.load(str(base), device="cpu")
    assert loaded.adapters.names == ()
    loaded.adapters.add("a", load_adapter(tmp_path / "a"))
    torch.testing.assert_close(logits_of(loaded.use("a")), logits)
    assert adapters_of(loaded.model).names == ("a",)
    eject(loaded.model)


def test_a_classifier_loads_with_its_head_and_labels(base: Path, tmp_path: Path) -> None:
    logits = trained(base, tmp_path / "a", 1, labels=["bad", "good"])
    loaded = lorawise.load(base, adapters={"a": tmp_path / "a"}, device="cpu")
    assert loaded.model.config.id2label == {0: "bad", 1: "good"}
    torch.testing.assert_close(logits_of(loaded), logits)
    with pytest.raises(ModelError, match="classifies"):
        loaded.generate("the cat")


def test_adapters_of_two_tasks_do_not_share_a_model(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", 1)
    trained(base, tmp_path / "b", 1, labels=["bad", "good"])
    with pytest.raises(AdapterError, match="different tasks: a CAUSAL_LM, b SEQ_CLS"):
        lorawise.load(base, adapters={"a": tmp_path / "a", "b": tmp_path / "b"})


def test_an_adapter_of_another_base_is_told(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "same", 1, digest=resolve_model(base).digest)
    trained(base, tmp_path / "other", 1, digest="0" * 64)
    loaded = lorawise.load(base, adapters={"same": tmp_path / "same", "other": tmp_path / "other"}, device="cpu")
    assert [(finding.code, finding.path) for finding in loaded.findings] == [("other-base", "other")]


def test_an_adapter_that_does_not_fit_is_refused_with_the_list(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", 1)
    save_tiny(tmp_path / "narrow", hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    with pytest.raises(AdapterError, match="does not fit"):
        lorawise.load(tmp_path / "narrow", adapters={"a": tmp_path / "a"})


@pytest.mark.parametrize("device", ["gpu", "cuda:7", ""])
def test_a_device_that_is_not_there_is_told(device: str, base: Path) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ModelError, match="device"):
        lorawise.load(base, device=device)


def test_a_prompt_or_length_that_cannot_be_meant_is_refused(base: Path) -> None:
    loaded = lorawise.load(base, device="cpu")
    with pytest.raises(DataError, match="cannot be written as UTF-8"):
        loaded.generate("half a \ud800")
    for length in (0, -3):
        with pytest.raises(ModelError, match=f"max_new_tokens={length}"):
            loaded.generate("the cat", max_new_tokens=length)
