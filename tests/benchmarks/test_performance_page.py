"""The performance page says what the result files say, and every case file can be read."""

from benchmarks.performance.__main__ import PAGE, page
from benchmarks.step.case import cases


def test_the_page_is_what_the_results_make_of_it() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m benchmarks.performance"


def test_every_case_has_a_shape_and_a_limit() -> None:
    assert {"smollm2-135m", "llama-8b-packed", "llama-8b-nf4-long"} <= set(cases())
    for case in cases().values():
        assert case.tokens >= max(case.lengths) > 1
        assert case.config["model_type"]
        assert set(case.memory) <= {"speed", "balanced", "frugal", "offload"}


def test_what_nobody_measured_is_said_to_be_unmeasured() -> None:
    told = page().partition("## Not measured")[2]
    assert "Nothing here was measured on an accelerator" in told
