import pytest
import torch
from tests.tiny import FAMILIES, tiny_model

from lorawise.base.errors import ModelError
from lorawise.lora import LoraConfig, inject
from lorawise.models.attention import use_document_attention
from lorawise.models.generate import Sampling, generate

PROMPTS = [[5, 9, 30], [7] * 12, [11, 12, 13, 14, 15, 16], [200], [40, 3, 77, 9]]
NEW = 8


def naive(model: torch.nn.Module, prompt: list[int], new: int = NEW) -> list[int]:
    """Greedy, one row, the whole prefix again for every token: no padding and no cache to be wrong about."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_with_a_cache_answers_as_each_row_alone(family: str) -> None:
    model = tiny_model(family)
    answers = generate(model, PROMPTS, stop_ids=(), max_new_tokens=NEW, batch_size=3)
    assert answers == [naive(model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_an_adapter_in_use_answers_and_the_base_alone_answers_as_before(family: str) -> None:
    model = tiny_model(family)
    base = [naive(model, prompt) for prompt in PROMPTS]
    adapters = inject(model, LoraConfig(r=4, scaling=4.0), names=["tuned"])
    with torch.no_grad():
        for entry in adapters.bank_parameters():
            entry.parameter.normal_(generator=torch.Generator().manual_seed(1))
    adapters.use("tuned")
    tuned = generate(model, PROMPTS, stop_ids=(), max_new_tokens=NEW, batch_size=2)
    assert tuned == [naive(model, prompt) for prompt in PROMPTS]
    assert tuned != base
    adapters.use(None)
    assert generate(model, PROMPTS, stop_ids=(), max_new_tokens=NEW) == base


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3"])
def test_a_model_set_up_for_packed_training_answers_the_same(family: str) -> None:
    plain = generate(tiny_model(family), PROMPTS, stop_ids=(), max_new_tokens=NEW)
    model = tiny_model(family)
    use_document_attention(model)
    model.train()
    assert generate(model, PROMPTS, stop_ids=(), max_new_tokens=NEW) == plain
    assert model.training


def test_an_answer_ends_before_the_first_stop_token() -> None:
    model = tiny_model("llama")
    whole = generate(model, PROMPTS, stop_ids=(), max_new_tokens=NEW)
    stops = {whole[0][3], whole[1][5]}
    for answer, full in zip(generate(model, PROMPTS, stop_ids=stops, max_new_tokens=NEW), whole, strict=True):
        end = next((i for i, token in enumerate(full) if token in stops), NEW)
        assert answer == full[:end]


def test_the_checkpoints_own_sampling_defaults_are_not_mixed_in() -> None:
    model = tiny_model("llama")
    plain = generate(model, PROMPTS, stop_ids=(), max_new_tokens=NEW)
    model.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=5.0, max_length=3)
    defaults = model.generation_config
    assert generate(model, PROMPTS, stop_ids=(), max_new_tokens=NEW) == plain
    assert model.generation_config is defaults


def test_sampling_follows_its_seed_and_leaves_the_global_state() -> None:
    model = tiny_model("llama")
    before = torch.get_rng_state()
    drawn = [
        generate(model, PROMPTS, stop_ids=(), max_new_tokens=NEW, sampling=Sampling(temperature=2.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ModelError, match="temperature"):
        Sampling(temperature=0.0)


def test_the_models_window_bounds_the_answer_and_refuses_what_has_no_room() -> None:
    model = tiny_model("gpt2", n_positions=16, max_position_embeddings=16)
    assert [len(a) for a in generate(model, [[5] * 12, [6]], stop_ids=(), max_new_tokens=NEW, batch_size=1)] == [4, 8]
    with pytest.raises(ModelError, match="prompt 1 has 16 tokens"):
        generate(model, [[5], [6] * 16], stop_ids=(), max_new_tokens=1)
    with pytest.raises(ModelError, match="prompt 0 is empty"):
        generate(model, [[]], stop_ids=(), max_new_tokens=1)


def test_every_batch_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    generate(
        tiny_model("llama"), PROMPTS, stop_ids=(), max_new_tokens=1, batch_size=2, done=lambda *now: told.append(now)
    )
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert generate(tiny_model("llama"), [], stop_ids=(), max_new_tokens=1) == []
