"""Whole searches on tiny runs: what a trial leaves, resuming, duplicates, processes, mistakes."""

from __future__ import annotations

import errno
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from recsys_emb.config import load_config
from recsys_emb.errors import UserError
from recsys_emb.search import study as studying
from recsys_emb.search.bases import Bases
from recsys_emb.search.config import Search
from recsys_emb.search.objective import Infeasible, TrainObjective, TrialReporter, planned_bytes, quiet_optuna
from recsys_emb.search.run import run_search
from recsys_emb.search.terminal import notes, quiet
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.task import ClickThrough
from recsys_emb.training.trainer import TrainingState
from tests.search.conftest import RATE, WIDTHS, MakeSearch

MAIN = ClickThrough.main


def run(search: Search, out: Path, trials: int, reporter: Any = None, **more: Any) -> dict[str, Any]:
    return run_search(search, out, trials, reporter or Silent(), quiet, **more)


def rows(out: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(out / "trials.parquet").to_dicts()


def study_of(out: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(out / "journal.log")))
    return optuna.load_study(study_name="search", storage=storage)


def drawn(out: Path) -> list[tuple[Any, ...]]:
    """What a study is, without its times."""
    return [(t.number, t.state, t.values, t.params, t.user_attrs["outcome"]) for t in study_of(out).trials]


