"""Exports give the artifact's logits in programs that know nothing of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.inference.modules import quantize_embeddings

from recsys_emb import cli
from recsys_emb.data.schema import CategoricalField, DatasetSchema
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.errors import UserError
from recsys_emb.models.base import model_registry
from recsys_emb.serving import load_artifact, write_artifact
from recsys_emb.serving.artifact import Artifact
from recsys_emb.serving.exports import export_artifact, exporter, onnx_file
from recsys_emb.serving.exports.by_field import ByField, Inputs, inputs_of, random_rows
from recsys_emb.serving.exports.export import Exported
from recsys_emb.serving.exports.onnx_file import to_onnx
from recsys_emb.serving.exports.pt2_file import to_torch
from recsys_emb.serving.exports.torchrec_folder import to_torchrec
from recsys_emb.training.run_dir import RunDir
from tests.serving.export_cases import BACKENDS, HASHED, HASHING, METHODS, SCHEMA, model_of, served, trained

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.ao.quantization, and in torch.onnx
    pytest.mark.usefixtures("exact_products"),
]

needs_onnx = pytest.mark.skipif(
    any(onnx_file.find_spec(name) is None for name in onnx_file.NEEDED), reason="the extra `onnx` is not installed"
)
every_form = pytest.mark.parametrize(("name", "options"), BACKENDS + METHODS)
every_model = pytest.mark.parametrize("model", model_registry.names())
every_hash = pytest.mark.parametrize("name", HASHING)


def batches(schema: DatasetSchema = SCHEMA) -> list[Inputs]:
    """Of one row, of two, of many, and one whose jagged fields are all empty."""
    empty = random_rows(schema, 3)
    for name in empty:
        if name.endswith(".values"):
            empty[name] = empty[name][:0]
        elif name.endswith(".lengths"):
            empty[name] = torch.zeros_like(empty[name])
    return [random_rows(schema, rows, seed=rows) for rows in (1, 2, 40)] + [empty]


def agree(model: ByField, logits: Callable[[Inputs], Tensor]) -> None:
    with torch.no_grad():
        for inputs in batches(model.schema):
            torch.testing.assert_close(logits(inputs), model(inputs), rtol=1e-4, atol=1e-5)


# -- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "multi_hash", "optembed", "pq", "prune"])
def test_torch_exports(name: str, tmp_path: Path) -> None:
    model = model_of("deepfm", served("deepfm", name, {}))
    agree(model, to_torch(model, {}, tmp_path / "m.pt2").logits)


@pytest.mark.stress
@every_form
def test_torch_exports_of_every_form(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of("deepfm", served("deepfm", name, options))
    agree(model, to_torch(model, {}, tmp_path / "m.pt2").logits)


@every_model
def test_torch_exports_of_every_model(model: str, tmp_path: Path) -> None:
    made = model_of(model, trained(model, "full", {}))
    agree(made, to_torch(made, {}, tmp_path / "m.pt2").logits)


@pytest.mark.stress
@every_hash
def test_torch_exports_take_raw_hashes(name: str, tmp_path: Path) -> None:
    model = model_of("lr", served("lr", name, {}, HASHED), HASHED)
    agree(model, to_torch(model, {}, tmp_path / "m.pt2").logits)


STRANGER = """
import sys, torch
sys.modules["recsys_emb"] = sys.modules["torchrec"] = None
for path in sys.argv[1:]:
    inputs = torch.load(path + ".inputs")
    torch.save(torch.export.load(path).module()(inputs), path + ".logits")
