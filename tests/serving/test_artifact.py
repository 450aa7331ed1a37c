"""Artifacts: bytes on disk, predictions equal to the run's, refusal of what is damaged or crafted."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys_emb import load_artifact
from recsys_emb.data.encode import prepare
from recsys_emb.data.folder import checksum
from recsys_emb.data.like import open_reference
from recsys_emb.data.options import make_source
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.embeddings.posttraining import list_posttraining
from recsys_emb.errors import UserError
from recsys_emb.report import artifact_table, compare
from recsys_emb.serving import compact, evaluate_artifact, write_artifact
from recsys_emb.training.run import evaluate, restore
from recsys_emb.training.run_dir import RunDir
from recsys_emb.training.stage_runner import predict_split
from tests.serving.conftest import train_run

RunOf = Callable[[str], RunDir]
every_backend = pytest.mark.parametrize("backend", backend_registry.names())
every_method = pytest.mark.parametrize("method", list_posttraining())


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors of a safetensors file, from its header alone; they fill the file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    total = sum(end - begin for begin, end in (entry["data_offsets"] for entry in header.values()))
    assert path.stat().st_size == 8 + length + total
    return total


def both_logits(run: RunDir, artifact: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the test split by the run and by the artifact."""
    dataset = open_dataset(run.config.data.path)
    model, precision = restore(run)
    loaded = load_artifact(artifact)
    return tuple(predict_split(m, dataset, "test", run.config, precision).logits for m in (model, loaded.model))


@every_backend
def test_the_file_has_the_bytes_that_were_promised(run_of: RunOf, tmp_path: Path, backend: str) -> None:
    run = run_of(backend)
    report = write_artifact(run, tmp_path / "a", evaluate=False)
    artifact = load_artifact(tmp_path / "a")
    stored = tensor_bytes(tmp_path / "a/embedding.safetensors")
    assert stored == report["serving_bytes"] == run.report["serving_bytes"] == artifact.serving_bytes
    assert stored == sum(item.nbytes for item in artifact.backend.storage())
    assert stored == sum(table["bytes"] for table in report["tables"])
    assert report["vocabulary_bytes"] == sum(f.stat().st_size for f in (tmp_path / "a/vocabularies").iterdir())
    network = tensor_bytes(tmp_path / "a/dense.safetensors")
    assert report["served_bytes"] == stored + report["vocabulary_bytes"] + network


@every_backend
def test_an_artifact_predicts_what_the_run_predicts(run_of: RunOf, tmp_path: Path, backend: str) -> None:
    run = run_of(backend)
    report = write_artifact(run, tmp_path / "a")
    before, after = both_logits(run, tmp_path / "a")
    assert torch.equal(before, after)
    assert before.std() > 0
    assert report["auc"] == run.report["auc"] == evaluate(run)["auc"]
    assert report["logit_error"] == {"max": 0.0, "mean": 0.0}
    figures = evaluate_artifact(load_artifact(tmp_path / "a"), "valid")
    assert figures["unknown_share"] == open_dataset(run.config.data.path).unknown_share("valid")
    assert max(figures["unknown_share"].values()) > 0
    assert {k: v for k, v in evaluate(run, "valid").items() if k != "run"} == {
        k: v for k, v in figures.items() if k != "artifact"
    }


