"""Where packs are trained: what an engine may be called, and what it is refused with."""

import sys

import pytest
from tests.tuning.small_study import small_study

from lorawise.base.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "rya"}, "ray"),
        ({"workers": 2}, "--engine ray"),
        ({"engine": "ray", "workers": 0}, "at least one"),
    ],
)
def test_an_engine_that_cannot_be_meant_is_refused(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        small_study(tmp_path, tmp_path / "study", **options)
    assert not (tmp_path / "study/study.json").exists()


def test_a_missing_ray_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"lorawise\[ray\]"):
        small_study(tmp_path, tmp_path / "study", engine="ray")
    assert not (tmp_path / "study/study.json").exists()
