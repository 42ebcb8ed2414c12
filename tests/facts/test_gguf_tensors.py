"""Names and row orders of GGUF tensors, against transformers' reader, which undoes what llama.cpp's converter does."""

import numpy as np
import pytest
from tests.facts.shapes import config_of, write_config
from tests.tiny import tiny_model
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from lorawise.base.errors import ModelError
from lorawise.facts.gguf_tensors import ORDERS, GGUFPlaces
from lorawise.facts.read import read_model

READ_BACK = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "cohere"]


def places(family, tmp_path, **overrides):
    tiny_model(family, **overrides).save_pretrained(tmp_path)
    return GGUFPlaces.of(read_model(tmp_path))


@pytest.mark.parametrize("family", READ_BACK)
def test_every_linear_layer_has_the_name_that_transformers_reads(family, tmp_path) -> None:
    model = tiny_model(family, tie_word_embeddings=False)
    known = places(family, tmp_path, tie_word_embeddings=False)
    kind = {"mistral": "llama"}.get(family, model.config.model_type)
    theirs = {hf: name for name, hf in get_gguf_hf_weights_map(model, TensorProcessor(), kind).items()}
    linear = [matrix for matrix in known.facts.linear if matrix.layer is not None or matrix.role == "head"]
    assert len(linear) > 8
    for matrix in linear:
        place = known.place(matrix.name, matrix.out_features)
        assert (place and place.tensor) == theirs.get(f"{matrix.name}.weight")  # gemma's head is always the embedding


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rows_of_q_and_k_are_where_transformers_takes_them_back_from(family, heads, tmp_path) -> None:
    known = places(family, tmp_path, num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=8)
    processor = TENSOR_PROCESSORS["llama"]({"num_attention_heads": heads[0], "num_key_value_heads": heads[1]})
    for leaf, rows in (("q_proj", heads[0] * 8), ("k_proj", heads[1] * 8), ("v_proj", heads[1] * 8)):
        weight = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
        place = known.place(f"model.layers.1.self_attn.{leaf}", rows)
        stored = place.rows(weight)
        assert np.array_equal(processor.process(stored.copy(), place.tensor).weights, weight)
        assert np.array_equal(place.restored(stored), weight)
        assert np.array_equal(stored, weight) == (leaf == "v_proj")


def test_gpt_neox_parts_q_k_and_v(tmp_path) -> None:
    place = places("gpt_neox", tmp_path).place("gpt_neox.layers.0.attention.query_key_value", 96)
    q, k, v = place.rows(np.arange(96)).reshape(3, 4, 8)
    assert (q[1, 0], k[0, 0], v[3, 7]) == (24, 8, 95)


def test_a_family_without_a_known_order_is_refused_by_name(tmp_path) -> None:
    write_config(tmp_path, config_of("opt"))
    assert "opt" not in ORDERS
    with pytest.raises(ModelError, match=r"'opt'.*\n.*phi3.*\n.*convert_hf_to_gguf"):
        GGUFPlaces.of(read_model(tmp_path))
