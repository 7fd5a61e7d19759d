"""What accelerate's configurations of FSDP and DeepSpeed mean; test_training_runs.py trains by them."""

import json

import pytest

from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings
from sdcli.training.sharding import SplitPlan, asked_split
from sdcli.training.stages import train

FSDP = {"ACCELERATE_USE_FSDP": "true"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


def settings(**changes) -> TrainSettings:
    return TrainSettings(**{"data": "data", "output": "run", "model": "emoji", **changes})


@pytest.fixture
def asked(monkeypatch):
    def ask(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return ask


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"ACCELERATE_USE_FSDP": "false"}, None),
        (FSDP, SplitPlan(reshard=True, offload=False)),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, SplitPlan(reshard=False, offload=False)),
        (FSDP | {"FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, SplitPlan(reshard=False, offload=False)),
        (FSDP | {"FSDP_SHARDING_STRATEGY": "NO_SHARD"}, None),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, SplitPlan(reshard=True, offload=True)),
        (DEEPSPEED, SplitPlan(reshard=False, offload=False, stands_for="DeepSpeed's ZeRO stage 2")),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, None),
        (
            DEEPSPEED
            | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            SplitPlan(reshard=True, offload=True, stands_for="DeepSpeed's ZeRO stage 3"),
        ),
    ],
)
def test_what_launchers_set_is_understood(variables, expected, asked):
    asked(variables)
    assert asked_split(settings()) == expected


def test_a_file_for_deepspeed_is_understood(asked, tmp_path):
    """As its documentation shows it, with everything that is not about splitting left to the program."""
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "overlap_comm": True},
    }
    (tmp_path / "zero3.json").write_text(json.dumps(config))
    asked(DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero3.json")})
    assert asked_split(settings()) == SplitPlan(True, True, "DeepSpeed's ZeRO stage 3")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gradient_clipping": 0.5}, "sets gradient_clipping, which the settings of the run decide"),
        ({"optimizer": {"type": "AdamW"}}, "sets optimizer"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "cannot be kept on nvme"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_would_decide_too_much_is_refused(config, message, asked, tmp_path):
    if config is not None:
        (tmp_path / "zero.json").write_text(json.dumps(config))
    asked(DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero.json")})
    with pytest.raises(SdcliError, match=message):
        asked_split(settings())


@pytest.mark.parametrize(
    ("variables", "changes", "message"),
    [
        (FSDP, {"part": "clip"}, "FSDP, which does not split --part clip"),
        (FSDP, {"part": "all"}, "FSDP, which does not split --part all"),
        (FSDP, {"precision": "fp16"}, "fp16 does not go with FSDP"),
        (FSDP, {"text_encoder_lr": 1e-5}, "FSDP, which does not split text encoders"),
        (DEEPSPEED, {"part": "lora"}, "DeepSpeed's ZeRO stage 2, which does not split --part lora"),
    ],
)
def test_parts_that_are_not_split_are_refused(variables, changes, message, asked, squares, tmp_path):
    asked(variables)
    with pytest.raises(SdcliError, match=message):
        list(train(settings(data=str(squares), output=str(tmp_path / "run"), **changes)))
    assert not (tmp_path / "run").exists()