"""


def test_torch_loads_exports_without_this_package(tmp_path: Path) -> None:
    inputs = random_rows(SCHEMA, 9, seed=1)
    models = {
        str(tmp_path / "hash.pt2"): model_of("din", served("din", "hash", {})),
        str(tmp_path / "svd.pt2"): model_of("autoint", served("autoint", "quantized_svd", {})),
    }
    for path, model in models.items():
        to_torch(model, {}, Path(path))
        torch.save(inputs, f"{path}.inputs")
    subprocess.run([sys.executable, "-c", STRANGER, *models], check=True, cwd=tmp_path)
    with torch.no_grad():
        for path, model in models.items():
            torch.testing.assert_close(torch.load(f"{path}.logits"), model(inputs), rtol=1e-4, atol=1e-5)


# -- onnx -------------------------------------------------------------------------------------------------------------


@needs_onnx
@pytest.mark.parametrize(
    ("model", "name", "options"), [("din", "hash", {}), ("lr", "optembed", {}), ("autoint", "int4", {})]
)
def test_onnx_exports(model: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    made = model_of(model, served(model, name, options))
    agree(made, to_onnx(made, {}, tmp_path / "m.onnx").logits)


@needs_onnx
@pytest.mark.stress
@every_form
def test_onnx_exports_of_every_form(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of("deepfm", served("deepfm", name, options))
    agree(model, to_onnx(model, {}, tmp_path / "m.onnx").logits)


@needs_onnx
@pytest.mark.stress
@every_model
def test_onnx_exports_of_every_model(model: str, tmp_path: Path) -> None:
    made = model_of(model, trained(model, "full", {}))
    agree(made, to_onnx(made, {}, tmp_path / "m.onnx").logits)


@needs_onnx
@pytest.mark.stress
@every_hash
def test_onnx_exports_take_raw_hashes(name: str, tmp_path: Path) -> None:
    model = model_of("lr", served("lr", name, {}, HASHED), HASHED)
    agree(model, to_onnx(model, {}, tmp_path / "m.onnx").logits)


@needs_onnx
def test_an_onnx_file_says_what_it_takes_and_holds_compact_tables(tmp_path: Path) -> None:
    import onnxruntime

    schema = SCHEMA.model_copy(update={"vocabularies": dict.fromkeys(SCHEMA.vocabularies, 20_000)})
    model = model_of("fm", compress(trained("fm", "full", {}, schema).eval(), "int4"), schema)
    path = tmp_path / "m.onnx"
    to_onnx(model, {"inputs": [i.description() for i in inputs_of(schema)]}, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["recsys_emb"])["inputs"]
    assert about[:2] == [
        {"name": "dense", "dtype": "float32", "shape": ["B", "1"], "field": ["price"]},
        {"name": "user", "dtype": "int64", "shape": ["B"], "field": "user", "ids": 20_000, "vocabulary": "user"},
    ]
    types = {"float32": "tensor(float)", "int64": "tensor(int64)"}
    assert {i["name"]: types[i["dtype"]] for i in about} == {i.name: i.type for i in session.get_inputs()}
    stored = sum(t.nbytes for t in model.state_dict().values())
    assert stored < path.stat().st_size < stored + 60_000


@needs_onnx
def test_weights_too_large_for_one_onnx_file_lie_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, artifact: Artifact
) -> None:
    monkeypatch.setattr(onnx_file, "MOST", 1)
    done = export_artifact(artifact, to_onnx, tmp_path / "m.onnx")
    files = {f.name: f.stat().st_size for f in tmp_path.iterdir()}
    assert files.keys() == {"m.onnx", "m.onnx.data"}
    assert done["bytes"] == sum(files.values())


def test_packages_that_onnx_needs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"needs the package onnxscript; pip install 'recsys_emb\[onnx\]'"):
        to_onnx(model_of("lr", trained("lr", "full", {})), {}, tmp_path / "m.onnx")


# -- torchrec ---------------------------------------------------------------------------------------------------------


@every_form
def test_torchrec_exports_of_every_form(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of("deepfm", served("deepfm", name, options))
    done = to_torchrec(model, {}, tmp_path / "m")
    agree(model, done.logits)
    least = -1 if name == "autosrh" else 0  # whose gates, not searched, cut all
    assert least < done.more["quantized_largest_difference"] < 0.5


@every_model
def test_torchrec_exports_of_every_model(model: str, tmp_path: Path) -> None:
    made = model_of(model, trained(model, "full", {}))
    agree(made, to_torchrec(made, {}, tmp_path / "m").logits)


def test_torchrecs_own_collections_load_the_export(tmp_path: Path) -> None:
    backend = served("fm", "low_rank", {})
    to_torchrec(model_of("fm", backend), {"model": "fm"}, tmp_path / "m")
    about = json.loads((tmp_path / "m" / "collection.json").read_text())
    assert about["collection"] == "EmbeddingBagCollection"
    assert (about["columns"], about["first_order"]) == (5, True)
    assert {t["name"]: t["feature_names"] for t in about["tables"]} == {
        "user": ["user"],
        "item": ["item", "history", "again"],
        "tag": ["tags"],
    }
    configs = [EmbeddingBagConfig(**t, pooling=PoolingType[about["pooling"]]) for t in about["tables"]]
    plain = EmbeddingBagCollection(configs)
    plain.load_state_dict(load_file(tmp_path / "m" / "plain.safetensors"))
    for i, config in enumerate(configs):
        weight = plain.embedding_bags[config.name].weight.detach()
        torch.testing.assert_close(weight[:, :5], next(backend.rows(i)))
        assert not weight[:, 5:].any()
    stored = load_file(tmp_path / "m" / "quantized.safetensors")
    quantised = quantize_embeddings(torch.nn.Sequential(plain), torch.qint8, inplace=False)[0]
    assert all(torch.equal(stored[name], tensor) for name, tensor in quantised.state_dict().items())


def test_hashed_ids_have_no_rows_for_torchrec(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--to torchrec: ids are 63-bit hashes"):
        to_torchrec(model_of("lr", served("lr", "hash", {}, HASHED), HASHED), {}, tmp_path / "m")


# -- an artifact, from the command line -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(run_of: Callable[[str], RunDir], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("artifact") / "a"
    write_artifact(run_of("hash"), out, evaluate=False)
    return load_artifact(out, "cpu")


def test_the_command_writes_an_export_and_says_what_it_compared(
    artifact: Artifact,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "new" / "m.pt2"
    arguments = ["export", str(artifact.path), "--to", "torch", "--out", str(out), "--json"]
    monkeypatch.setattr(sys, "argv", ["recsys-emb", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    done = json.loads(capsys.readouterr().out)
    assert list(out.parent.iterdir()) == [out]
    assert done["bytes"] == out.stat().st_size
    assert done["serving_bytes"] == artifact.serving_bytes
    assert done["overhead_bytes"] == done["bytes"] - done["serving_bytes"] - done["dense_bytes"]
    assert done["compared_on"] == f"rows of {prepared}"
    assert done["largest_difference"] < 1e-5
    extra = {"about.json": ""}
    torch.export.load(out, extra_files=extra)
    assert json.loads(extra["about.json"])["model"] == "deepfm"


def test_rows_are_made_where_the_dataset_is_not_there(artifact: Artifact, tmp_path: Path) -> None:
    data = artifact.config.data.model_copy(update={"path": tmp_path / "gone"})
    elsewhere = replace(artifact, config=artifact.config.model_copy(update={"data": data}))
    assert export_artifact(elsewhere, to_torch, tmp_path / "m.pt2")["compared_on"] == "made rows"


def test_an_export_that_differs_is_not_left_behind(artifact: Artifact, tmp_path: Path) -> None:
    def wrong(model: ByField, about: dict[str, Any], path: Path) -> Exported:
        path.write_text("...")
        return Exported(lambda inputs: model(inputs) + 2e-4)

    with pytest.raises(UserError, match=r"not written, since logits of rows of .* differ by up to 0\.0002; 0\.0001 is"):
        export_artifact(artifact, wrong, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_in_one_line(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(UserError, match="there: exists already"):
        export_artifact(artifact, to_torch, tmp_path / "there")
    with pytest.raises(UserError, match="--to tflite: no such form; allowed: torch, onnx, torchrec"):
        exporter("tflite")
    with pytest.raises(UserError, match="does not exist"):
        export_artifact(artifact, to_torch, tmp_path / "m", tmp_path / "no_dataset")
    fields = SCHEMA.model_copy(update={"categorical": (CategoricalField(name="dense", vocabulary="user"),)})
    with pytest.raises(UserError, match="field 'dense': an export calls another input so"):
        inputs_of(fields)
