"""What an artifact looks ids up with: the raw values of its vocabularies, or fingerprints of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from recsys_emb.config import RunConfig
from recsys_emb.data.fingerprints import DEFAULT_BITS, MOST_BITS, FingerprintIndex, fingerprint_index
from recsys_emb.data.folder import checksum
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.store import EncodedDataset
from recsys_emb.data.vocabulary import Index, ValueIndex
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.same_rows import same_rows
from recsys_emb.errors import UserError

VocabularyForm = Literal["exact", "fingerprint"]


def vocabulary_form(config: RunConfig, form: str | None = None, bits: int | None = None) -> tuple[VocabularyForm, int]:
    """The form that a command's options ask for, else that of the run's ``compact`` section; and fingerprint bits.

    Raises:
        UserError: no such form, or bits that are none.
    """
    made = config.compact
    allowed = get_args(VocabularyForm)
    if form is not None and form not in allowed:
        raise UserError(f"--vocabulary {form}: no such form; allowed: {', '.join(allowed)}")
    if made is None:
        chosen, own = form or "exact", DEFAULT_BITS
    else:
        chosen, own = form or made.vocabulary, made.fingerprint_bits
    if bits is None:
        return cast(VocabularyForm, chosen), own
    if chosen == "exact":
        raise UserError("--fingerprint-bits: belongs to --vocabulary fingerprint")
    if not 1 <= bits <= MOST_BITS:
        raise UserError(f"--fingerprint-bits {bits}: allowed are 1 to {MOST_BITS}")
    return cast(VocabularyForm, chosen), bits


def vocabulary_files(schema: DatasetSchema, form: VocabularyForm = "exact") -> dict[str, str]:
    """Relative path by vocabulary; none where ids are hashes. The schema has seen to it that names are plain."""
    if schema.ids == "hash64":
        return {}
    pattern = "vocabularies/{}.arrow" if form == "exact" else "fingerprints/{}.safetensors"
    return {name: pattern.format(name) for name in schema.vocabularies}


def write_vocabularies(folder: Path, dataset: EncodedDataset) -> None:
    """Copies the raw values."""
    for file in vocabulary_files(dataset.schema).values():
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(dataset.folder / file, folder / file)


def write_fingerprints(
    folder: Path, dataset: EncodedDataset, backend: EmbeddingBackend[Any], bits: int
) -> tuple[dict[str, str], float]:
    """Writes an index of fingerprints for each vocabulary.

    Args:
        folder: of the artifact.
        dataset: whose vocabularies.
        backend: the serving form, by whose rows values may share numbers.
        bits: of a fingerprint.

    Returns:
        The checksums of the raw values' files, which tell the dataset's encoding from others; and the measured share of
        unknown values that are taken for known ones, in the mean over the vocabularies.

    Raises:
        UserError: ids are hashes, a vocabulary is damaged, or two of its values have one hash.
    """
    if dataset.schema.ids == "hash64":
        raise UserError("--vocabulary fingerprint: ids are hashes (data prepared with --ids hash64), no vocabulary")
    raw = vocabulary_files(dataset.schema)
    tables = {table.name: number for number, table in enumerate(backend.spec.tables)}
    taken = []
    for name, file in vocabulary_files(dataset.schema, "fingerprint").items():
        (folder / file).parent.mkdir(exist_ok=True)
        index = fingerprint_index(dataset.folder / raw[name], same_rows(backend, tables[name]), bits)
        index.save(folder / file)
        taken.append(index.taken_for_known())
    return {file: checksum(dataset.folder / file) for file in raw.values()}, sum(taken) / max(len(taken), 1)


def vocabulary_bytes(folder: Path, schema: DatasetSchema, form: VocabularyForm) -> int:
    """Bytes of the files of an artifact's vocabularies."""
    return sum((folder / file).stat().st_size for file in vocabulary_files(schema, form).values())


def open_indexes(folder: Path, schema: DatasetSchema, form: VocabularyForm) -> Mapping[str, Index]:
    """An index for each vocabulary. Raises UserError when a file is missing or damaged."""
    files, integers = vocabulary_files(schema, form), schema.hashed_integers
    sizes = schema.vocabularies
    if form == "fingerprint":
        return {name: FingerprintIndex.load(folder / file, sizes[name]) for name, file in files.items()}
    paths = {name: folder / files[name] if name in files else None for name in sizes}
    return {name: ValueIndex(path, sizes[name], integers.get(name)) for name, path in paths.items()}
