"""Damage to a run folder: the same call ends with equal numbers or an error that names the file."""

import json
import random
import shutil

import pytest
from same import numbers
from toy import config, write_domains

from fedecider import federation, integrity, results
from fedecider.analysis.saved_run import read_run
from fedecider.client import Client
from figures import figure_5, table, table_2

SMALL = {
    "rankers": ["likelihood"],
    "prompt_weights": [0.0],
    "train_users": 4,
    "valid_users": 3,
    "test_users": 3,
    "history": 4,
}
KINDS = ("flip", "cut", "empty", "delete")


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp("prepared"), ["books", "a, b"])


@pytest.fixture(scope="module")
def whole(prepared, backbone, tmp_path_factory):
    """A finished run folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return federation.run(config(prepared, folder, **SMALL), backbone)


@pytest.fixture(scope="module")
def stopped(prepared, backbone, tmp_path_factory):
    """The folder of a run that was killed in round 2, when its tables were already written."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    plain, calls = integrity.write_state, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Killed
        plain(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(integrity, "write_state", dies)
        federation.run(config(prepared, folder, **SMALL), backbone)
    return folder


def damage(path, kind, generator):
    if kind == "delete":
        return path.unlink()
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(b"" if kind == "empty" else content if kind == "flip" else content[:-9])


def state_files(folder):
    """What the numbers of a run depend on; the log and the READMEs are for people."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("events.jsonl", "README.md")
    )


def outcome(folder, prepared, backbone, expected):
    """ "same", or what an error said; anything else fails."""
    try:
        federation.run(config(prepared, folder, **SMALL), backbone)
    except ValueError as error:
        return str(error)
    assert numbers(folder) == expected
    return "same"


def test_damage_to_a_stopped_run_is_noticed(stopped, whole, prepared, backbone, tmp_path):
    generator, expected, outcomes = random.Random(0), numbers(whole), {}
    files = state_files(stopped)
    assert "checkpoint/state.json" in files and "checkpoint/round-001.safetensors" in files
    for name in files:
        for kind in (*KINDS, "flip"):
            folder = tmp_path / "run"
            shutil.copytree(stopped, folder)
            damage(folder / name, kind, generator)
            told = outcome(folder, prepared, backbone, expected)
            assert told == "same" or name in told, (name, kind, told)
            outcomes.setdefault(name, []).append(told)
            shutil.rmtree(folder)
    # What the next round needs is never taken as it is, nor silently made anew.
    for name in ("config.json", "checkpoint/round-001.safetensors"):
        assert "same" not in outcomes[name], outcomes[name]
    assert outcomes["rounds.csv"].count("same") < len(outcomes["rounds.csv"])


def test_damage_to_a_finished_run_is_made_good_or_named(whole, prepared, backbone, tmp_path):
    generator, expected, outcomes = random.Random(1), numbers(whole), {}
    for name in state_files(whole):
        for kind in KINDS:
            folder = tmp_path / "run"
            shutil.copytree(whole, folder)
            damage(folder / name, kind, generator)
            told = outcome(folder, prepared, backbone, expected)
            assert told == "same" or name in told, (name, kind, told)
            outcomes.setdefault(name, set()).add(told)
            shutil.rmtree(folder)
    remade = {"ranks.parquet", "metrics.csv", "result.json"}
    remade |= {name for name in outcomes if name.startswith("adapters/")}
    assert all(outcomes[name] == {"same"} for name in remade)
    assert "same" not in outcomes["rounds.csv"] | outcomes["config.json"]
    assert len(remade) == 3 + 2 * 3


FRAMES = ("metrics", "ranks", "rounds", "alphas", "geometry", "configs", "ranking")


def test_no_frame_is_read_from_a_damaged_run(whole, tmp_path):
    generator = random.Random(2)
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    expected = {kind: getattr(results, kind)(folder).to_csv() for kind in FRAMES}
    refused = set()
    for name in state_files(whole):
        for kind in (*KINDS, "flip", "flip"):
            damage(folder / name, kind, generator)
            assert results.finished(folder) == [folder] or not name.startswith("checkpoint")
            for frame, text in expected.items():
                if name == "result.json" and kind == "delete":
                    continue  # a run that is not finished is in no frame
                try:
                    assert getattr(results, frame)(folder).to_csv() == text, (name, kind, frame)
                except ValueError as error:
                    assert name in str(error), (name, kind, error)
                    assert "run again" in str(error)
                    refused.add((name, frame))
            if not name.startswith("checkpoint") and kind in ("delete", "empty", "cut"):
                assert results.finished(folder) == []
            shutil.copy2(whole / name, folder / name)
    read = {"metrics.csv": "metrics", "ranks.parquet": "ranks", "rounds.csv": "rounds"}
    assert set(read.items()) <= refused
    assert {frame for name, frame in refused if name == "config.json"} == set(FRAMES)


def test_what_an_error_says_helps(whole, prepared, backbone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    (folder / "checkpoint" / "round-002.safetensors").write_bytes(b"torn")
    with pytest.raises(integrity.DamagedError, match="run again, from round 1"):
        federation.run(config(prepared, folder, **SMALL), backbone)
    shutil.rmtree(folder / "checkpoint")  # as it says
    federation.run(config(prepared, folder, **SMALL), backbone)
    assert numbers(folder) == numbers(whole)
    (folder / "ranks.parquet").unlink()
    with pytest.raises(ValueError, match=r"ranks\.parquet is missing: .* goes on behind round 2"):
        results.ranks(folder)
    with pytest.raises(ValueError, match=r"ranks\.parquet is missing"):
        read_run(folder, prepared)
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "local_update", lambda *args: trained.append(args))
        federation.run(config(prepared, folder, **SMALL), backbone)
    assert not trained and numbers(folder) == numbers(whole)


@pytest.mark.parametrize("method", ["zero-shot", "popularity"])
def test_a_run_without_rounds_is_ranked_again(method, prepared, backbone, tmp_path):
    chosen = config(prepared, tmp_path / "run", method, **SMALL)
    folder = federation.run(chosen, backbone)
    expected = numbers(folder)
    for name in ("ranks.parquet", "rounds.csv", "metrics.csv"):
        (folder / name).write_bytes(b"damaged")
        assert not results.finished(folder)
        federation.run(chosen, backbone)
        assert numbers(folder) == expected and results.finished(folder) == [folder]


def test_folders_of_before_digests_are_read_and_taken_up(
    stopped, whole, prepared, backbone, tmp_path
):
    def without(path, *names):
        content = json.loads(path.read_text())
        assert all(content.pop(name) for name in names)
        path.write_text(json.dumps(content))

    old, begun = tmp_path / "old", tmp_path / "begun"
    shutil.copytree(whole, old)
    without(old / "result.json", "files", "digest")
    without(old / "config.json", "model_digest")
    assert results.finished(old) == [old]
    assert results.metrics(old)["value"].tolist() == results.metrics(whole)["value"].tolist()
    federation.run(config(prepared, old, **SMALL), backbone)
    shutil.copytree(stopped, begun)
    without(begun / "checkpoint" / "state.json", "files", "digest")
    without(begun / "config.json", "model_digest")
    federation.run(config(prepared, begun, **SMALL), backbone)
    again, expected = numbers(begun), numbers(whole)
    assert expected.pop("config") != again.pop("config")
    assert again == expected


def test_the_log_is_no_state(stopped, whole, prepared, backbone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    (folder / "events.jsonl").write_bytes(b'\xff\xfe\n[1, 2]\n{"event": "start", "round": 0}\n{"ev')
    federation.run(config(prepared, folder, **SMALL), backbone)
    assert numbers(folder) == numbers(whole)


def test_a_client_may_be_called_as_a_missing_value_is_written(backbone, tmp_path):
    names = {"NA", "nan", "a, b"}
    data = write_domains(tmp_path / "data", sorted(names))
    folder = federation.run(config(data, tmp_path / "run", **SMALL), backbone)
    assert set(results.rounds(folder)["client"]) == names
    alphas, metrics = results.alphas(folder), results.metrics(folder)
    assert set(alphas["source"]) == set(metrics["domain"]) == names
    # To the end: the last tables and a figure.
    ranks = results.ranks(folder)
    tables = table_2.tables(metrics, ranks, results.compare(ranks), dataset="toy")
    printed = [table.to_csv(each) for each in tables.values()]
    assert printed and all(name in text for text in printed for name in names)
    assert set(figure_5.numbers(alphas, "toy")["client"]) == names
