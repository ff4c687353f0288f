"""als, the line that is no language model but knows who chose what."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy import config, seal, write_domain

from fedecider import federation, results
from fedecider.domains import read_domain
from fedecider.methods import make


def test_als_ranks_by_the_domains_interactions(data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "als"), backbone)
    ranks = results.ranks(folder)
    assert set(ranks["method"]) == {"als"}
    assert set(ranks["ranker"]) == {"als"} and set(ranks["protocol"]) == {"sampled", "catalogue"}
    assert ranks.groupby(["domain", "protocol"])["user_id"].nunique().eq(6).all()
    assert ranks["rank"].between(1, 30).all() and ranks["rank"].nunique() > 3
    choices = json.loads((folder / "result.json").read_text())["choices"]
    assert {chosen["factors"] for chosen in choices.values()} <= {16, 32, 64}
    assert {chosen["confidence"] for chosen in choices.values()} <= {1.0, 10.0, 40.0}
    assert not (folder / "adapters").exists()  # no language model was trained


def test_no_model_is_loaded_where_none_is_needed(data, tmp_path):
    """Not even looked for."""
    settings = config(data, tmp_path / "run", "als", model="/nowhere")
    assert (federation.run(settings) / "result.json").exists()


def test_als_finds_structure_that_popularity_does_not(tmp_path):
    """Two groups of users who never share an item: items of the own group come first."""
    generator = np.random.default_rng(0)
    write_domain(tmp_path / "d", 0, users=40, items=40, history=10)
    splits = pd.read_parquet(tmp_path / "d/splits.parquet")
    rows = []
    for user, part in splits.groupby("user_id"):
        group = int(user[1:]) % 2
        own = generator.permutation(20)[: len(part)] + 20 * group
        rows.append(part.assign(item_id=[f"i{n:03d}" for n in own]))
    splits = pd.concat(rows)
    splits.to_parquet(tmp_path / "d/splits.parquet")
    held = splits[splits["split"] != "train"]
    listed = [
        (
            r.user_id,
            r.split,
            r.item_id,
            [f"i{n:03d}" for n in range(20) if int(r.user_id[1:]) % 2]
            or [f"i{n:03d}" for n in range(20, 40)],
        )
        for r in held.itertuples()
    ]
    columns = ["user_id", "split", "item_id", "negatives"]
    pd.DataFrame(listed, columns=columns).to_parquet(tmp_path / "d/candidates.parquet")
    seal(tmp_path)
    domain, protocols = read_domain(tmp_path / "d"), ["sampled", "catalogue"]
    own = {"factors": [4, 8], "confidences": [1.0, 10.0]}
    method = make(config(Path("d"), Path("f"), "als", **own))
    ranks, chosen = method.rank(domain, protocols)
    assert np.mean(ranks["sampled"]) < 3 and max(ranks["catalogue"]) <= 21
    assert chosen["factors"] in (4, 8) and chosen["confidence"] in (1.0, 10.0)
    assert method.rank(domain, protocols) == (ranks, chosen)
    popular, _ = make(config(Path("d"), Path("f"), "popularity")).rank(domain, protocols)
    assert np.mean(popular["catalogue"]) > np.mean(ranks["catalogue"])


@pytest.mark.parametrize("own", [{"factors": []}, {"confidences": []}, {"factors": "many"}])
def test_als_needs_something_to_try(own):
    with pytest.raises(ValueError, match=f"{next(iter(own))} of als: "):
        make(config(Path("d"), Path("f"), "als", **own))
