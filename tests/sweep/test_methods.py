"""What can be swept, and what a file of settings may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys_emb.embeddings.base import backend_registry
from recsys_emb.embeddings.posttraining import posttraining_registry
from recsys_emb.errors import UserError
from recsys_emb.sweep.methods import Choice, chosen_methods, known_methods

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_every_registered_method_can_be_swept() -> None:
    methods = known_methods()
    for kind, registry in (("trained", backend_registry), ("after", posttraining_registry)):
        assert {m.uses for m in methods.values() if m.kind == kind} == set(registry.names())
    assert all(m.own_size or m.budgets for m in methods.values())
    tuned = {name for name, m in methods.items() if m.choices == (Choice(finetune={}),)}
    assert tuned == {f"{name}, trained on" for name in set(posttraining_registry.names()) - {"fp16", "int8", "int4"}}
    assert all(m.choices == (Choice(),) for name, m in methods.items() if name not in tuned)


def test_full_tables_come_first_whatever_was_chosen() -> None:
    assert [m.name for m in chosen_methods(["qr", "pq", "hash"])] == ["full", "qr", "pq", "hash"]
    assert {m.name for m in chosen_methods()} == set(known_methods())


def test_the_settings_of_the_experiments_are_options_of_their_methods() -> None:
    methods = chosen_methods(settings=EXPERIMENTS / "sweep.yaml")
    assert {m.name for m in methods} == set(known_methods())
    assert max(len(m.choices) for m in methods) == 3
    assert sum(len(m.choices) > 1 for m in methods) == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("hsh: {choices: [{}]}", "hsh: unknown method; allowed: full, "),
        ("mine: {uses: hsh}", "mine.uses: hsh: unknown method; allowed: full, "),
        ("hash: {choices: [{options: {balanc: 1}}]}", "hash: options.balanc: unknown key (did you mean 'balance'?)"),
        ("int8: {choices: [{options: {scales: fp8}}]}", "int8: options.scales: input should be 'fp32' or 'fp16'"),
        ("hash: {choice: []}", "hash.choice: unknown key (did you mean 'choices'?); allowed: uses, choices"),
        ("hash: {choices: [{l2: -1}]}", "hash.choices.0.l2: input should be greater than or equal to 0, got -1"),
        ("pq: {choices: [{l2: 0.1}]}", "pq: l2: is of trainings"),
        ("hash: {choices: []}", "hash.choices: "),
        ("hash: {choices: [{finetune: {}}]}", "hash: finetune: goes with post-training methods"),
        ("pq: {choices: [{finetune: {epoch: 1}}]}", "pq: finetune.epoch: unknown key (did you mean 'epochs'?)"),
        ("full: {choices: [{}, {l2: 0.1}]}", "full: takes one choice"),
        ("- hash", "expected a mapping with methods"),
    ],
)
def test_a_mistake_in_settings_is_one_line(settings: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(settings)
    with pytest.raises(UserError) as error:
        chosen_methods(settings=file)
    assert str(error.value).startswith(f"--settings {file}: {message}")


def test_an_unknown_method_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"--methods hsh: unknown method; allowed: full, .*hash"):
        chosen_methods(["hash", "hsh"])
