"""The configuration: its groups, plain names, and what is stored of it today and once was."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedecider.config import RunConfig, flattened, from_stored, group_of, grouped
from fedecider.methods import METHODS, make

LEAST = {"folder": Path("runs/x"), "method": "fedprox", "prepared": Path("data/d"), "dataset": "d"}

# config.json of a published run, as it was written before settings had groups.
OLD = json.loads("""
{
  "alpha_init": 0.0, "alpha_lr": 0.2, "alpha_scope": "module", "alpha_sign": "free",
  "alpha_warmup": 0, "als_factors": [16, 32, 64], "backbone": "smollm2-135m", "batch_tokens": 512,
  "beams": 4, "clip": 0.5, "data": "data/goodreads", "dataset": "goodreads", "device": "auto",
  "domains": null, "dpa_samples": 3, "dpa_weight": 0.75, "dtype": "auto", "fedprox_mu": 0.02,
  "fellrec_alpha": 0.3, "fellrec_beta": 2.0, "folder": "goodreads/fedecider-seed0",
  "form": "instruction", "history": 10, "local_epochs": 1, "lora_alpha": 16.0, "lr": 0.002,
  "lr_end": 0.1, "method": "fedecider", "noise": 0.25, "norm": "frobenius",
  "prompt_weights": [0.0, 0.25, 0.5, 0.75, 1.0], "rank": 8,
  "rankers": ["likelihood", "grounding", "trie"], "rounds": 4, "seed": 0, "send": "direction",
  "sim_temperature": 1.5, "targets": ["q_proj", "v_proj"], "test_users": 60, "title_tokens": 24,
  "top_layers": 8, "train_users": 200, "truncate": null, "uniform_weight": 3.0, "valid_users": 20,
  "weight_decay": 0.0, "windows": 1, "wire": "int8"
}
""")
RENAMED = {
    "data": "prepared",
    "backbone": "model",
    "form": "prompt_template",
    "windows": "windows_per_user",
    "clip": "max_grad_norm",
    "wire": "payload_dtype",
    "noise": "direction_noise",
}
# Of the flat table, what was a method's own: its names there and now.
OWN = {
    "fedprox": {"fedprox_mu": "mu"},
    "lora-sim": {"sim_temperature": "temperature"},
    "fellrec": {
        "fellrec_alpha": "alpha",
        "fellrec_beta": "beta",
        "fellrec_temperature": "temperature",
    },
    "feddpa": {"dpa_weight": "max_weight", "dpa_samples": "instances"},
    "als": {"als_factors": "factors", "als_confidences": "confidences"},
    "fedecider-no-direction": {"uniform_weight": "uniform_weight"},
    "fedecider-no-personalization": {"uniform_weight": "uniform_weight"},
    "fedecider-no-both": {"uniform_weight": "uniform_weight"},
}


def test_plain_names_are_unique_over_all_groups():
    names = [name for group in RunConfig.GROUPS.values() for name in group.model_fields]
    names += [name for name in RunConfig.model_fields if name not in RunConfig.GROUPS]
    assert len(names) == len(set(names))
    assert set(names).isdisjoint(RunConfig.GROUPS)  # `data` is a group, and no setting


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_own_settings_have_names_that_no_group_has(method):
    """Else `RunConfig.of` would put them into the group."""
    own = METHODS[method].Settings.model_fields
    taken = {*group_of(), *RunConfig.model_fields}
    assert taken.isdisjoint(own)
    # What the names mean is said: by a help line, or by the default where it is the only value.
    for name, field in own.items():
        assert field.description or field.annotation.__args__ == (field.default,), name


def test_the_plain_names_of_a_run_are_put_into_their_groups():
    config = RunConfig.of(**LEAST, rank=4, lr=1e-3, beams=7, mu=0.5)
    assert (config.lora.rank, config.training.lr, config.ranking.beams) == (4, 1e-3, 7)
    assert config.data.prepared == Path("data/d") and config.settings == {"mu": 0.5}
    assert make(config).settings.mu == 0.5
    assert config.lora.lora_alpha == 16  # a default
    flat = config.flat()
    assert flat["mu"] == 0.5 and flat["rank"] == 4 and flat["prepared"] == "data/d"
    assert RunConfig.of(**flat) == config


def test_grouped_and_flattened_are_inverse():
    config = RunConfig.of(**LEAST, mu=0.5, truncate=2)
    stored = config.stored()
    assert grouped(flattened(stored)) == stored
    assert flattened(grouped(config.flat())) == config.flat()
    with_info = {**stored, "data_digest": "1234"}
    assert flattened(with_info)["data_digest"] == "1234"  # what else a folder holds stays


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 0}, "lora.rank"),
        ({"seed": -1}, "seed"),
        ({"payload_dtype": "float16"}, "direction.payload_dtype"),
        ({"targets": []}, "lora.targets"),
        ({"direction_noise": 0.1, "send": "update"}, "needs send = direction"),
        ({"prepared": None}, "data.prepared"),
    ],
)
def test_unfit_values_are_refused_with_their_place(values, said):
    with pytest.raises(ValidationError, match=said):
        RunConfig.of(**{**LEAST, **values})


def test_no_default_runs_in_the_place_of_a_mistyped_name():
    groups = grouped(dict(LEAST))
    with pytest.raises(ValidationError, match="lora.ranks"):
        RunConfig(**groups, lora={"ranks": 4})
    with pytest.raises(ValidationError, match="momentum"):
        RunConfig(**groups, momentum=0.9)
    with pytest.raises(ValidationError, match="rank belongs to the group lora, not to a method"):
        RunConfig(**groups, settings={"rank": 4})
    # Of plain names, what no group has is the method's, which refuses it by name.
    with pytest.raises(ValueError, match="fedprox has no setting 'ranks'; its own are: mu"):
        make(RunConfig.of(**LEAST, ranks=4))


def test_a_stored_configuration_holds_no_place_of_the_machine():
    config = RunConfig.of(**{**LEAST, "prepared": "/a/b/data/d", "folder": "/c/d/runs/x"})
    stored = config.stored()
    assert stored["data"]["prepared"] == "data/d" and stored["folder"] == "runs/x"
    assert from_stored(stored) is stored
    assert RunConfig(**json.loads(json.dumps(stored))).stored() == stored


def test_an_old_configuration_is_mapped_name_by_name():
    config = RunConfig(**from_stored(OLD))
    flat = config.flat()
    everybody = {name for names in OWN.values() for name in names}
    for name, value in OLD.items():
        if name not in everybody:
            assert flat[RENAMED.get(name, name)] == value, name
    assert config.settings == {}  # fedecider had none that mattered
    assert make(config).settings.shared == "direction"


@pytest.mark.parametrize("method", OWN)
def test_an_old_configurations_own_settings_are_those_of_its_method(method):
    values = {
        **OLD,
        "method": method,
        "als_confidences": [1.0, 5.0],
        "fellrec_temperature": 0.1,
        "noise": 0.0,
    }
    config = RunConfig(**from_stored(values))
    assert config.settings == {now: values[before] for before, now in OWN[method].items()}
    settings = make(config).settings.model_dump()
    assert all(settings[now] == values[before] for before, now in OWN[method].items())


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(OWN)))
def test_the_settings_of_other_methods_are_not_taken(method):
    config = RunConfig(**from_stored({**OLD, "method": method, "noise": 0.0}))
    assert config.settings == {}
    make(config)


def test_what_neither_form_has_is_refused():
    with pytest.raises(ValueError, match="unknown entry 'momentum'"):
        from_stored({**OLD, "momentum": 0.9})
    with pytest.raises(ValueError, match="unknown entry 'momentum'"):
        from_stored({**RunConfig.of(**LEAST).stored(), "momentum": 0.9})
    with pytest.raises(ValueError, match="unknown entry 'settings'"):
        from_stored({**OLD, "settings": {}})  # half the one, half the other
