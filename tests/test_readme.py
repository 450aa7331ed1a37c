"""The README's tables of plug-ins are generated: ``python -m tests.test_readme`` writes them, the test compares."""

from __future__ import annotations

import re
import runpy
import textwrap
from pathlib import Path

import pytest
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import tests.plugin
from recsys_emb.data.sources._table_options import TableOptions
from recsys_emb.data.sources.base import source_registry
from recsys_emb.embeddings import backend_registry, make_embedding_bag_collection
from recsys_emb.embeddings.posttraining import posttraining_registry
from recsys_emb.errors import UserError
from recsys_emb.models import model_registry
from recsys_emb.option_docs import outline
from tests.serving.export_cases import table as exports_table

README = Path(__file__).parent.parent / "README.md"


def tables() -> dict[str, str]:
    """Markdown between ``<!-- NAME -->`` and ``<!-- end -->``, by name."""
    out = {}
    for registry in (backend_registry, posttraining_registry, model_registry):
        rows = [registry.describe(n) for n in registry.names()]
        lines = [f"| {registry.kind} | what it is | options |", "|---|---|---|"]
        lines += [f"| `{r['name']}` | {r['summary']} | {', '.join(r['options'])} |" for r in rows]
        out[registry.kind + "s"] = "\n".join(lines)
    lines = ["| source | reads | options |", "|---|---|---|"]
    for name in source_registry.names():
        source = source_registry.get(name)
        lines.append(f"| `{name}` | {source.summary} | {', '.join(source.Options.model_fields)} |")
    out["sources"] = "\n".join(lines)
    keys = [
        f"`{option['key']}`: {option['description']}"
        + (f" ({', '.join(row['key'] for row in option['keys'])})" if option["keys"] else "")
        for option in outline(TableOptions)
    ]
    out["exports"] = exports_table()
    out["schema keys"] = textwrap.fill("; ".join(keys) + ".", 120, break_on_hyphens=False)
    return out


def rewritten(text: str) -> str:
    """The README with its generated parts made anew."""
    for name, table in tables().items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\1{table}\n\2".replace("\\n", "\n"), text, flags=re.DOTALL
        )
        assert found == 1, f"README.md has no place for {name}"
    return text


def test_the_tables_are_those_of_the_registries() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == rewritten(text), "run `make readme`"


def block(start: str) -> str:
    """The Python example that begins so."""
    (found,) = re.findall(rf"```python\n({re.escape(start)}.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return found


def test_the_torchrec_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "example.py").write_text(
        block("import torch\n").replace("1_000_000", "10_000").replace("10MB", "100kB")
    )
    names = runpy.run_path(str(tmp_path / "example.py"))
    reached, compressed = (int(line) for line in capsys.readouterr().out.split())
    assert 90_000 < reached <= 100_000
    assert sum(t.nbytes for t in names["served"].state_dict().values()) == reached
    assert compressed <= 0.1 * 2 * 10_000 * 16 * 4


def test_the_example_of_a_method_of_ones_own_keeps_its_budget() -> None:
    assert block("# my_package/modulo.py") in Path(tests.plugin.__file__).read_text()
    tables = [EmbeddingBagConfig(name="t", embedding_dim=8, num_embeddings=5000, feature_names=["t"])]
    collection = make_embedding_bag_collection(tables, "modulo", budget=0.1)
    assert collection.serving_bytes() == 500 * 8 * 4
    kjt = KeyedJaggedTensor(["t"], torch.tensor([3, 503, 4]), lengths=torch.ones(3, dtype=torch.int64))
    rows = collection(kjt).values()
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    with pytest.raises(UserError, match="the least it can reach is 32 bytes"):
        make_embedding_bag_collection(tables, "modulo", budget=31)


def test_what_the_readme_names_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    root = README.parent
    named = re.findall(r"`((?:datasets|experiments|notebooks|recsys_emb|benchmarks)/[\w./-]*)`", text)
    assert named
    for path in named:
        assert (root / path).exists(), path


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
