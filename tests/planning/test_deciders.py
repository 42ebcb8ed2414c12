"""Each decision by what it must say: the guide's rules by content, the user's own values, what follows from them."""

from pathlib import Path

import pytest
from tests.planning.situations import LLAMA_8B, SMOL_135M, rows, situation

from lorawise.planning.decision import Decision
from lorawise.planning.evidence import SOURCES
from lorawise.planning.settled import decide_all as decide
from lorawise.planning.training_deciders import total_steps


def test_every_decision_has_a_reason_a_range_or_none_and_known_sources(tmp_path: Path) -> None:
    for data in (None, rows(1_000)):
        for decision in decide(situation(tmp_path, data=data)).values():
            assert len(decision.reason) > 10
            assert decision.within, decision
            assert decision.sources
            assert set(decision.sources) <= set(SOURCES)


def test_the_communitys_default_is_what_chat_gets_on_all_linear_layers(tmp_path: Path) -> None:
    """r 8, alpha 16; and r 8 on seven modules before r 32 on two."""
    done = decide(situation(tmp_path))
    assert (done.whole("lora.r"), done.real("lora.scaling")) == (8, 2.0)
    assert done.text("lora.target_modules") == "all-linear"
    assert done.real("train.learning_rate") == 2e-4


@pytest.mark.parametrize(
    ("task", "r", "alpha"), [("style", 8, 8), ("domain", 16, 32), ("multitask", 32, 32), ("classification", 4, 8)]
)
def test_each_task_gets_its_row_of_the_cheat_sheet(tmp_path: Path, task: str, r: int, alpha: float) -> None:
    done = decide(situation(tmp_path, task=task))
    assert (done.whole("lora.r"), done.real("lora.scaling") * done.whole("lora.r")) == (r, alpha)


def test_a_new_language_asks_for_128_or_more(tmp_path: Path) -> None:
    assert decide(situation(tmp_path, task="new-language")).whole("lora.r") == 128


def test_the_rank_goes_up_when_the_trained_tokens_ask_for_more_than_it_holds(tmp_path: Path) -> None:
    """About 1 bit a token against 2 bits a parameter; never beyond the task's range."""
    few = decide(situation(tmp_path, data=rows(1_000), config=SMOL_135M))
    many = decide(situation(tmp_path, data=rows(100_000), config=SMOL_135M))
    too_many = decide(situation(tmp_path, data=rows(10_000_000), config=SMOL_135M))
    copies = decide(situation(tmp_path, data=rows(100_000, duplicates=99_000), config=SMOL_135M))
    assert few.whole("lora.r") == copies.whole("lora.r") == 8
    assert many.whole("lora.r") == 16
    assert too_many.whole("lora.r") == 32


def test_the_users_rank_keeps_the_scaling_and_the_rate_follows(tmp_path: Path) -> None:
    done = decide(situation(tmp_path, "lora.r=32"))
    assert (done.whole("lora.r"), done.real("lora.scaling")) == (32, 2.0)
    assert done["lora.r"].asked
    assert done["lora.r"].advised == 8
    assert done.real("train.learning_rate") == 1e-4


def test_the_users_alpha_sets_the_scaling_over_the_advised_rank(tmp_path: Path) -> None:
    done = decide(situation(tmp_path, "lora.alpha=64"))
    assert (done.whole("lora.r"), done.real("lora.scaling")) == (8, 8.0)
    assert done["lora.scaling"].asked
    rooted = decide(situation(tmp_path, "lora.alpha=64", "lora.rslora=true", "lora.r=16"))
    assert rooted.real("lora.scaling") == 16.0


def test_a_value_asked_for_stands_and_the_advice_is_kept_beside_it(tmp_path: Path) -> None:
    done = decide(situation(tmp_path, "train.learning_rate=1e-3", "train.epochs=7", "train.schedule=wsd"))
    assert done.real("train.learning_rate") == 1e-3
    assert done["train.learning_rate"].advised == 2e-4
    assert done.real("train.epochs") == 7
    assert done.text("train.schedule") == "wsd"


def test_steps_and_rows_a_step_take_the_place_of_their_rivals(tmp_path: Path) -> None:
    s = situation(tmp_path, "train.steps=50", "train.batch_size=8", data=rows(400))
    done = decide(s)
    assert "train.epochs" not in done
    assert "train.batch_tokens" not in done
    assert total_steps(s, done) == 50