class Stops(Silent):
    """Raises at a step, counted over all trainings."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error = at, error

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        self.at -= 1
        if self.at == 0:
            raise self.error


def test_a_search_under_a_budget(make_search: MakeSearch, tmp_path: Path) -> None:
    search = make_search(
        "embedding.backend=field_dim",
        budget="0.4",
        space=WIDTHS | RATE,
        baselines=["full", "uniform"],
        sampler="random",
    )
    out = tmp_path / "out"
    summary = run(search, out, 4)
    assert summary == json.loads((out / "search.json").read_text())
    found = rows(out)
    trials = [r for r in found if r["enqueued"] is None]
    complete = [r for r in found if r["state"] == "complete"]
    infeasible = [r for r in found if r["state"] == "infeasible"]

    assert sum(r["state"] == "complete" for r in trials) == 4
    for row in complete:
        figures = [m["auc"] for m in load_run(out / row["run"]).metrics() if m["event"] == "eval"]
        assert row["auc"] == max(figures)
        assert row["serving_bytes"] <= search.budget
    assert infeasible
    assert {p.name for p in (out / "trials").iterdir()} == {f"{r['number']:04d}" for r in trials if r["auc"]}
    assert all(r["auc"] is None and r["serving_bytes"] > search.budget for r in infeasible)
    full, uniform = (next(r for r in found if r["enqueued"] == name) for name in ("full", "uniform"))
    assert full["state"] == "infeasible"
    assert full["serving_bytes"] == search.full_bytes
    assert uniform["serving_bytes"] == search.budget  # 1 of 4 columns, and the first-order one in both

    winner = next(r for r in found if r["winner"])
    assert winner["auc"] == max(r["auc"] for r in complete)
    tested = {r["run"] for r in complete if (out / r["run"] / "DONE").exists()}
    best_trial = max((r for r in complete if not r["enqueued"]), key=lambda r: r["auc"])
    assert tested == {best_trial["run"]} | {r["run"] for r in complete if r["enqueued"]}
    best = load_config(out / "best.yaml")
    best = best.at_state_of(best.data.open())
    assert best == load_run(out / winner["run"]).config
    report = load_run(out / winner["run"]).report
    assert summary["winner"]["test"]["auc"] == report["auc"]
    assert summary["winner"]["serving_bytes"] == report["serving_bytes"]
    widths = best.embedding.options.model_dump().get("widths")  # None where the baseline won, on full tables
    assert summary["winner"]["widths"] == widths
    assert (widths is None) == (winner["enqueued"] is not None)
    assert (out / "report.html").is_file()
    assert any("no trial beat" in note for note in notes(summary)) == bool(winner["enqueued"])


def test_baselines_get_the_settings_that_were_searched_and_the_lead_its_spread(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    space = RATE | {"embedding.backend": {"choices": ["hash", "low_rank"]}}
    search = make_search("training.epochs=1", budget="0.6", space=space, baselines=["full", "uniform"])
    out = tmp_path / "out"
    summary = run(search, out, 3, seeds=3)
    found = {r["enqueued"] or r["number"]: r for r in rows(out)}
    best = max((r for name, r in found.items() if isinstance(name, int)), key=lambda r: r["auc"])
    tuned = found.pop(f"uniform, settings of trial {best['number']}")
    assert list(found) == ["full", "uniform", 0, 1, 2]  # full is too large, whatever its learning rate
    base, mine, theirs = (load_run(out / r["run"]).config for r in (found["uniform"], tuned, best))
    assert mine.training == theirs.training != base.training
    assert mine.embedding == base.embedding

    lead = summary["lead"]
    rule = max(tuned, found["uniform"], key=lambda r: r["auc"])
    assert (lead["trial"], lead["baseline"]) == (f"trial {best['number']}", rule["enqueued"])
    assert lead["seeds"] == [1, 2, 3]
    for row, values in ((best, lead["trial_test"]), (rule, lead["baseline_test"])):
        runs = [load_run(out / f"{row['run']}{seed}") for seed in ("", "-seed2", "-seed3")]
        assert [r.config.seed for r in runs] == [1, 2, 3]
        assert [r.report["auc"] for r in runs] == values
        assert len({r.config.model_copy(update={"seed": 0}).model_dump_json() for r in runs}) == 1
    ahead = [a - b for a, b in zip(lead["trial_test"], lead["baseline_test"])]
    assert lead["mean"] == pytest.approx(sum(ahead) / 3)
    assert lead["std"] == pytest.approx((sum((x - lead["mean"]) ** 2 for x in ahead) / 2) ** 0.5)
    assert 0 < lead["stderr"] < 0.1
    assert f"{lead['mean']:+.5f} ± {lead['std']:.5f} over 3 seeds" in " ".join(notes(summary))

    again = run(search, out, 3, Stops(1, AssertionError("trained again")), resume=True)
    assert again["lead"]["seeds"] == [1]  # what is not asked for is not shown
    assert again["lead"]["std"] is None


def test_same_seed_same_study_also_when_stopped(make_search: MakeSearch, tmp_path: Path) -> None:
    search = make_search("training.epochs=1", space=RATE, baselines=[])
    whole, other, stopped = (tmp_path / n for n in ("whole", "other", "stopped"))
    run(search, whole, 3)
    with pytest.raises(KeyboardInterrupt):
        run(search, stopped, 3, Stops(7, KeyboardInterrupt()))  # in the second trial
    assert [t.state for t in study_of(stopped).trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    with open(stopped / "journal.log", "a") as file:
        file.write('{"op_code": 4, "work')  # a line that was being written
    first = (stopped / "trials/0000/metrics.jsonl").stat().st_mtime_ns
    run(search, stopped, 3, resume=True)
    assert drawn(stopped) == drawn(whole)
    assert (stopped / "trials/0000/metrics.jsonl").stat().st_mtime_ns == first  # nothing finished was done again

    again = rows(stopped)
    run(search, stopped, 3, Stops(1, AssertionError("trained again")), resume=True)
    assert rows(stopped) == again
    run(make_search("training.epochs=1", space=RATE, seed=2), other, 1)
    assert drawn(other)[0] != drawn(whole)[0]


def test_a_full_disk_ends_in_one_line_and_continues(make_search: MakeSearch, tmp_path: Path) -> None:
    search = make_search("training.epochs=1", space=RATE)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left on device; nothing finished is lost") as error:
        run(search, tmp_path / "out", 2, Stops(7, full))
    assert error.value.errno == errno.ENOSPC
    run(search, tmp_path / "out", 2, resume=True)
    assert [r["state"] for r in rows(tmp_path / "out")] == ["complete", "complete"]


def test_a_database_that_fails_ends_in_one_line(
    make_search: MakeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise StorageInternalError from ValueError("database or disk is full [SQL: UPDATE trials]")

    url = f"sqlite:///{tmp_path}/studies.db"
    search = make_search("training.epochs=1", space=RATE)
    with monkeypatch.context() as patched:
        patched.setattr(optuna.storages.RDBStorage, "set_trial_user_attr", fails)
        said = "cannot be read or written, database or disk is full; nothing finished is lost"
        with pytest.raises(OSError, match=said) as error:
            run(search, tmp_path / "out", 2, storage=url)
    assert error.value.filename == url
    run(search, tmp_path / "out", 2, storage=url, resume=True)
    assert [r["state"] for r in rows(tmp_path / "out")] == ["complete", "complete"]


def test_crashed_trials_fail_and_duplicates_are_not_trained(
    make_search: MakeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studying, "PATIENCE", 4)
    space = {"training.learning_rate": {"choices": [0.01, 1e30]}}
    out = tmp_path / "out"
    summary = run(make_search("training.epochs=1", space=space, sampler="random"), out, 50)
    found = rows(out)
    by_state = {s: [r for r in found if r["state"] == s] for s in ("complete", "failed", "duplicate")}
    assert len(by_state["complete"]) == len(by_state["failed"]) == 1
    assert len(list((out / "trials").iterdir())) == 2
    assert "diverged" in by_state["failed"][0]["message"]
    assert by_state["failed"][0]["auc"] is None
    assert len(by_state["duplicate"]) >= 4
    for row in by_state["duplicate"]:
        original = next(r for r in found if row["message"] == f"the same as trial {r['number']}")
        assert (row["run"], row["auc"]) == (original["run"], original["auc"])
    assert summary["winner"]["number"] == by_state["complete"][0]["number"]
    assert notes(summary) == [
        "50 trials were asked for, the space gave 2: in the end all that was drawn was over the budget, or tried before"
    ]
    failed = study_of(out).trials[by_state["failed"][0]["number"]]
    assert failed.state == TrialState.FAIL
    assert failed.values is None


def test_pruned_trials_report_at_every_evaluation(make_search: MakeSearch, tmp_path: Path) -> None:
    space = {"training.learning_rate": {"float": [1e-9, 0.05], "log": True}}
    search = make_search("training.eval_every=2", space=space, pruner="halving", sampler="random", seed=3)
    out = tmp_path / "out"
    run(search, out, 5)
    pruned = [r for r in rows(out) if r["state"] == "pruned"]
    assert pruned
    for row in pruned:
        trial = study_of(out).trials[row["number"]]
        evaluations = [m for m in load_run(out / row["run"]).metrics() if m["event"] == "eval"]
        assert list(trial.intermediate_values.values())[: len(evaluations)] == [m["auc"] for m in evaluations]
        assert row["auc"] == trial.intermediate_values[trial.last_step]
        assert not (out / row["run"] / "checkpoints").exists()


def test_a_continued_trial_reports_no_evaluation_twice() -> None:
    with quiet_optuna():
        study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
        study.add_trial(optuna.create_trial(value=0.8, intermediate_values={512: 0.7, 1024: 0.8}))
        trial = study.ask()
        trial.report(0.75, 512)
        reporter = TrialReporter(trial, MAIN, Silent(), prunes=True)
        reporter.evaluation(TrainingState(samples=512), {"auc": 0.1}, False)
        assert study.trials[1].intermediate_values == {512: 0.75}
        with pytest.raises(optuna.TrialPruned, match=r"AUC 0\.30000 after 1,024 rows"):
            TrialReporter(study.ask(), MAIN, Silent(), prunes=True).evaluation(
                TrainingState(samples=1024), {"auc": 0.3}, False
            )


def test_pareto_with_nsga2(make_search: MakeSearch, tmp_path: Path) -> None:
    search = make_search(
        "embedding.backend=field_dim", "training.epochs=1", space=WIDTHS, mode="pareto", sampler="nsga2"
    )
    out = tmp_path / "out"
    summary = run(search, out, 4)
    found = [r for r in rows(out) if r["state"] == "complete"]
    beaten = [
        any(
            o["auc"] >= r["auc"] and o["serving_bytes"] <= r["serving_bytes"] and o["number"] != r["number"]
            for o in found
        )
        for r in found
    ]
    assert [r["pareto"] for r in found] == [not b for b in beaten]
    assert [t.values for t in study_of(out).trials] == [[r["auc"], r["serving_bytes"]] for r in found]
    assert summary["hypervolume"] > 0


def test_supernet_scores_then_trains_the_best(make_search: MakeSearch, tmp_path: Path) -> None:
    search = make_search(
        "embedding.backend=field_dim",
        "training.epochs=1",
        budget="0.6",
        space=WIDTHS,
        scoring="supernet",
        retrain=3,
        baselines=["uniform_widths"],
    )
    out = tmp_path / "out"
    summary = run(search, out, 8)
    candidates = pl.read_parquet(out / "candidates.parquet").to_dicts()
    scored = [c for c in candidates if c["state"] == "complete"]
    assert sum(c["enqueued"] is None for c in scored) == 8
    assert not (out / "trials").exists()
    best = sorted(scored, key=lambda c: (-c["score"], c["number"]))
    trained = rows(out)
    retrained = {r["number"]: r for r in trained if r["number"] is not None}
    widths = [tuple(v for k, v in r.items() if k.startswith("param:")) for r in retrained.values()]
    assert len(set(widths)) == len(retrained) == 3  # those narrowed to the same are trained once
    assert best[0]["number"] in retrained
    for candidate in best:
        if row := retrained.get(candidate["number"]):
            assert row["state"] == "complete"
            assert row["serving_bytes"] <= candidate["serving_bytes"]
            assert row["score"] >= candidate["score"] - 3 * search.config.narrow  # of three groups of tables
            assert all(row[k] in (0, v) for k, v in candidate.items() if k.startswith("param:"))
    assert summary["correlation"]["n"] == 3
    assert [r["enqueued"] for r in trained if r["number"] is None] == ["uniform_widths"]
    assert summary["winner"]["valid_auc"] == max(r["auc"] for r in trained)


def test_two_processes_on_one_study(make_search: MakeSearch, tmp_path: Path) -> None:
    search = make_search("training.epochs=1", space=RATE, sampler="random")
    url = f"sqlite:///{tmp_path}/studies.db"
    out = tmp_path / "out"
    run(search, out, 4, jobs=2, storage=url, name="both")
    found = rows(out)
    assert [r["state"] for r in found] == ["complete"] * 4
    assert len({r["run"] for r in found}) == 4
    study = optuna.load_study(study_name="both", storage=url)
    assert [t.number for t in study.trials] == [0, 1, 2, 3]
    alone = tmp_path / "alone"
    run(search, alone, 4)  # a trial's seed is its number, so random draws are the same however many draw
    assert [t.params for t in study.trials] == [t.params for t in study_of(alone).trials]
    with pytest.raises(UserError, match=r"--study both: exists in sqlite:.*; continue it with --resume"):
        run(search, tmp_path / "third", 4, storage=url, name="both")
    elsewhere = tmp_path / "elsewhere"  # another folder on the same study: its trials stay where they are
    run(search, elsewhere, 5, storage=url, name="both", resume=True)
    folders = [elsewhere / r["run"] for r in rows(elsewhere)]
    assert [f.parent.parent for f in folders] == [out] * 4 + [elsewhere]
    assert all((f / "config.yaml").is_file() for f in folders)


def test_an_infeasible_trial_takes_the_least_that_its_method_can(make_search: MakeSearch) -> None:
    search = make_search("embedding.backend=field_dim", budget="1KB", space=RATE)
    with pytest.raises(Infeasible, match="12,424 bytes, the budget is 1,000") as found:
        planned_bytes(search, search.run_config({}))
    assert f"{found.value.bytes:,} bytes" in str(found.value)
    assert found.value.bytes < search.full_bytes
    assert found.value.excess == found.value.bytes / 1000 - 1


class KillsOne(Silent):
    """Kills the first process that takes a step, as the system does when memory runs out."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        with suppress(FileExistsError):
            self.mark.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_in_one_line_and_continues(make_search: MakeSearch, tmp_path: Path) -> None:
    search, out = make_search("training.epochs=1", space=RATE), tmp_path / "out"
    with pytest.raises(ChildProcessError, match="a process of the search was killed; nothing finished is lost"):
        run(search, out, 3, KillsOne(tmp_path / "killed"), jobs=2)
    run(search, out, 3, jobs=2, resume=True)
    assert [r["state"] for r in rows(out)] == ["complete"] * 3


