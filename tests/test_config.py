"""Configs: what is accepted comes back equal, what is not is refused by the name of its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recsys_emb.config import RunConfig, dump_config, load_config, parse_config
from recsys_emb.errors import UserError

SMALL = {"data": {"path": "d"}, "model": {"name": "deepfm"}}


def write(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_dump_and_load_round_trip(tmp_path: Path) -> None:
    tree = {
        **SMALL,
        "model": {"name": "autoint", "embedding_dim": 8, "heads": 4},
        "embedding": {"backend": "qr", "budget": "20MB", "options": {"combine": "add"}},
        "training": {"epochs": 3, "learning_rate": 0.01},
    }
    config = parse_config(tree)
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert config.model.heads == 4
    assert config.embedding.options.combine == "add"


def test_overrides_are_yaml_values(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    overrides = ["training.epochs=7", "training.learning_rate=1e-2", "model.hidden=[8, 4]", "embedding.budget=0.25"]
    config = load_config(path, overrides)
    assert config.training.epochs == 7
    assert config.training.learning_rate == 0.01
    assert config.model.hidden == (8, 4)
    assert config.embedding.budget == 0.25


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"trainning": {}}, ["trainning: unknown key", "did you mean 'training'", "allowed: task, data, model"]),
        ({"training": {"epoch": 3}}, ["training.epoch: unknown key", "did you mean 'epochs'", "batch_size"]),
        ({"training": {"epochs": 0}}, ["training.epochs", "greater than or equal to 1", "got 0"]),
        ({"training": {"epochs": "many"}}, ["training.epochs", "integer", "got 'many'"]),
        ({"training": {"precision": "fp64"}}, ["training.precision", "'fp32', 'tf32', 'bf16' or 'auto'", "got 'fp64'"]),
        ({"model": {"name": "deepfmm"}}, ["unknown model 'deepfmm'", "did you mean 'deepfm'", "autoint"]),
        ({"model": {"name": "deepfm", "heads": 2}}, ["model.heads: unknown key", "hidden"]),
        ({"model": {"embedding_dim": 2}}, ["model.name: missing", "deepfm"]),
        ({"embedding": {"backend": "ful"}}, ["unknown backend 'ful'", "did you mean 'full'"]),
        ({"embedding": {"budget": "20 bananas"}}, ["embedding.budget", "20 bananas", "20MB"]),
        ({"embedding": {"budget": -1}}, ["embedding.budget", "-1", "ratio"]),
        ({"embedding": {"budget": True}}, ["embedding.budget", "True", "ratio"]),
        ({"embedding": {"options": {"rows": 3}}}, ["embedding.options.rows: unknown key"]),
        ({"embedding": {"options": 3}}, ["embedding.options", "mapping"]),
        ({"data": {}}, ["data.path: missing"]),
        ({"device": "tpu"}, ["device", "'auto', 'cpu' or 'cuda'", "tpu"]),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(tmp_path: Path, change: dict, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, {**SMALL, **change}))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [("a: [", "line"), ("- 1", "expected a mapping"), ("\t", "YAML"), ("", "expected a mapping")],
)
def test_unreadable_files_end_in_one_line(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=part) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["training.epochs", "=3", "seed.x=1"])
def test_bad_overrides(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, {**SMALL, "seed": 3}), [override])
    assert "--set" in str(caught.value)


def test_every_field_has_a_default_that_validates() -> None:
    config = parse_config(SMALL)
    assert isinstance(config, RunConfig)
    assert config.training.embedding_optimizer == "adam"
    assert config.embedding.backend == "full"