def test_the_length_follows_the_rows_and_the_model(tmp_path: Path) -> None:
    assert decide(situation(tmp_path)).whole("train.max_length") == 2048
    assert decide(situation(tmp_path, data=rows(100, tokens=200))).whole("train.max_length") == 384
    long = decide(situation(tmp_path, data=rows(100, tokens=20_000), config=SMOL_135M))
    assert long.whole("train.max_length") == 8192
    step = decide(situation(tmp_path, "train.batch_tokens=2048", data=rows(100, tokens=3000)))
    assert step.whole("train.max_length") == 2048


def test_a_step_holds_about_the_guides_sixteen_rows_and_fewer_where_rows_are_few(tmp_path: Path) -> None:
    many = decide(situation(tmp_path, data=rows(5_000)))
    few = decide(situation(tmp_path, data=rows(100)))
    assert 16 <= many.whole("train.batch_tokens") / 200 < 32
    assert few.whole("train.batch_tokens") < many.whole("train.batch_tokens")
    assert few.whole("train.batch_tokens") >= few.whole("train.max_length")


@pytest.mark.parametrize(("count", "epochs"), [(1_000, 3), (50_000, 2), (500_000, 1)])
def test_more_rows_are_seen_fewer_times(tmp_path: Path, count: int, epochs: float) -> None:
    assert decide(situation(tmp_path, data=rows(count))).real("train.epochs") == epochs


def test_larger_batches_raise_the_rate(tmp_path: Path) -> None:
    small = decide(situation(tmp_path, "train.batch_size=16"))
    large = decide(situation(tmp_path, "train.batch_size=128"))
    assert large.real("train.learning_rate") == pytest.approx(1.5 * small.real("train.learning_rate"))


def test_full_fine_tuning_wants_a_tenth_of_the_rate(tmp_path: Path) -> None:
    lora = decide(situation(tmp_path)).real("train.learning_rate")
    assert decide(situation(tmp_path, method="full")).real("train.learning_rate") == pytest.approx(lora / 10)


def test_the_precision_is_what_the_device_multiplies(tmp_path: Path) -> None:
    assert decide(situation(tmp_path, device="h100")).text("base.dtype") == "bfloat16"
    assert decide(situation(tmp_path, device="t4")).text("base.dtype") == "float16"
    assert decide(situation(tmp_path, device="cpu")).text("base.dtype") == "auto"
    assert decide(situation(tmp_path, method="qlora")).text("base.dtype") == "nf4"


def test_fused_experts_are_meant_with_a_rank_by_their_share_of_the_tokens(tmp_path: Path) -> None:
    mixtral = SMOL_135M | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    done = decide(situation(tmp_path, "lora.target_modules=all-linear", config=mixtral))
    assert done.whole("lora.expert_r") == round(done.whole("lora.r") * 0.5**0.5)
    assert "2 of 4 tokens" in done["lora.expert_r"].reason
    alone = decide(situation(tmp_path, config=mixtral))
    assert "lora.expert_r" not in alone


def test_a_decision_knows_whether_its_value_is_within_its_range() -> None:
    def at(value: float | str, *bounds: float | str) -> bool:
        return Decision(name="x", value=value, reason="because", range=bounds).within

    assert at(2.0, 1.0, 2.0)
    assert not at(4.0, 1.0, 2.0)
    assert at("qv", "qv", "mlp")
    assert not at("regex.*", "qv", "mlp")
    assert at(7.0)


def test_experts_can_be_adapted_and_attention_is_where_to_start(tmp_path: Path) -> None:
    """Mixtral 8x7B by its config: 8 experts of 3 matrices a layer."""
    experts = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}
    s = situation(tmp_path, config=LLAMA_8B | experts)
    told = decide(s)["lora.target_modules"]
    assert (told.value, set(told.range)) == ("attention", {"qv", "attention", "mlp", "all-linear"})
    each = 4 * ((4096 + 2 * 14336) + (14336 + 4096))  # r 4 = 8·√(2/8): gate and up together, then down
    attention = 8 * (2 * 8192 + 2 * 5120)
    assert f"{32 * (attention + 8 * each):,} parameters at r 8 (experts 4), against {32 * attention:,}" in told.reason
