"""The benchmark of HuBERT's step, on the tiny model: what it prints, and what it refuses."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import hubert_step
from imbal_jax.errors import InputError

HAS_TORCH = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "peft"))


@pytest.mark.slow
def test_prints_conditions_and_one_json_object_per_contender(capsys, tmp_path):
    names = ["adamw", "ief", "adamw_conv_cache", "adamw_encoder_cache"]
    arguments = ["--size=tiny", "--seconds=0.2", "--batch=2", "--repeats=2", f"--output={tmp_path / 'out.jsonl'}"]
    assert hubert_step.run([*arguments, f"--contenders={','.join([*names, 'torch'])}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (tmp_path / "out.jsonl").read_text().splitlines() == lines
    conditions, *told = map(json.loads, lines)
    assert (conditions["benchmark"], conditions["batch"], conditions["dtype"]) == ("hubert_step", 2, "float32")
    assert conditions["machine"]["devices"]
    if not HAS_TORCH:
        assert conditions["torch_left_out"] == "torch, transformers, peft are not all installed for this device"
    assert [each["contender"] for each in told] == names + ["torch"] * HAS_TORCH
    # LoRA with rank 8 on two projections of two layers, and the head.
    assert {each["num_trainable"] for each in told} == {2 * 2 * (8 * 32 + 32 * 8) + 32 * 256 + 256 * 6}
    for each in told:
        for clock in ("seconds", "processor_seconds"):
            assert 0 < each[clock]["min"] <= each[clock]["median"] <= each[clock]["max"]
    by_name = {each["contender"]: each for each in told}
    assert "ief_over_adamw" in by_name["ief"]["ratios"]
    assert "adamw_over_adamw_conv_cache" in by_name["adamw_conv_cache"]["ratios"]
    assert by_name["adamw_conv_cache"]["temporary_mebibytes"] < by_name["adamw"]["temporary_mebibytes"]


def test_ratios_are_taken_within_each_round():
    taken = {
        name: {"seconds": np.array(values)}
        for name, values in {"adamw": [1.0, 2.0, 10.0], "ief": [1.1, 2.4, 10.5], "torch": [3.0, 4.0, 15.0]}.items()
    }
    assert hubert_step.ratios(taken, "torch") == {}
    rival = hubert_step.ratios(taken, "adamw")
    assert rival == {"torch_over_adamw": {"seconds": {"median": 2.0, "min": 1.5, "max": 3.0}}}
    assert hubert_step.ratios(taken, "ief")["ief_over_adamw"]["seconds"]["max"] == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders=adam"], "--contenders: no 'adam'"),
        (["--size=large"], "--size: no 'large'"),
        (["--noise=config"], "--noise: no 'config'"),
        (["--dtype=float16"], "--dtype: no 'float16'"),
        (["--batch=0"], "--batch: expected a number >= 1, got 0"),
        (["--seconds=-1"], "--seconds: expected a number > 0, got -1"),
        (["--cores=0"], "--cores: expected a number >= 1, got 0"),
        (["--cores=100000"], "--cores: expected at most"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        hubert_step.run(arguments)


def test_noise_before_the_encoder_s_input_leaves_its_cache_out():
    assert "adamw_encoder_cache" in hubert_step.parse([]).contenders
    assert "adamw_encoder_cache" not in hubert_step.parse(["--noise=hf_train"]).contenders
