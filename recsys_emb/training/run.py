"""Runs: from a config to a finished run folder, stage by stage."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recsys_emb.config import RunConfig, config_key
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.store import EncodedDataset
from recsys_emb.distributed.world import is_lost_connection, join
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.fields import group_spec
from recsys_emb.embeddings.posttraining import plan_compression
from recsys_emb.embeddings.stages import Compact, Distil, InitFrom, Stage, Train
from recsys_emb.errors import LostProcess, SettingError, UserError, settings_written_as
from recsys_emb.files import unused
from recsys_emb.lock import sole_writer
from recsys_emb.models.base import CTRModel, model_registry
from recsys_emb.sizes import budget_bytes, written_budget
from recsys_emb.training import runtime
from recsys_emb.training.checkpoint import Checkpoints, load_model
from recsys_emb.training.predict import predict
from recsys_emb.training.run_dir import RunDir, check_free
from recsys_emb.training.run_files import PREDICTIONS
from recsys_emb.training.stage_runner import (
    Outcome,
    StageRunner,
    predict_split,
    recorded_stages,
    split_loader,
    stage_model,
)
from recsys_emb.training.stop import StopMark, Stopped
from recsys_emb.training.task import task_of
from recsys_emb.training.total_budget import beside, fingerprint_bits, within_total
from recsys_emb.training.trainer import Reporter
from recsys_emb.training.warm_start import WarmStart, check_fits


@dataclass(frozen=True)
class Plan:
    """What a config means for a dataset: the group of tables, the backend and its sizes."""

    spec: GroupSpec
    backend: type[EmbeddingBackend]
    config: BackendConfig

    def build(self, device: torch.device | str | None = None) -> EmbeddingBackend:
        return self.backend(self.spec, self.config, device)


def plan(config: RunConfig, dataset: EncodedDataset) -> Plan:
    """Sizes the embedding; allocates nothing.

    Raises:
        UserError: the dataset has no rows to train on, model and dataset do not fit together, or the budget is out of
            reach.
    """
    for split in ("train", "valid"):
        if not len(dataset.split(split)):
            raise UserError(f"data.path {dataset.path}: the {split} split has no rows; it can only be evaluated")
    model = model_registry.get(config.model.name)
    model.check(config.model, dataset.schema)
    spec = group_of(config, dataset.schema)
    stats = dataset.stats()
    e = config.embedding
    warm = warm_start_of(config, dataset)
    rest = partial(beside, config, dataset, spec, fingerprint_bits(config))
    with settings_written_as(config_key), within_total(e.budget, rest) as own:
        most = budget_bytes(own, spec.full_bytes)
        if warm is None:
            backend, sized = plan_backend(e.backend, spec, most, stats, e.options)
        else:
            backend, sized = warm.sizes()
            if most is not None and (needed := backend(spec, sized, "meta").serving_bytes()) > most:
                raise SettingError(
                    "budget", f"with the ids that are new {e.backend} takes {needed:,} bytes, {most:,} are allowed"
                )
    if (made := config.compact) is not None:
        with settings_written_as("compact.{}".format), within_total(made.budget, rest, fitted=True) as own:
            plan_compression(spec, made.method, own, stats, made.options)
    return Plan(spec, backend, sized)


def stages_of(config: RunConfig, planned: Plan) -> list[Stage]:
    """What a run consists of: the backend's stages, then those of its ``compact`` section."""
    stages = list(planned.backend.stages(planned.config))
    made = config.compact
    if made is None:
        return stages
    tune = made.finetune
    stages.append(Compact("compress", InitFrom(), made.method, made.budget, made.options, trainable=tune is not None))
    if tune is not None:
        settings = {
            "epochs": tune.epochs,
            "learning_rate": tune.learning_rate,
            "lr_schedule": "linear",
            "max_steps": None,
            "eval_every": None,
        }
        distil = Distil(stages[-2].name, tune.distil) if tune.distil else None
        stages += [Train("finetune", settings=settings, distil=distil, keep_start=True), Compact("finetuned")]
    return stages


def group_of(config: RunConfig, schema: DatasetSchema) -> GroupSpec:
    """The tables of a run."""
    model = model_registry.get(config.model.name)
    return group_spec(schema, model.embedding_width(config.model), config.embedding.init_std, model.first_order)


def warm_start_of(config: RunConfig, dataset: EncodedDataset) -> WarmStart | None:
    """What the training begins with, if not with new weights. Raises UserError when that does not fit."""
    if config.training.from_ is None:
        return None
    run = RunDir.open(config.training.from_)
    check_fits(run, config, dataset)
    return WarmStart(run, config, group_of(run.config, run.schema), group_of(config, dataset.schema))


