"""What the loop notes of every round: three tables and the events of a run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedecider import integrity, runs
from fedecider.adapter import Factors
from fedecider.client import Client
from fedecider.gram import cosines, gram, norms
from fedecider.runs import TABLES


class Recorder:
    """Rows of the tables, in memory and on disk, and the events file."""

    def __init__(self, folder: Path):
        self.folder, self.events = folder, runs.Events(folder / "events.jsonl")
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self._written = dict.fromkeys(TABLES, 0)  # rows that are in the text already
        self._text = dict.fromkeys(TABLES, "")  # of a table, as it stands on disk

    def restore(self, last: int) -> None:
        """Go on behind round `last`: what came later is done again.

        The text of the tables stays as it is. Raises `integrity.DamagedError` if it is not what was
        written.
        """
        state = integrity.read_state(self.folder) if last else None
        for name in TABLES if state else ():
            assert state is not None
            self._text[name] = integrity.table_start(self.folder, state, name)
        self.events.keep_rounds(last)

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
            rows = self.rows[name][self._written[name] :]
            frame = pd.DataFrame(rows, columns=runs.COLUMNS[name])
            text = self._text[name]
            self._text[name] = text + frame.to_csv(index=False, header=not text)
            self._written[name] = len(self.rows[name])
            with runs.atomic(self.folder / f"{name}.csv") as beside:
                beside.write_text(self._text[name])
