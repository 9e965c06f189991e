import dataclasses
import json

import jax.numpy as jnp
import pytest

from onnxeqx.training import ConfigError, TrainConfig

REQUIRED = {"model": "m.onnx", "data": "digits", "output": "run"}


def test_written_configuration_reads_back_equal(tmp_path):
    config = TrainConfig(**REQUIRED, freeze=("stem.*",), mean=(127.0,), std=(128.0,), image_size=64)
    config.write(tmp_path / "config.json")
    assert TrainConfig.read(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(config)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, r"--epochs is 0, but must be at least 1"),
        ({"batch_size": 0}, r"--batch-size is 0, but must be at least 1"),
        ({"image_size": 0}, r"--image-size is 0"),
        ({"limit": 0}, r"--limit is 0"),
        ({"workers": 0}, r"--workers is 0"),
        ({"classes": 0}, r"--classes is 0, but must be at least 1"),
        ({"lr": 0.0}, r"--lr is 0.0, but must be above 0"),
        ({"lr": float("nan")}, r"--lr is nan, but must be above 0"),
        ({"weight_decay": -1.0}, r"--weight-decay is -1.0"),
        ({"epochs": 2, "warmup_epochs": 2.0}, r"--warmup-epochs is 2.0, but must be 0 or above and below --epochs"),
        ({"validation_share": 1.0}, r"--validation-share is 1.0, but must be between 0 and 1"),
        ({"seed": -1}, r"--seed is -1"),
        ({"std": (1.0, 0.0)}, r"--std is \(1.0, 0.0\)"),
        ({"mean": ()}, r"--mean is \(\)"),
        ({"epochs": "five"}, r"--epochs is 'five', but must be a whole number"),
        ({"epochs": 2.5}, r"--epochs is 2.5, but must be a whole number"),
        ({"epochs": True}, r"--epochs is True, but must be a whole number"),
        ({"freeze": "stem"}, r"--freeze is 'stem', but must be a list"),
        (
            {"mean": [127.0]},
            r"--mean is \(127.0,\), in units of 0 to 255, but --std is the default, in units of 0 to 1",
        ),
        ({"std": [58.0]}, r"--std is \(58.0,\), in units of 0 to 255, but --mean is the default"),
        ({"opt": "sgd", "opt_args": ["nesterov"]}, r"--opt-args 'nesterov' is not of the form name=value"),
        ({"learning_rate": 1.0}, r"Unknown training option learning_rate; known are model, data"),
    ],
)
def test_a_wrong_value_is_one_sentence(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(REQUIRED | values)


def test_integers_serve_as_floats_and_lists_as_tuples():
    config = TrainConfig.from_dict(REQUIRED | {"lr": 1, "mean": [127], "std": [128], "head": None})
    assert config.lr == 1.0
    assert config.mean == (127.0,)


@pytest.mark.parametrize("spelling", ["nesterov=true", "nesterov=True"])
def test_arguments_of_the_optimiser_are_written_as_in_toml_or_python(spelling):
    with_momentum = TrainConfig(**REQUIRED, opt="sgd", opt_args=("momentum=0.9", spelling))
    plain = TrainConfig(**REQUIRED, opt="sgd", opt_args=("momentum=0.9",))
    gradient, weight = jnp.ones(3), jnp.ones(3)
    updates = []
    for config in (with_momentum, plain):
        optimizer = config.optimizer(0.1)
        updates.append(optimizer.update(gradient, optimizer.init(weight), weight)[0])
    assert (updates[0] < updates[1]).all()


def test_a_missing_name_is_named():
    with pytest.raises(ConfigError, match="lacks data, output"):
        TrainConfig.from_dict({"model": "m.onnx"})


def test_resuming_with_other_options_lists_them():
    config = TrainConfig(**REQUIRED, lr=0.1)
    config.check_given({"lr": 0.1, "epochs": 5})
    with pytest.raises(ConfigError, match=r"--lr is 0.1 in the run and 0.2 now; --seed is 0 in the run and 4 now"):
        config.check_given({"lr": 0.2, "seed": 4, "epochs": 5})


def test_a_missing_or_damaged_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="There is no run to resume"):
        TrainConfig.read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is no training configuration"):
        TrainConfig.read(tmp_path / "config.json")