def train(
    config: RunConfig,
    out: Path,
    reporter: Reporter,
    resume: bool = False,
    test: bool = True,
    stop: StopMark | None = None,
) -> dict[str, Any]:
    """Trains as the config says and writes the run folder.

    Args:
        config: of a new run; with ``resume`` the folder's own config is used, and this one must equal it.
        out: the run folder.
        reporter: is told of steps and evaluations.
        resume: continue the run in ``out``; a finished one just gives its report.
        test: evaluate on the test split, which finishes the run. Without, all but that is done, and a later call with
            ``resume`` finishes it.
        stop: ends the run at the next step, with a checkpoint, once somebody asks.

    Returns:
        the report; without ``test`` it has no figures of the test split and is not written.

    Raises:
        UserError: a mistake in what was given, another process writes ``out``, or the disk is full.
        Stopped: somebody asked; the message says how to continue.
        LostProcess: of several processes another one ended.
    """
    try:
        return _train(config, out, reporter, resume, test, stop or StopMark())
    except Stopped as stopped:
        if not (out / "config.yaml").is_file():
            raise
        raise Stopped(stopped.signal, f"stopped by {stopped.signal.name}; {RunDir(out).how_to_continue}") from None
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise LostProcess(
            f"another process of the run ended, see its message; {RunDir(out).how_to_continue}"
        ) from error
    except OSError as error:
        what = f"{error.filename or out}: {error.strerror or error}"
        raise UserError(
            f"{what}; the last checkpoint is as it was: mend this, then {RunDir(out).how_to_continue}"
        ) from None


def _train(
    config: RunConfig, out: Path, reporter: Reporter, resume: bool, test: bool, stop: StopMark
) -> dict[str, Any]:
    again = resume and (out / "config.yaml").is_file()
    dataset = RunDir.open(out).open_dataset() if again else config.data.open()
    config = config.at_state_of(dataset)
    device = runtime.pick_device(config.device)
    precision = runtime.pick_precision(config.training.precision, device)
    planned = plan(config, dataset)
    # dense_adam walks whole tables, so each process has them.
    with join(device, shard_tables=config.training.embedding_optimizer != "dense_adam") as world, ExitStack() as held:
        stop.alone = world.size == 1
        stop.check()
        run = world.rank_zero_first(lambda: _folder(config, out, dataset, resume, held), lambda: RunDir.open(out))
        if run.done:
            return run.report
        runtime.configure(config.seed, precision)
        runtime.reset_peak_rss()
        stages = stages_of(config, planned)

        def build() -> EmbeddingBackend:
            backend = world.build(planned.build, device)
            backend.see_counts(dataset.stats())
            return backend

        warm = warm_start_of(config, dataset)
        if warm is not None and world.size > 1:
            raise UserError("training.from: one process only; leave out torchrun")
        runner = StageRunner(run, dataset, planned.spec, build, stages, device, precision, reporter, world, stop, warm)
        model, outcomes = runner.finish()
        whole = stage_model(run, dataset.schema, planned.spec, stages[-1].name, torch.device("meta"))
        vocabulary = dataset.manifest.get("vocabulary_bytes")
        if (bits := fingerprint_bits(config)) is not None:
            backend = model.eval().embedding.backend if world.size == 1 else None  # whose rows are all here
            vocabulary = beside(config, dataset, planned.spec, bits).vocabulary(backend)
        report = _report(config, dataset, whole, outcomes, vocabulary)
        if not test:
            return report
        batches = split_loader(dataset, "test", config, world=world)
        predicted = predict(model, stop.watch(batches), precision, world).placed(batches.gathered_rows())
        report = {
            **task_of(config).metrics(predicted),
            **report,
            "unknown_share": dataset.unknown_share("test"),
            "peak_rss_bytes": world.all_reduce_max(runtime.peak_rss_bytes()),
            "device": str(device),
            "precision": precision,
            "processes": world.size,
        }
        if world.is_rank_zero:
            predicted.stored().save(run.path / PREDICTIONS)
            run.finish(report)
        return report


def _folder(config: RunConfig, out: Path, dataset: EncodedDataset, resume: bool, held: ExitStack) -> RunDir:
    """A new run folder, or the one to continue, locked. Raises UserError when it is not the config's."""
    if not (resume and (out / "config.yaml").is_file()):
        check_free(out)
        held.enter_context(sole_writer(out, "this run"))
        return RunDir.create(out, config, dataset)
    run = RunDir.open(out)
    if run.config != config:
        raise UserError(f"--resume: {out} was started with another config than this one; see {out}/config.yaml")
    run.check_dataset(dataset)
    if not run.done:
        held.enter_context(sole_writer(out, "this run"))
    return run