def test_processes_end_with_their_search(
    make_search: MakeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, out = make_search("training.epochs=1", space=RATE), tmp_path / "out"
    run(search, out, 1)
    place = studying.Place(out, "search")
    monkeypatch.setattr(studying, "orphaned", lambda: True)
    studying.Job(search, place, TrainObjective(search, out, Silent(), Bases(out)), 2, quiet).work()
    assert len(study_of(out).trials) == 1


def test_mistakes_end_in_one_line(make_search: MakeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studying, "PATIENCE", 5)
    search = make_search("training.epochs=1", space=RATE)
    with pytest.raises(UserError, match="holds no search to continue"):
        run(search, tmp_path / "none", 1, resume=True)
    with pytest.raises(UserError, match=r"--storage studies\.db: expected an SQL URL"):
        run(search, tmp_path / "a", 1, storage="studies.db")
    with pytest.raises(UserError, match=r"--storage sqlite:////no/where.db: cannot be opened"):
        run(search, tmp_path / "b", 1, storage="sqlite:////no/where.db")
    with pytest.raises(UserError, match="none of 5 candidates fits in 1,000 bytes; the smallest that was drawn takes"):
        run(make_search("training.epochs=1", space=RATE, budget="1KB"), tmp_path / "small", 1)
    wide = {"embedding.options.widths.*": {"choices": [2, 4]}}
    scored = make_search("embedding.backend=field_dim", space=wide, budget="1KB", scoring="supernet")
    with pytest.raises(UserError, match=r"the smallest widths of the space take [\d,]+ bytes, the budget is 1,000;"):
        run(scored, tmp_path / "wide", 1)
    assert not (tmp_path / "wide" / "supernet").exists()
    run(search, tmp_path / "out", 1)
    with pytest.raises(UserError, match="exists already; continue it with --resume"):
        run(search, tmp_path / "out", 1)
    other = make_search("training.epochs=2", space=RATE, sampler="random")
    with pytest.raises(UserError, match=r"--study search: .* belongs to another search \(its base, sampler differs\)"):
        run(other, tmp_path / "out", 1, resume=True)


def test_a_folder_is_that_of_one_study(make_search: MakeSearch, tmp_path: Path) -> None:
    """Their trials have the same numbers, and so the same folders."""
    search, out = make_search("training.epochs=1", space=RATE), tmp_path / "out"
    run(search, out, 1)
    before = (out / "best.yaml").read_bytes()
    other = make_search("training.epochs=1", space=RATE, sampler="random")
    for mine in (search, other):
        with pytest.raises(UserError, match=r"out: belongs to study search in .*journal.log; give this one another --"):
            run(mine, out, 1, resume=True, name="other")
    assert (out / "best.yaml").read_bytes() == before


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    place = studying.Place(tmp_path, "a", "postgresql://me:secret@host/db")
    assert place.text == "postgresql://me:***@host/db"
    with pytest.raises(UserError, match=r"--storage postgresql://me:\*\*\*@host/db: cannot be opened"):
        place.storage()


def test_one_search_a_folder(make_search: MakeSearch, tmp_path: Path) -> None:
    search, out = make_search("training.epochs=1", space=RATE), tmp_path / "out"

    class Second(Silent):
        def step(self, progress: TrainingState, steps: int, loss: float) -> None:
            with pytest.raises(UserError, match="another process is searching here"):
                run(search, out, 1, resume=True)

    run(search, out, 1, Second())
