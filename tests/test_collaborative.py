"""ALS, the line that is no language model."""

import json

import numpy as np
import pandas as pd
from toy import config, write_domain

from fedecider import federation, runs


def test_als_ranks_by_the_domains_interactions(data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "als"), backbone)
    ranks = runs.ranks(folder)
    mine = ranks[ranks["method"] == "als"]
    assert set(mine["ranker"]) == {"als"} and set(mine["protocol"]) == {"sampled", "catalogue"}
    assert mine.groupby(["domain", "protocol"])["user_id"].nunique().eq(6).all()
    assert mine["rank"].between(1, 30).all() and mine["rank"].nunique() > 3
    choices = json.loads((folder / "result.json").read_text())["choices"]
    assert {one["als_factors"] for one in choices.values()} <= {16, 32, 64}
    assert {one["als_confidence"] for one in choices.values()} <= {1.0, 10.0, 40.0}
    assert not (folder / "adapters").exists()  # no language model was trained


def test_als_finds_structure_that_popularity_does_not(tmp_path):
    """Two groups of users who never share an item: items of the own group come first."""
    from fedecider.collaborative import als_ranks
    from fedecider.domains import read_domain

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
    domain = read_domain(tmp_path / "d")
    ranks, chosen = als_ranks(domain, [4, 8], [1.0, 10.0])
    assert np.mean(ranks["sampled"]) < 3 and max(ranks["catalogue"]) <= 21
    assert chosen["als_factors"] in (4, 8) and chosen["als_confidence"] in (1.0, 10.0)
    assert als_ranks(domain, [4, 8], [1.0, 10.0]) == (ranks, chosen)
