"""What the loop notes of every round: three tables and the events of a run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedecider import runs
from fedecider.adapter import Factors
from fedecider.client import Client
from fedecider.gram import cosines, gram, norms

TABLES = ("rounds", "alphas", "geometry")


class Recorder:
    """Rows of the tables, in memory and on disk, and the events file."""

    def __init__(self, folder: Path):
        self.folder, self.events = folder, runs.Events(folder / "events.jsonl")
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}

    def restore(self, last: int) -> None:
        """Go on behind round `last`: what came later is done again."""
        self.events.keep_rounds(last)
        for name in TABLES if last else ():
            frame = pd.read_csv(self.folder / f"{name}.csv")
            self.rows[name] += frame[frame["round"] <= last].to_dict("records")

    def geometry(self, round: int, updates: Mapping[str, Factors]) -> None:
        """Norms and cosines of all clients' updates as trained, one row per layer and pair.

        For the figures alone: the loop in one process sees all clients, and no method does.
        """
        products = gram(list(updates.values()))
        sizes, similarities = norms(products), cosines(products)
        for layer in products:
            for i, client in enumerate(updates):
                for j, other in enumerate(updates):
                    row = {"round": round, "layer": layer, "client": client, "other": other}
                    row |= {"cosine": similarities[layer][i, j].item()}
                    row |= {"norm": sizes[layer][i].item()}
                    self.rows["geometry"].append(row)

    def client(self, round: int, client: Client, **measured: Any) -> None:
        """A client's row of the round, what it `measured` included, and its weights."""
        report = client.report
        row = {
            "round": round,
            "client": client.name,
            "train_loss": report.train_loss,
            **measured,
            "seconds": float(f"{report.seconds:.3f}"),
            "steps": report.steps,
            "memory": float(f"{report.memory:.1f}"),
        }
        self.rows["rounds"].append(row)
        self.events.append("client", **row)
        self.rows["alphas"] += [{"round": round, **alpha} for alpha in client.alphas()]

    def write(self) -> None:
        """The tables as CSV, each whole."""
        for name in TABLES:
            frame = pd.DataFrame(self.rows[name], columns=runs.COLUMNS[name])
            runs.write_csv(self.folder / f"{name}.csv", frame)
