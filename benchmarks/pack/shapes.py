"""The shapes a pack is timed at: decoders by their widths, with random weights, and the tokens of one slot's step."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`tokens` a slot and step, in documents of `document` tokens, three quarters of them trained."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tokens: int
    document: int
    tied: bool = True

    def model(self, device: str) -> PreTrainedModel:
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=8192,
            tie_word_embeddings=self.tied,
            use_cache=False,
        )
        torch.manual_seed(0)
        with torch.device(device):
            model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        return model.eval().requires_grad_(False)


def _smollm2(name: str, layers: int, tokens: int, document: int) -> Shape:
    """SmolLM2-135M; its 30 layers are alike, so that fewer of them show the same knee in less time."""
    return Shape(
        name=name,
        hidden=576,
        inner=1536,
        layers=layers,
        heads=9,
        kv_heads=3,
        vocabulary=49152,
        tokens=tokens,
        document=document,
    )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="tiny",
            hidden=64,
            inner=176,
            layers=2,
            heads=4,
            kv_heads=2,
            vocabulary=512,
            tokens=64,
            document=16,
        ),
        _smollm2("135m-6-layers", 6, 256, 64),
        _smollm2("135m-6-layers-short", 6, 64, 32),
        _smollm2("135m", 30, 256, 64),
        Shape(
            name="1b",
            hidden=2048,
            inner=8192,
            layers=16,
            heads=32,
            kv_heads=8,
            vocabulary=128256,
            tokens=512,
            document=512,
        ),
        Shape(
            name="4b",
            hidden=2560,
            inner=9728,
            layers=36,
            heads=32,
            kv_heads=8,
            vocabulary=151936,
            tokens=512,
            document=512,
        ),
        Shape(
            name="8b",
            hidden=4096,
            inner=14336,
            layers=32,
            heads=32,
            kv_heads=8,
            vocabulary=128256,
            tokens=512,
            document=512,
            tied=False,
        ),
    )
}
CPU = ("tiny", "135m-6-layers-short", "135m-6-layers")
ACCELERATOR = ("1b", "4b", "8b")
