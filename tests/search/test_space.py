"""Spaces: what YAML means, what is drawn, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from recsys_emb.errors import UserError
from recsys_emb.search.space import grouped, parse_space
from tests.search.conftest import RATE, WIDTHS, MakeSearch

TABLES = {"user": 1000, "item": 500, "city": 20, "sex": 3}


def test_every_form_draws_what_it_says() -> None:
    raw = {
        "a.x": {"float": [1e-4, 1e-2], "log": True},
        "a.y": {"int": [2, 10], "step": 4},
        "a.z": {"choices": [[400, 400], None, "no", True]},
    }
    space = parse_space(raw, TABLES, "space")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggest(study.ask()) for _ in range(60)]
    assert all(1e-4 <= d["a", "x"] <= 1e-2 for d in drawn)
    assert {d["a", "y"] for d in drawn} == {2, 6, 10}
    values = [d["a", "z"] for d in drawn]
    assert all(v in values for v in ([400, 400], None, "no", True))


def test_a_star_stands_for_every_table() -> None:
    space = parse_space({"w.*": {"choices": [0, 1]}}, TABLES, "space")
    assert [p.name for p in space.params] == ["w.user", "w.item", "w.city", "w.sex"]
    assert space.params[1].paths == (("w", "item"),)


def test_tables_of_like_cardinality_share_a_value() -> None:
    space = parse_space({"w.*": {"choices": [0, 1], "groups": 2}}, TABLES, "space")
    assert [p.name for p in space.params] == ["w.sex+city", "w.item+user"]
    point = space.suggest(FixedTrial({"w.sex+city": 0, "w.item+user": 1}))
    assert point == {("w", "sex"): 0, ("w", "city"): 0, ("w", "item"): 1, ("w", "user"): 1}
    assert grouped(TABLES, 4) == [["user"], ["item"], ["city"], ["sex"]]


def test_choices_bring_their_own_paths() -> None:
    raw = {"b": {"choices": {"full": {}, "qr": {"o.p": {"int": [2, 3]}}, "hash": {"o.p": {"choices": [7]}}}}}
    space = parse_space(raw, TABLES, "space")
    assert space.suggest(FixedTrial({"b": "full"})) == {("b",): "full"}
    assert space.suggest(FixedTrial({"b": "qr", "o.p[qr]": 3})) == {("b",): "qr", ("o", "p"): 3}
    assert space.params_of({"b": "hash", "o": {"p": 7}}) == {"b": "hash", "o.p[hash]": 7}
    assert space.params_of({"b": "hash", "o": {"p": 8}}) is None
    assert space.params_of({"b": "robe"}) is None


def test_a_drawn_config_leads_back_to_what_was_drawn(make_search: MakeSearch) -> None:
    search = make_search("embedding.backend=field_dim", space=WIDTHS | RATE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        config = search.run_config(search.space.suggest(trial))
        assert search.space.params_of(config.model_dump(mode="json")) == trial.params


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"training.learning_rat": {"float": [0.1, 0.2]}}, "did you mean 'learning_rate'"),
        ({"trainin.epochs": {"int": [1, 2]}}, "trainin: unknown key (did you mean 'training'?)"),
        ({"training.epochs": {"float": [1.0, 2.0]}}, "training.epochs: input should be a valid integer"),
        ({"training.epochs": {"int": [0, 2]}}, "training.epochs: input should be greater than or equal to 1, got 0"),
        ({"training.precision": {"choices": ["fp32", "fp8"]}}, "got 'fp8'"),
        ({"training.epochs.more": {"int": [1, 2]}}, "training.epochs is a value, not a section"),
        ({"training.learning_rate": {"float": [0.2, 0.1]}}, "low <= high"),
        ({"training.learning_rate": {"float": [0.0, 0.1], "log": True}}, "low > 0"),
        ({"training.learning_rate": {"float": [0.1, 0.2], "stp": 1}}, "learning_rate.stp: unknown key"),
        ({"training.learning_rate": {"uniform": [0.1, 0.2]}}, "expected one of choices, int, float"),
        ({"training.learning_rate": {"choices": []}}, "learning_rate.choices"),
        ({"training.learning_rate": 0.1}, "expected one of choices, int, float"),
        ({"training.epochs": {"int": [1, 2], "groups": 3}}, "groups goes with a path that has *"),
        ({"embedding.backend": {"choices": {"qrr": {}}}}, "did you mean 'qr'"),
        (
            {"embedding.backend": {"choices": {"qr": {"embedding.options.combin": {"choices": ["add"]}}}}},
            "did you mean 'combine'",
        ),
        ({"data.path": {"choices": ["a", "b"]}}, "trials are compared on one dataset"),
        ({}, "empty"),
    ],
)
def test_mistakes_are_one_line(make_search: MakeSearch, space: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_search(space=space)
    assert message in str(error.value)
    assert "search.yaml: space" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"smapler": "tpe"}, "smapler: unknown key (did you mean 'sampler'?)"),
        ({"budget": "much"}, "'much' is not a size"),
        ({"mode": "pareto", "pruner": "median"}, "median does not go with mode: pareto"),
        ({"scoring": "supernet"}, "a supernet scores widths alone"),
        ({"base": "none.yaml"}, "none.yaml: No such file"),
        ({"base": "search.yaml"}, "search.yaml is a search itself; name the YAML file of a run"),
        (
            {"set": ["embedding.backend=field_dim"], "space": {"embedding.options.widths.no": {"choices": [1, 2]}}},
            "space.embedding.options.widths.no: embedding.options.widths.no: no such table",
        ),
        (
            {"set": ["embedding.backend=field_dim"], "space": {"embedding.options.widths.C1": {"choices": [1, 99]}}},
            "space.embedding.options.widths.C1: embedding.options.widths.C1: 99 is too wide",
        ),
        ({"set": ["training.epoch=3"]}, "did you mean 'epochs'"),
    ],
)
def test_mistakes_around_a_space(make_search: MakeSearch, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_search(**{"space": RATE} | keys)
    assert message in str(error.value)


def test_ready_made_spaces_fit_their_base(prepared: Path) -> None:
    from recsys_emb.search.config import load_search

    files = sorted(Path("experiments/search").glob("*.yaml"))
    assert len(files) >= 3
    for path in files:
        search = load_search(path, [f"data.path={prepared}"], ["0.25"])
        assert search.budget == search.full_bytes // 4
