"""LW609, LW610, LW612: what engines that serve an adapter will refuse of it, or ignore."""

from collections.abc import Iterator

from lorawise.checking.adapter_file import AdapterFile
from lorawise.checking.rules.rule import Hit, rule
from lorawise.store.served import served_rank


@rule("LW609", "note", AdapterFile)
def engine_vllm(adapter: AdapterFile) -> Iterator[Hit]:
    """vLLM will refuse this adapter, or serve it at another strength.

    It refuses DoRA and modules_to_save, ignores alpha_pattern, uses the global r with rank_pattern, and takes ranks up
    to 16 unless --max-lora-rank says more.

    Cure: merge it, or write it in one rank with the scaling folded in (`lorawise adapter normalize`).

    Source: EVIDENCE 4.
    """
    fields = adapter.fields
    refused = [name for name in ("use_dora", "modules_to_save", "trainable_token_indices") if fields.get(name)]
    if refused:
        yield Hit(message=f"vLLM refuses it: {', '.join(refused)}", cure="merge it", line=adapter.lines.get(refused[0]))
    patterns = [name for name in ("alpha_pattern", "rank_pattern") if fields.get(name)]
    if patterns:
        yield Hit(
            message=f"vLLM does not read {' and '.join(patterns)}: it serves it at another strength",
            cure="fold the scaling into B, one rank for all",
            line=adapter.lines.get(patterns[0]),
            level="warning",
        )
    rank = max((layer.rank for layer in adapter.layers), default=0)
    if rank > 16:
        needed = served_rank(rank)
        cure = f"--max-lora-rank {needed}" if needed else "resize it to 512 or less"
        yield Hit(
            message=f"vLLM takes ranks up to 16 by default; this one is {rank}", cure=cure, line=adapter.lines.get("r")
        )


@rule("LW610", "warning", AdapterFile)
def engine_llama_cpp(adapter: AdapterFile) -> Iterator[Hit]:
    """llama.cpp's converter will give this adapter a wrong scale, silently.

    It reads lora_alpha and nothing else: rsLoRA and alpha_pattern are lost. Ollama builds on the same files and is
    reported to refuse ADAPTER since 0.34: a merged GGUF is safe for both.

    Cure: fold the scaling into B (alpha = r, no rsLoRA, no patterns), or merge and convert the merged model.

    Source: EVIDENCE 4.
    """
    lost = [name for name in ("use_rslora", "alpha_pattern") if adapter.fields.get(name)]
    if lost:
        yield Hit(
            message=f"llama.cpp and Ollama do not read {' and '.join(lost)}: another strength, silently",
            cure="fold the scaling into B, or convert the merged model",
            line=adapter.lines.get(lost[0]),
        )


@rule("LW612", "warning", AdapterFile)
def engine_sglang(adapter: AdapterFile) -> Iterator[Hit]:
    """SGLang will serve this adapter at another strength, or refuse it.

    It multiplies by lora_alpha / r of the whole adapter: rsLoRA is not read, nor is a scaling of its own that a pattern
    gives a module. DoRA's magnitudes have no place there.

    Cure: fold the scaling into B, one rank for all (`lorawise export --to vllm` writes that form), or merge it.

    Source: sgl-project/sglang, python/sglang/srt/lora/lora.py (`scaling = lora_alpha / r`) and lora_config.py, read in
    November 2026.
    """
    fields = adapter.fields
    unread = [name for name in ("use_rslora", "alpha_pattern", "rank_pattern") if fields.get(name)]
    if unread:
        yield Hit(
            message=f"SGLang does not read {' and '.join(unread)}: it serves it at another strength",
            cure="fold the scaling into B, one rank for all",
            line=adapter.lines.get(unread[0]),
        )
    if fields.get("use_dora"):
        yield Hit(
            message="SGLang has no place for DoRA's magnitudes", cure="merge it", line=adapter.lines.get("use_dora")
        )
