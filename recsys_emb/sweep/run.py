"""Runs a sweep: what is missing in its files, one figure after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_emb.config import RunConfig
from recsys_emb.errors import UserError
from recsys_emb.files import write_json
from recsys_emb.lock import LOCK, sole_writer
from recsys_emb.sweep.cells import Cell
from recsys_emb.sweep.methods import FULL, Choice, Method
from recsys_emb.sweep.results import Result, Row, best_trial, read_result, result_file, settings_of
from recsys_emb.training.run import check, group_of
from recsys_emb.training.runtime import environment
from recsys_emb.training.stop import StopMark

TRIAL_SEED, TRIAL_BUDGET = 1, 0.1

Tell = Callable[[int, Row], None]
"""Is told of each figure: the seed, and the row."""


@dataclass(frozen=True)
class Sweep:
    """What is compared, and where the figures go.

    A figure that stands in the results is not made again, so a sweep that was stopped goes on. A method's settings are
    chosen first: of its choices the one of the highest validation AUC on seed 1 at a budget of 1/10, or the next that
    the method can meet. Processes may share the work as long as no two have the same seed: what a run of one seed needs
    of another's is trained by whoever comes first, the others wait for it.

    Attributes:
        base: a run's config; its sections ``embedding`` and ``compact`` give way to each method.
        methods: of ``chosen_methods``, full tables first.
        budgets: ratios to the full tables.
        results: the folder of the files.
        runs: the folder of runs and artifacts.
        name: the files are ``NAME-SEED.json``.
        command: that makes them, for people.
    """

    base: RunConfig
    methods: Sequence[Method]
    budgets: Sequence[float]
    results: Path
    runs: Path
    name: str = "sweep"
    command: str = ""

    def check(self) -> None:
        """Raises UserError for what can be known before a training: the config, the budgets, the folder's own sweep."""
        for budget in self.budgets:
            if not 0 < budget <= 1:
                raise UserError(f"--budgets {budget:g}: allowed: ratios to the full tables above 0 and up to 1")
        schema = self.base.data.open().schema
        if group_of(self.base, schema).hashed:
            raise UserError(
                f"data.path {self.base.data.path}: its 63-bit hashes have no full tables to compare with; prepare the "
                "data without --ids hash64"
            )
        check(Cell(self.base, self.runs, TRIAL_SEED, FULL, None, FULL.choices[0]).config())
        for path in self._files():
            self._check_same(path, read_result(path))

    def seed(self, seed: int, tell: Tell, stop: StopMark) -> None:
        """Makes what is missing of one seed.

        Raises:
            UserError: another process has this seed, or a run cannot go on.
            Stopped: somebody asked; a later call goes on.
        """
        with sole_writer(self.runs / str(seed), f"seed {seed} of this sweep"):
            target = result_file(self.results, self.name, seed)
            target.parent.mkdir(parents=True, exist_ok=True)
            new: Result = {"command": self.command, "seed": seed, "config": self._compared(), "trials": {}, "rows": []}
            result = read_result(target) if target.exists() else new
            _write(target, result)
            present = {(row["method"], row["budget"]) for row in result["rows"]}
            for method in self.methods:
                missing = [budget for budget in self.cells(method) if (method.name, budget) not in present]
                if missing and method.name not in result["trials"] and len(method.choices) > 1:
                    result["trials"][method.name] = self._trials(method, stop)
                    _write(target, result)
                choice = method.choices[best_trial(result["trials"].get(method.name, []))]
                for budget in missing:
                    stop.check()
                    found = self._cell(seed, method, budget, choice).figures(stop)
                    row = {"method": method.name, "budget": budget, **choice.model_dump(), **found}
                    result["rows"].append(row)
                    _write(target, result)
                    tell(seed, row)

    def cells(self, method: Method) -> Iterator[float | None]:
        """The budgets of a method; None stands for its own size."""
        if method.own_size:
            yield None
        if method.budgets:
            yield from self.budgets

    def _cell(self, seed: int, method: Method, budget: float | None, choice: Choice) -> Cell:
        return Cell(self.base, self.runs, seed, method, budget, choice, self.methods[0])

    def _files(self) -> list[Path]:
        return sorted(self.results.glob(f"{self.name}-[0-9]*.json"))

    def _trials(self, method: Method, stop: StopMark) -> list[Row]:
        """Validation AUC of each choice, or why there is none; as another seed's results have it, or made."""
        for file in self._files():
            known = read_result(file)["trials"]
            if method.name in known:
                return list(known[method.name])
        rows: list[Row] = []
        budgets = sorted(b for b in self.budgets if b >= TRIAL_BUDGET) or [max(self.budgets)]
        for budget in budgets if method.budgets else [None]:
            rows = [self._trial(method, budget, choice, stop) for choice in method.choices]
            if any("valid_auc" in row for row in rows):
                break
        return rows

    def _trial(self, method: Method, budget: float | None, choice: Choice, stop: StopMark) -> Row:
        stop.check()
        found = self._cell(TRIAL_SEED, method, budget, choice).figures(stop)
        told = ("valid_auc", "serving_bytes", "error", "least_bytes")
        kept: Row = {key: found[key] for key in told if key in found}
        return {**choice.model_dump(), "seed": TRIAL_SEED, "budget": budget, **kept}

    # -- one folder, one sweep ----------------------------------------------------------------------------------------

    def _compared(self) -> dict[str, Any]:
        """The part of the config that all figures have in common."""
        tree = self.base.model_dump(mode="json")
        return {key: tree[key] for key in tree if key not in ("seed", "embedding", "compact")} | {
            "embedding": {"init_std": tree["embedding"]["init_std"]}
        }

    def _check_same(self, path: Path, result: Result) -> None:
        """Raises UserError when a file is of another config, or has a method at settings that are no choice here."""
        there, here = _flat(result.get("config", {})), _flat(self._compared())
        for key in there:
            if there[key] != here.get(key):
                raise UserError(
                    f"{path}: of a sweep with another config ({key}: {there[key]} there, {here.get(key)} here); name "
                    "another --out"
                )
        choices = {method.name: method.choices for method in self.methods}
        for row in result["rows"]:
            made = settings_of(row)
            if "options" in row and made not in choices.get(row["method"], (made,)):
                raise UserError(
                    f"{path}: has {row['method']} with settings that are no choice now ({made.in_words()}); name "
                    "another --out"
                )


def check_folder(sweep: Sweep) -> None:
    """Raises UserError when a folder that is for one sweep alone holds something else."""
    folder = sweep.results
    if folder.is_file():
        raise UserError(f"--out {folder}: is a file; name a folder")
    if folder.is_dir() and not list(folder.glob(f"{sweep.name}-[0-9]*.json")):
        others = [path.name for path in folder.iterdir() if path.name != LOCK and path != sweep.runs]
        if others:
            raise UserError(f"--out {folder}: holds {sorted(others)[0]}, but no sweep to continue; name a new folder")


def _write(target: Path, result: Result) -> None:
    """After each figure, whole or not at all."""
    machine = environment()
    write_json(target, {**result, "machine": {key: machine[key] for key in ("processor", "cpus", "packages")}})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