def test_codes_for_every_id_of_a_method_that_shares_rows_are_said_to_be_larger(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("hash")
    report = write_artifact(run, tmp_path / "a", "fp16", evaluate=False)
    assert report["trained_serving_bytes"] == run.report["serving_bytes"]
    assert report["serving_bytes"] == run.report["full_bytes"] / 2
    lines = [artifact_table({**report, "trained_serving_bytes": n}, tmp_path).row_count for n in (1, 10**9)]
    assert lines[0] == lines[1] + 1


@every_method
def test_compressed_bytes_and_deviation_are_those_reported(run_of: RunOf, tmp_path: Path, method: str) -> None:
    run = run_of("full")
    budget = 0.7 if method in ("prune", "svd", "drop_unseen") else None
    report = write_artifact(run, tmp_path / "a", method, budget)
    stored = tensor_bytes(tmp_path / "a/embedding.safetensors")
    assert stored == report["serving_bytes"] == load_artifact(tmp_path / "a").serving_bytes
    assert stored < run.report["serving_bytes"] * (budget or 1)
    assert report["ratio"] == stored / run.report["full_bytes"]
    assert report["backend"] == f"full+{method}"
    before, after = both_logits(run, tmp_path / "a")
    assert report["logit_error"]["max"] == float((before - after).abs().max())
    assert report["logit_error"]["mean"] == pytest.approx(float((before - after).abs().mean()), rel=1e-4)
    bound = {"fp16": 2e-4, "int8": 1e-3, "int4": 2e-2}.get(method)
    assert bound is None or 0 < report["logit_error"]["mean"] < bound


@pytest.mark.parametrize("backend", ["qr", "unified", "optembed"])
@every_method
def test_methods_follow_any_backend(run_of: RunOf, tmp_path: Path, backend: str, method: str) -> None:
    report = write_artifact(run_of(backend), tmp_path / "a", method, evaluate=False)
    assert tensor_bytes(tmp_path / "a/embedding.safetensors") == report["serving_bytes"]
    load_artifact(tmp_path / "a")


def test_an_artifact_needs_neither_run_nor_dataset(run_of: RunOf, tmp_path: Path, prepared: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    run = train_run(data, tmp_path / "run")
    write_artifact(run, tmp_path / "a")
    frame = artifact_rows(data)
    expected = load_artifact(tmp_path / "a").logits(frame)
    (tmp_path / "a").rename(tmp_path / "moved")
    shutil.rmtree(data)
    shutil.rmtree(tmp_path / "run")
    assert (load_artifact(tmp_path / "moved").logits(frame) == expected).all()
    with pytest.raises(UserError, match="is not on this machine; pass --data DIR"):
        evaluate_artifact(load_artifact(tmp_path / "moved"))
    figures = evaluate_artifact(load_artifact(tmp_path / "moved"), data=prepared)
    assert figures["auc"] == load_artifact(tmp_path / "moved").report["auc"]


def test_a_dataset_of_other_values_is_refused(tmp_path: Path) -> None:
    """Same fields and sizes, but an id means another value, or a dense value is scaled otherwise."""

    def data(name: str, letters: str = "abc", step: float = 1.0) -> Path:
        splits = ["train"] * 20 + ["valid"] * 10 + ["test"] * 10
        rows = [f"{i // 2 % 2},{letters[i % 3]},{i * step},{split}" for i, split in enumerate(splits)]
        raw = tmp_path / f"{name}.csv"
        raw.write_text("y,letter,x,part\n" + "\n".join(rows) + "\n")
        options = {"label": "y", "categorical": ["letter"], "dense": ["x"], "split": {"column": "part"}}
        prepare(make_source("table", raw, options=options), tmp_path / name)
        return tmp_path / name

    run = train_run(data("mine"), tmp_path / "run")
    write_artifact(run, tmp_path / "a")
    artifact = load_artifact(tmp_path / "a")
    assert evaluate_artifact(artifact, data=data("same"))["auc"] == run.report["auc"]
    values, scale = data("values", letters="xyz"), data("scale", step=2.0)
    for other, what in ((values, "vocabulary 'letter' holds other values"), (scale, "'x' is scaled by other stat")):
        for evaluated in (
            lambda other: evaluate_artifact(artifact, data=other),
            lambda other: evaluate(run, data=other),
        ):
            with pytest.raises(UserError, match=f"{other} was not prepared like .*: .*{what}.*--like ") as error:
                evaluated(other)
            assert "\n" not in str(error.value)
    raw = make_source("table", tmp_path / "values.csv", options=artifact.manifest.rows.options)
    prepare(raw, tmp_path / "like", like=open_reference(artifact.path))
    assert evaluate_artifact(artifact, data=tmp_path / "like")["rows"] == 10
    assert evaluate(run, data=tmp_path / "like")["rows"] == 10


def artifact_rows(data: Path) -> Any:
    manifest = open_dataset(data).manifest
    return next(make_source(manifest["source"], options=manifest["options"]).inputs()).frame


def test_artifacts_are_compared_with_runs(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("full")
    write_artifact(run, tmp_path / "same")
    write_artifact(run, tmp_path / "int8", "int8")
    write_artifact(run, tmp_path / "svd", "svd", budget="12kB")
    rows = {row["runs"][0]: row for row in compare([run.path, *(tmp_path / n for n in ("same", "int8", "svd"))])}
    assert [row["n"] for row in rows.values()] == [1, 1, 1, 1]
    assert rows["same"]["auc"] == rows["full"]["auc"]
    assert (rows["full"]["settings"], rows["same"]["settings"]) == ("", "artifact=yes")
    assert rows["svd"]["budget_bytes"] == 12000
    assert {row["backend"] for row in rows.values()} == {"full", "full+int8", "full+svd"}
    assert rows["svd"]["serving_bytes"] <= 12000


def test_figures_that_compact_left_out_come_from_evaluate(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("full")
    write_artifact(run, tmp_path / "a", "fp16", evaluate=False)
    with pytest.raises(UserError, match="no figures yet; run `recsys-emb evaluate"):
        compare([tmp_path / "a"])
    evaluate_artifact(load_artifact(tmp_path / "a"), "valid")
    assert load_artifact(tmp_path / "a").report["auc"] is None
    figures = evaluate_artifact(load_artifact(tmp_path / "a"))
    assert compare([tmp_path / "a"])[0]["auc"] == figures["auc"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "int9"}, "unknown post-training method 'int9'"),
        ({"options": {"ranks": [1]}}, "--option: options belong to a --method"),
        ({"budget": 0.5}, "--budget: the run's own form has one size"),
        ({"method": "int8", "budget": 0.01}, r"--budget: int8 cannot fit in [\d,]+ bytes; the least it can reach is"),
        ({"method": "int8", "budget": "many"}, "--budget: 'many' is not a size"),
        ({"method": "int8", "options": {"scale": 1}}, "--option scale: unknown key .*did you mean 'scales'"),
        ({"method": "svd", "options": {"weighting": "x"}}, "--option weighting: input should be"),
    ],
)
def test_mistakes_leave_nothing_behind(run_of: RunOf, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        write_artifact(run_of("full"), tmp_path / "a", evaluate=False, **arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(run_of: RunOf, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists already; name a new folder"):
        write_artifact(run_of("full"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unfinished_run_is_refused(run_of: RunOf, tmp_path: Path) -> None:
    shutil.copytree(run_of("full").path, tmp_path / "run")
    (tmp_path / "run/DONE").unlink()
    with pytest.raises(UserError, match="the run is not finished"):
        write_artifact(RunDir.open(tmp_path / "run"), tmp_path / "a")


def test_a_crash_leaves_nothing(run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compact, "load_artifact", crash)
    with pytest.raises(KeyboardInterrupt):
        write_artifact(run_of("full"), tmp_path / "a")
    assert not list(tmp_path.iterdir())


# -- damaged and crafted files ----------------------------------------------------------------------------------------


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changes artifact.json."""

    def damage(folder: Path) -> None:
        tree = json.loads((folder / "artifact.json").read_text())
        change(tree)
        (folder / "artifact.json").write_text(json.dumps(tree))

    return damage


def arrays(file: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Changes the arrays of a file, and its checksum as a forger would."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)
        edit(lambda t: t["checksums"].update({file: checksum(folder / file)}))(folder)

    return damage


def forge(file: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).write_bytes(content)
        edit(lambda t: t["checksums"].update({file: checksum(folder / file)}))(folder)

    return damage


def flip(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[-3] ^= 1
        (folder / file).write_bytes(content)

    return damage


def rename_vocabulary(name: str) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        schema = tree["schema"]
        schema["vocabularies"][name] = schema["vocabularies"].pop("C1")
        for field in schema["categorical"]:
            field["vocabulary"] = name if field["vocabulary"] == "C1" else field["vocabulary"]

    return change


E, D = "embedding.safetensors", "dense.safetensors"
DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: shutil.rmtree(f), "no such folder; `recsys-emb compact` makes one"),
    (lambda f: (f / "artifact.json").unlink(), "not an artifact"),
    (lambda f: (f / "artifact.json").write_text("{"), "cannot be read"),
    (lambda f: (f / "artifact.json").write_text("[]"), "expected a JSON object, got list"),
    (lambda f: (f / "artifact.json").write_text("{}"), "format None, this version reads 4"),
    (edit(lambda t: t.update(format_version=1)), "format 1, this version reads 4"),
    (edit(lambda t: t.pop("schema")), "schema: missing"),
    (edit(lambda t: t.update(more=1)), "more: unknown key"),
    (edit(lambda t: t["config"]["model"].update(name="gpt")), "unknown model 'gpt'"),
    (edit(lambda t: t["config"]["model"].update(hidden=[17])), "array 'deep.*expected float32"),
    (edit(lambda t: t["embedding"].update(method="int9")), "unknown post-training method 'int9'"),
    (edit(lambda t: t["embedding"].update(method=None, backend="os")), "unknown backend 'os'"),
    (
        edit(lambda t: t["embedding"].update(method=None, backend="full")),
        "embedding: config.range: unknown key; allowed: none",
    ),
    (edit(lambda t: t["embedding"]["config"].update(scales="fp16")), "'bias' is float32 .*, expected float16"),
    (edit(lambda t: t["schema"]["vocabularies"].update(C2=5)), r"'bias' is .*, expected float32"),
    (edit(lambda t: t["schema"]["vocabularies"].update(C2=-5)), "vocabulary 'C2': -5 ids, must be 1 or more"),
    (edit(rename_vocabulary("../../etc/C1")), "vocabulary '../../etc/C1': the name must be usable as a file name"),
    (edit(rename_vocabulary("/etc/passwd")), "the name must be usable as a file name"),
    (edit(rename_vocabulary("..")), "the name must be usable as a file name|missing"),
    (lambda f: (f / E).unlink(), "embedding.safetensors: missing"),
    (lambda f: (f / "vocabularies/C3.arrow").unlink(), "C3.arrow: missing"),
    (flip(E), "embedding.safetensors: damaged"),
    (flip(D), "dense.safetensors: damaged"),
    (flip("vocabularies/C3.arrow"), "C3.arrow: damaged"),
    (forge(E, b""), "cannot be read"),
    (forge(E, (1 << 62).to_bytes(8, "little") + b"{}"), "cannot be read"),
    (forge(D, pickle.dumps({"weight": 1})), "cannot be read"),
    (arrays(E, lambda t: t.pop("scale")), "no array 'scale'"),
    (arrays(E, lambda t: t.update(extra=torch.zeros(1))), "an array 'extra' that the model does not have"),
    (arrays(E, lambda t: t.update(scale=t["scale"][:-1].clone())), r"'scale' is float32 \[\d+\], expected"),
    (arrays(D, lambda t: t.pop("deep.0.weight", t.popitem())), "no array"),
]


@pytest.fixture(scope="module")
def intact(run_of: RunOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("intact") / "a"
    write_artifact(run_of("full"), out, "int8", evaluate=False)
    return out


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_damaged_and_crafted_artifacts_are_refused_in_one_line(
    intact: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(intact, tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=message) as error:
        load_artifact(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_a_forged_vocabulary_is_refused_when_it_is_used(intact: Path, tmp_path: Path) -> None:
    shutil.copytree(intact, tmp_path / "a")
    forge("vocabularies/C3.arrow", b"not arrow")(tmp_path / "a")
    with pytest.raises(UserError, match=r"C3.arrow: damaged vocabulary"):
        _ = load_artifact(tmp_path / "a").encoder
