"""An adapter folder says what it is, on which base, and what alpha's rows and columns weigh."""

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from toy import config, write_domains

from fedecider import checkpoint, federation
from fedecider.adapter_folder import sources_of
from fedecider.engine.backbone import load
from fedecider.engine.weights import exact_name, folder_digest
from fedecider.integrity import DamagedError

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["arts, crafts", "books"]
IDS = torch.tensor([[0, 5, 6, 7, 8]])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp("prepared"), NAMES)


@pytest.fixture(scope="module")
def saved(prepared, backbone, tmp_path_factory):
    """A client's adapter folder by method, made when it is first asked for."""
    made = {}

    def folder(method, client="books", **settings):
        key = f"{method} {settings}"
        if key not in made:
            run = tmp_path_factory.mktemp("runs") / "run"
            chosen = config(prepared, run, method, rankers=[], lr=0.05, **settings)
            made[key] = federation.run(chosen, backbone)
        return made[key] / "adapters" / client

    return folder


def logits(folder=None):
    model = load("tiny", "cpu", "float32").model
    if folder is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT warns of fields that it lacks
            model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        return model(IDS).logits


def described(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, config["auto_mapping"]["fedecider"], (folder / "README.md").read_text()


@pytest.mark.parametrize("method", ["local", "fedavg"])
def test_a_whole_model_says_so(method, saved):
    _, entries, readme = described(saved(method))
    assert list(entries.pop("files")) == ["adapter_model.safetensors"]
    assert entries == {"client": "books", "method": method, "holds": "the whole model"}
    assert "It is the whole model" in readme and "mixture.safetensors" not in readme
    assert not (saved(method) / "mixture.safetensors").exists()
    assert not torch.equal(logits(saved(method)), logits())


def test_after_flora_plain_peft_gives_the_base_and_the_folder_says_so(saved):
    folder = saved("flora", rounds=1)
    _, entries, readme = described(folder)
    assert torch.equal(logits(folder), logits())
    assert entries["holds"] == "the own LoRA alone"
    assert entries["also needs"] == "mixture.safetensors"
    for text in (entries["mixture"], readme):
        assert "folded into the base" in text and "PEFT alone gives the base" in text
    assert "`fedecider.checkpoint.load_model` reads both files" in readme


@pytest.mark.parametrize("method", ["fedecider", "feddpa", "flora"])
def test_half_a_model_says_so(method, saved):
    _, entries, readme = described(saved(method))
    assert entries["holds"] == "the own LoRA alone" and entries["mixture"]
    assert "not the model that was ranked" in readme and entries["mixture"] in readme


@pytest.mark.parametrize("scope", ["module", "layer", "client"])
def test_alphas_rows_and_columns_are_named(scope, saved, backbone):
    folder = saved("fedecider", alpha_scope=scope, top_layers=None, targets=["v_proj", "q_proj"])
    _, entries, readme = described(folder)
    with safe_open(folder / "mixture.safetensors", "pt") as file:
        metadata, alpha = file.metadata(), file.get_tensor("alpha")
    rows, columns = (json.loads(metadata[f"alpha_{kind}"]) for kind in ("rows", "columns"))
    assert columns == ["arts, crafts"]  # a comma in a name is no separator
    assert alpha.shape == (len(rows), len(columns))
    assert (entries["alpha_rows"], entries["alpha_columns"]) == (rows, columns)
    assert ", ".join(rows) in readme and ", ".join(columns) in readme
    history = checkpoint.runs.read_csv(folder.parents[1] / "alphas.csv", "alphas")
    history = history[(history["client"] == "books")]
    best = json.loads((folder.parents[1] / "result.json").read_text())["choices"]["books"]
    history = history[history["round"] == best["best_round"]].set_index("layer")["alpha"]
    for module, value in history.items():
        row = {"module": module, "layer": f"layer {module.split('.')[2]}"}.get(scope, rows[0])
        assert alpha[rows.index(row), 0].item() == pytest.approx(value)


def test_a_comma_in_a_name_survives(saved):
    model = checkpoint.load_model(saved("fedecider"))
    assert list(model.peer_directions) == ["arts, crafts"]
    assert checkpoint.load_model(saved("fedecider", "arts, crafts")).alpha.shape[1] == 1
    assert sources_of({"sources": "books,games"}) == ["books", "games"]  # of before JSON


def test_the_base_is_named_exactly(saved, backbone, tmp_path):
    config, _, readme = described(saved("fedecider"))
    assert config["base_model_name_or_path"] == "tiny" and config["revision"] == backbone.weights
    assert backbone.weights in readme
    assert PeftConfig.from_pretrained(saved("fedecider")).revision == backbone.weights
    packaged = exact_name("smollm2-135m@10")
    assert packaged.startswith("smollm2-135m@10: SmolLM2-135M-Instruct.Q4_1.gguf")
    assert "4-bit weights dequantised" in packaged
    (tmp_path / "model").mkdir()
    assert exact_name(f"{tmp_path}/model@3") == "model@3"
    assert exact_name("owner/model") == "owner/model"


def test_equal_weights_have_equal_digests_and_others_have_not(backbone):
    assert load("tiny@1", "cpu", "bfloat16").weights == backbone.weights != ""
    other = load("tiny", "cpu", "float32")
    next(other.model.parameters()).data[0, 0] += 1
    from fedecider.engine.weights import parameter_digest

    assert parameter_digest(other.model) != backbone.weights


def test_a_damaged_adapter_folder_is_named_also_apart_from_its_run(saved, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(saved("fedecider"), folder)
    checkpoint.load_model(folder)
    generator = random.Random(0)
    for name in ("adapter_model.safetensors", "mixture.safetensors"):
        content = (folder / name).read_bytes()
        for position in [0, 9, len(content) - 1, *generator.sample(range(len(content)), 20)]:
            flipped = bytearray(content)
            flipped[position] ^= 1 << generator.randrange(8)
            (folder / name).write_bytes(flipped)
            with pytest.raises(DamagedError, match=f"{name} is damaged .* run again"):
                checkpoint.load_model(folder)
        (folder / name).unlink()
        with pytest.raises(DamagedError, match=f"{name} is missing: copy it anew"):
            checkpoint.load_model(folder)
        (folder / name).write_bytes(content)
    checkpoint.load_model(folder)
    (folder / "adapter_config.json").write_bytes(b"{torn")
    with pytest.raises(DamagedError, match="adapter_config.json is damaged"):
        checkpoint.load_model(folder)


# Sum of the logits as plain PEFT or transformers gives them; argv: adapter, base.
PLAIN = {
    "AutoPeftModel": "AutoPeftModelForCausalLM.from_pretrained(adapter)",
    "transformers": "AutoModelForCausalLM.from_pretrained(adapter)",
    "PeftModel": "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)",
    "base": "AutoModelForCausalLM.from_pretrained(base)",
}
SCRIPT = """
import json, sys, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
from fedecider.engine.backbone import load
base, adapter = sys.argv[1:3]
sums = {"weights": load(base, "cpu", "float32").weights}
for name, code in json.loads(sys.argv[3]).items():
    with torch.no_grad():
        sums[name] = eval(code)(torch.tensor([[0, 5, 6, 7, 8]])).logits.double().sum().item()
print(json.dumps(sums))
"""
RUN = """
import sys
from toy import config
from fedecider import federation
base, data, run = sys.argv[1:]
federation.run(config(data, run, "fedavg", model=base, rankers=[], lr=0.05))
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("base", ["mine", "owner/mine"])
def test_plain_peft_loads_the_adapter_of_a_folder_and_of_a_hub_model(base, prepared, tmp_path):
    """In processes that cannot reach the hub; the hub model lies in the hub's cache."""
    model = tmp_path / base
    if base == "owner/mine":
        repository = tmp_path / "hub" / "models--owner--mine"
        model = repository / "snapshots" / COMMIT
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
    tiny = load("tiny", "cpu", "float32")
    tiny.model.save_pretrained(model)
    tiny.tokenizer.save_pretrained(model)
    paths = [str(ROOT), str(ROOT / "tests")]
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    own |= {"PYTHONPATH": os.pathsep.join(paths), "FEDECIDER_CACHE": str(tmp_path / "cache")}

    def python(*arguments):
        command = [sys.executable, "-c", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python(RUN, base, prepared, tmp_path / "run")
    adapter = tmp_path / "run" / "adapters" / "books"
    sums = json.loads(python(SCRIPT, base, adapter, json.dumps(PLAIN)).splitlines()[-1])
    assert sums["AutoPeftModel"] == sums["transformers"] == sums["PeftModel"] != sums["base"]
    stored = described(adapter)[0]
    assert stored["base_model_name_or_path"] == base
    hub = base == "owner/mine"
    assert stored["revision"] == (COMMIT if hub else sums["weights"])
    assert sums["weights"] == (f"commit {COMMIT}" if hub else folder_digest(model))
