"""How a plan is made to fit, what it gives up in which order, and what else would fit."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.planning.situations import LLAMA_8B, SMOL_135M, model_folder

from lorawise.facts.device import DeviceFacts, devices, find_device
from lorawise.facts.read import read_model
from lorawise.lora.config import LoraConfig
from lorawise.planning.concessions import concessions
from lorawise.planning.fit import settle
from lorawise.planning.largest import largest, smallest_device
from lorawise.planning.load import Load

NAMES = ["packing budget", "checkpointing", "chunked loss", "4-bit base", "length", "rank", "targets"]


def load_of(folder: Path, device: str, *, r: int = 16, targets: str = "all-linear", length: int = 2048) -> Load:
    return Load(
        model=read_model(model_folder(folder / "base", LLAMA_8B)),
        config=LoraConfig(r=r, target_modules=targets),
        device=find_device(device),
        length=length,
    )


@pytest.mark.parametrize(("device", "mode"), [("h100", "speed"), ("rtx-4090", "balanced"), ("8GiB", "frugal")])
def test_the_fastest_mode_that_fits_is_taken_and_the_smallest_where_none_does(
    tmp_path: Path, device: str, mode: str
) -> None:
    load = load_of(tmp_path, device)
    settled = settle(load, step=4096, mode=None, tokens=None)
    assert settled.mode == mode
    assert settled.fits == (device != "8GiB")
    if mode != "speed":
        faster = replace(settled, mode="speed", tokens=load.length)
        assert not faster.fits


def test_the_users_mode_and_tokens_are_kept_though_they_do_not_fit(tmp_path: Path) -> None:
    settled = settle(load_of(tmp_path, "rtx-4090"), step=8192, mode="speed", tokens=8192)
    assert (settled.mode, settled.tokens, settled.fits) == ("speed", 8192, False)


def test_tokens_at_once_stop_where_more_does_not_help(tmp_path: Path) -> None:
    settled = settle(load_of(tmp_path, "h200", length=512), step=1 << 20, mode="frugal", tokens=None)
    assert settled.tokens == 16_384


@pytest.mark.parametrize("device", ["24GiB", "16GiB", "8GiB", "7GiB", "2GiB"])
def test_concessions_come_in_their_order_and_end_with_the_first_that_fits(tmp_path: Path, device: str) -> None:
    load = load_of(tmp_path, device, r=64)
    fastest = replace(load, tokens=8192)
    made = concessions(fastest, settle(load, step=8192, mode=None, tokens=None))
    assert made
    assert [each.name for each in made] == [name for name in NAMES if name in {each.name for each in made}]
    assert [each.fits for each in made[:-1]] == [False] * (len(made) - 1)
    assert made[-1].fits == (device != "2GiB")
    assert all(each.costs and each.setting for each in made)
    before = fastest.needed
    for each in made:
        assert before - each.saves == each.needed
        before = each.needed


def test_nothing_is_conceded_where_everything_fits(tmp_path: Path) -> None:
    load = load_of(tmp_path, "h200", length=512)
    assert not concessions(load, load)


def test_the_stock_trainer_is_offered_the_chunked_loss(tmp_path: Path) -> None:
    load = replace(load_of(tmp_path, "17GiB"), trainer="hf", tokens=8192, packed=False, length=2048)
    made = {each.name: each for each in concessions(load, load)}
    assert made["chunked loss"].saves > 0


def test_the_largest_that_fit_do_fit_and_more_do_not(tmp_path: Path) -> None:
    load = settle(load_of(tmp_path, "rtx-4090", length=1024), step=4096, mode=None, tokens=None)
    most = largest(load)
    tokens, slack = most.micro_batch_tokens, max(most.micro_batch_tokens // 100, 64)
    assert replace(load, tokens=tokens).fits
    assert not replace(load, tokens=tokens + slack).fits
    assert replace(load, tokens=most.max_length, length=most.max_length).fits
    assert replace(load, slots=most.slots).fits
    assert not replace(load, slots=most.slots + 1).fits
    nothing = largest(replace(load, device=find_device("1GiB")))
    assert (nothing.micro_batch_tokens, nothing.max_length, nothing.slots) == (0, 0, 0)


def test_the_smallest_device_would_do_and_no_smaller_one(tmp_path: Path) -> None:
    load = load_of(tmp_path, "8GiB")
    known = list({device.name: device for device in devices().values()}.values())
    found = smallest_device(load, known)
    assert found is not None
    least = replace(load, mode="frugal", tokens=load.length)
    assert replace(least, device=found).fits
    smaller = [device for device in known if device.usable < 0.9 * found.usable]
    assert smaller
    assert not any(replace(least, device=device).fits for device in smaller)
    tiny = DeviceFacts(name="tiny", memory=2**28, usable=2**28, kind="cuda")
    assert smallest_device(load, [tiny]) is None


def test_a_small_model_fits_everywhere(tmp_path: Path) -> None:
    small = replace(load_of(tmp_path, "8GiB"), model=read_model(model_folder(tmp_path / "small", SMOL_135M)))
    assert settle(small, step=4096, mode=None, tokens=None).mode == "speed"
