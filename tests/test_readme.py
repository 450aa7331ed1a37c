"""The README's tables of plug-ins are generated: ``python tests/test_readme.py`` writes them, the test compares."""

from __future__ import annotations

import re
from pathlib import Path

from recsys_emb.data.sources.base import source_registry
from recsys_emb.embeddings import backend_registry
from recsys_emb.embeddings.posttraining import posttraining_registry
from recsys_emb.models import model_registry

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


def test_what_the_readme_names_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    root = README.parent
    named = re.findall(r"`((?:datasets|experiments|notebooks|recsys_emb|benchmarks)/[\w./-]*)`", text)
    assert named
    for path in named:
        assert (root / path).exists(), path


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