def default_out(config: RunConfig) -> Path:
    """``runs/MODEL-BACKEND-DATASET-SEED``, numbered where it is taken."""
    name = f"{config.model.name}-{config.embedding.backend}-{config.data.path.name}-{config.seed}"
    return unused(Path("runs") / name)


def _report(
    config: RunConfig, dataset: EncodedDataset, model: CTRModel, outcomes: list[Outcome], vocabulary: int | None
) -> dict[str, Any]:
    trainings, made = [o for o in outcomes if o.steps], config.compact
    return {
        **{f"valid_{k}": v for k, v in outcomes[-1].valid.items()},
        **{f"bayes_{key}": best for key, best in dataset.bayes.get("test", {}).items()},
        **embedding_figures(model.embedding.backend),
        **served_figures(model.embedding.backend, model, vocabulary),
        "budget": written_budget(config.embedding.budget if made is None else made.budget),
        "training_bytes": max(o.training_bytes for o in outcomes),
        "samples_per_second": sum(o.samples for o in trainings) / max(sum(o.step_seconds for o in trainings), 1e-9),
        "train_seconds": sum(o.seconds for o in outcomes),
        "epochs": sum(o.epochs for o in outcomes),
        "steps": sum(o.steps for o in outcomes),
        "best_step": trainings[-1].best_step if trainings else 0,
        "task": config.task,
        "model": config.model.name,
        "first_order": model.first_order,
        "backend": config.embedding.backend if made is None else f"{config.embedding.backend}+{made.method}",
        "method": None if made is None else made.method,
        "dataset": dataset.name,
        "state": dataset.state,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": [o.row(task_of(config).main) for o in outcomes],
    }


def embedding_figures(backend: EmbeddingBackend[Any]) -> dict[str, Any]:
    """What reports say of an embedding: its bytes, those of the full tables, and a row per table.

    63-bit hashes have no full tables and no number of ids: None.
    """
    serving, hashed = backend.serving_bytes(), backend.spec.hashed
    tables = [{**asdict(line), **({"ids": None} if hashed else {})} for line in backend.describe()]
    return {
        "serving_bytes": serving,
        "full_bytes": None if hashed else backend.spec.full_bytes,
        "ratio": None if hashed else serving / backend.spec.full_bytes,
        "tables": [{"name": row.pop("table"), **row} for row in tables],
    }


def served_figures(backend: EmbeddingBackend[Any], model: CTRModel, vocabulary: int | None) -> dict[str, Any]:
    """The bytes of the parts of an artifact, and of all: embeddings, the rest of the model, vocabularies."""
    dense = sum(tensor.nbytes for tensor in model.dense_state().values())
    served = backend.serving_bytes() + dense + (vocabulary or 0)
    return {"dense_bytes": dense, "vocabulary_bytes": vocabulary, "served_bytes": served}


def restore(run: RunDir) -> tuple[CTRModel, str]:
    """The trained model of a finished or unfinished run with its best weights, and the precision it runs in.

    Of several stages it is the latest that has weights.

    Raises:
        UserError: the run has no checkpoint yet.
    """
    config, schema = run.config, run.schema
    device = runtime.pick_device(config.device)
    precision = runtime.pick_precision(config.training.precision, device)
    spec = group_of(config, schema)
    for stage in reversed(recorded_stages(run)):
        best = Checkpoints(run.checkpoints(stage)).best()
        if best is not None:
            model = stage_model(run, schema, spec, stage, device)
            load_model(model, best)
            return model, precision
    raise UserError(f"{run.path}: no checkpoint yet; {run.how_to_continue}")


def evaluate(run: RunDir, split: str = "test", data: Path | None = None) -> dict[str, Any]:
    """Metrics of a run's best weights on a split of its own dataset, or of another prepared with the same schema."""
    config = run.config
    dataset = run.open_dataset(data)
    model, precision = restore(run)
    runtime.configure(config.seed, precision)
    figures = task_of(config).metrics(predict_split(model, dataset, split, config, precision))
    about = {"split": split, "unknown_share": dataset.unknown_share(split)}
    return {"run": str(run.path), **about, **figures}


def check(config: RunConfig) -> tuple[Plan, DatasetSchema]:
    """All that can be known of a config without training: dataset, model, budget. Raises UserError."""
    dataset = config.data.open()
    return plan(config, dataset), dataset.schema
