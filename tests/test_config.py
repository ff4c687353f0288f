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
    "fedecider": {"uniform_weight": "uniform_weight"},
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


@pytest.mark.parametrize("group", RunConfig.GROUPS)
def test_plain_names_are_not_mixed_with_groups(group):
    with pytest.raises(ValueError, match=f"{group} is a group: name its settings themselves"):
        RunConfig.of(**LEAST, **{group: {}})


def test_a_methods_own_settings_may_come_as_a_dict():
    config = RunConfig.of(**LEAST, settings={"mu": 0.5})
    assert config == RunConfig.of(**LEAST, mu=0.5)
    with pytest.raises(ValueError, match="mu is given twice"):
        RunConfig.of(**LEAST, settings={"mu": 0.5}, mu=0.5)
    with pytest.raises(ValueError, match="rank belongs to the group lora"):
        RunConfig.of(**LEAST, settings={"rank": 4})
    with pytest.raises(ValueError, match="settings must be a dict"):
        RunConfig.of(**LEAST, settings=0.5)


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
    # Its folders are older than the first two, and meant the defaults of the class.
    assert config.settings == {"shared": "direction", "weights": "learned", "uniform_weight": 3.0}
    assert make(config).settings.model_dump() == config.settings


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
    settings = make(config).settings.model_dump()
    assert config.settings == settings  # none is left to a default
    assert all(settings[now] == values[before] for before, now in OWN[method].items())


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(OWN)))
def test_the_settings_of_other_methods_are_not_taken(method):
    config = RunConfig(**from_stored({**OLD, "method": method, "noise": 0.0}))
    assert config.settings == {}
    make(config)


# What published folders lacked, by the commit's age, and what they meant by it.
BEFORE_TEMPERATURE = {"fellrec_temperature": 0.05, "als_confidences": [1.0]}
FIRST_METHODS = ("fedavg", "fedecider", "local", "zero-shot")  # of the oldest published folders
BEFORE_METHODS = {*["als_factors", "dpa_samples", "dpa_weight", "fedprox_mu", "fellrec_alpha"]}
BEFORE_METHODS |= {*["fellrec_beta", "noise", "sim_temperature", "uniform_weight", "wire"]}


@pytest.mark.parametrize("method", METHODS)
def test_published_configurations_of_before_a_name_mean_what_they_ran_with(method):
    newest = {**OLD, "method": method, "noise": 0.0, "wire": "float32", "uniform_weight": 1.0}
    whole = from_stored({**newest, **BEFORE_TEMPERATURE})
    assert from_stored(newest) == whole
    assert whole["training"]["loss"] == "vocabulary" and whole["training"]["min_clients"] == 1
    assert make(RunConfig(**whole)).settings.model_dump() == whole["settings"]
    if method in FIRST_METHODS:
        assert from_stored({k: v for k, v in newest.items() if k not in BEFORE_METHODS}) == whole


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_name_of_a_flat_configuration_is_refused(method):
    values = {**OLD, **BEFORE_TEMPERATURE, "method": method, "noise": 0.0}
    own = OWN.get(method, {})
    others = {name for names in OWN.values() for name in names} - set(own)
    older = {"noise", "wire", *BEFORE_TEMPERATURE}
    older |= {"uniform_weight"} if method == "fedecider" else set()
    required = set(values) - others - older
    assert len(required) > 30 and set(own) - older <= required
    for name in sorted(required):
        with pytest.raises(ValueError, match=f"lacks the entry '{name}'"):
            from_stored({key: value for key, value in values.items() if key != name})


def test_a_missing_name_of_a_grouped_configuration_is_refused():
    stored = RunConfig.of(**LEAST, mu=0.5).stored()
    for name in RunConfig.model_fields:
        lacking = {key: value for key, value in stored.items() if key != name}
        # Without its `data` it is taken for a flat one, which has no groups.
        said = "unknown entry" if name == "data" else f"lacks the entry '{name}'"
        with pytest.raises(ValueError, match=said):
            from_stored(lacking)
    for name, group in group_of().items():
        lacking = {key: value for key, value in stored[group].items() if key != name}
        lacking = {**stored, group: lacking}
        if name == "min_clients":  # younger than the groups
            assert from_stored(lacking) == stored
            continue
        with pytest.raises(ValueError, match=f"lacks the entry '{name}' of {group}"):
            from_stored(lacking)


def test_what_neither_form_has_is_refused():
    with pytest.raises(ValueError, match="unknown entry 'momentum'"):
        from_stored({**OLD, "momentum": 0.9})
    with pytest.raises(ValueError, match="unknown entry 'momentum'"):
        from_stored({**RunConfig.of(**LEAST).stored(), "momentum": 0.9})
    with pytest.raises(ValueError, match="unknown entry 'settings'"):
        from_stored({**OLD, "settings": {}})  # half the one, half the other
