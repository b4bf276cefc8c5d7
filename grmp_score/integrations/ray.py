"""Scoring on many machines: Ray Data moves the rows, a pool of actors holds one model each.

Needs the extra ``ray``.  Paths must lead to the same files on every machine (a shared folder, or URLs); relative
ones start from the folder of the process that asks.  The weights travel with the job, so a local weights folder
works on machines that have never seen it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Union

from grmp_score.errors import ConfigError
from grmp_score.images.read import MAX_PIXELS
from grmp_score.integrations.ray_cluster import RETRIES, connected, explained, quiet, ray_data, the_ray
from grmp_score.integrations.tables import check_columns, columns_of, image_of_cell
from grmp_score.score import AnyScore, FailedScore, Score
from grmp_score.scorer import Scorer, ScorerOptions
from grmp_score.weights.folder import Weights, load

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

#: What names a model: a folder, bundled name or Hub repository; weights or a scorer at hand; None for the default.
ModelRef = Union[str, "os.PathLike[str]", Weights, Scorer, None]

#: Rows that a worker takes at a time.  It is also what is lost, and done again, when a worker dies.
ROWS, ROWS_ON_GPU = 16, 64

_SOURCE, _RESULT = "grmp_score_source", "grmp_score_result"


def score_dataset(
    ds: Dataset,
    *,
    model: ModelRef = None,
    column: str = "path",
    prefix: str = "",
    patches: int | None = None,
    background: str | tuple[int, int, int] = "white",
    max_pixels: int | None = MAX_PIXELS,
    device: str = "auto",
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int | None = None,
) -> Dataset:
    """Scores the images of a Ray dataset; nothing is computed before the result is consumed.

    Args:
        ds: a dataset with a column of paths, encoded images (bytes), or arrays as `Scorer.score` takes them.
        model: weights folder, bundled name or Hub repository, `Weights`, or a `Scorer` whose weights,
            preprocessing, engine and precision are used; None for the bundled model.  It is read here, once, and
            sent to the workers.
        column: the column of images.
        prefix: put before the names of the new columns.
        patches, background, max_pixels: as for `Scorer`.
        device: where the workers compute; ``"auto"`` is CUDA when ``num_gpus`` is not 0, else the CPU.
        concurrency: workers, or the fewest and the most; None for as many as the cluster has room for next to one
            core for the other stages of the job.  A fixed number that takes every core leaves none for them.
        num_cpus: cores of one worker, and the threads it computes with.
        num_gpus: GPUs of one worker; 0.5 lets two workers share one.
        batch_size: rows that a worker takes at a time.

    Returns:
        The same rows with the columns score (p(high quality), 0..1, higher is better), standard_error, label,
        percentile (floats) and error (text).  An image that cannot be read has null for the numbers and the reason
        in error.  Work of a worker that dies is done again by another.  The order of rows is Ray's to choose unless
        ``ds.context.execution_options.preserve_order`` is set.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: a column of that name is there already, or a setting makes no sense.
        HubError, WeightsError: the model cannot be had.
    """
    schema = ds.schema(fetch_if_missing=False)
    if schema is not None:
        check_columns(list(schema.names), column, prefix)
    return _map(
        ds,
        _FrameWorker,
        {"column": column, "prefix": prefix},
        model=model,
        options={"patches": patches, "background": background, "max_pixels": max_pixels},
        device=device,
        concurrency=concurrency,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        batch_size=batch_size,
        spare=1,  # reading, sorting, writing ... need a core too, or the job stands still
    )


def score_paths(
    paths: Iterable[str],
    *,
    model: ModelRef = None,
    address: str | None = None,
    workers: int | None = None,
    patches: int | None = None,
    background: str | tuple[int, int, int] = "white",
    max_pixels: int | None = MAX_PIXELS,
    device: str = "auto",
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int | None = None,
) -> Iterator[AnyScore]:
    """Scores files on a Ray cluster, in the order of the input, one `Score` for each.

    The scores are what `Scorer.score_many` gives, row for row.  The list of paths is read to its end before the
    first score appears; it and the results lie in Ray's object store, not in this process.

    Args:
        paths: files or URLs.
        model, patches, background, max_pixels, device, num_cpus, num_gpus, batch_size: as for `score_dataset`.
        address: of the cluster; ``"auto"`` finds the one this machine belongs to; None starts one on this machine
            for the time of the call, unless this process is already connected to one.
        workers: most workers; None for as many as the cluster has room for.

    Raises:
        GrmpScoreError: the cluster cannot be reached, or an image kills every worker that tries it.
        MissingExtraError, ConfigError, HubError, WeightsError: as for `score_dataset`.
    """
    data = ray_data()
    with connected(address):
        rows = batch_size or (ROWS_ON_GPU if num_gpus else ROWS)
        blocks = list(_blocks(paths, rows))
        if not blocks:
            return
        with quiet():
            scored = _map(
                data.from_arrow_refs(blocks),
                _ScoreWorker,
                {},
                model=model,
                options={"patches": patches, "background": background, "max_pixels": max_pixels},
                device=device,
                concurrency=None if workers is None else (1, workers),
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                batch_size=rows,
                spare=0,
            )
            # Blocks are worked on in any order and handed out in theirs.
            scored.context.execution_options.preserve_order = True
            for result in explained(scored.iter_batches(batch_size=None, batch_format="pyarrow")):
                for text in result.column(_RESULT).to_pylist():
                    yield _from_json(text)


def _map(
    ds: Dataset,
    worker: type,
    settings: dict[str, Any],
    *,
    model: ModelRef,
    options: dict[str, Any],
    device: str,
    concurrency: int | tuple[int, int] | None,
    num_cpus: float,
    num_gpus: float,
    batch_size: int | None,
    spare: int,
) -> Dataset:
    data, ray = ray_data(), the_ray()
    if num_cpus <= 0:
        raise ConfigError(f"num_cpus must be positive, got {num_cpus}")
    if num_gpus < 0:
        raise ConfigError(f"num_gpus must not be negative, got {num_gpus}")
    if device == "auto":
        device = "cuda" if num_gpus else "cpu"
    if isinstance(model, Scorer):  # whose rows name the precision
        options = {"engine": model.options.engine, "precision": model.options.precision, **options}
    threads = max(1, int(num_cpus))
    scorer_options = ScorerOptions(
        device=device, batch_size=batch_size, threads=threads, workers=threads, **options
    )
    if not ray.is_initialized():
        ray.init()
    least, most = _pool(concurrency, num_cpus, num_gpus, spare)
    with warnings.catch_warnings():
        # Ray will take these limits away without having named what replaces them (see `_limits`).
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return ds.map_batches(
            worker,
            fn_constructor_kwargs={
                # A reference: the tensors lie in the object store once, and not in the plan of the job.
                "weights": ray.put(_weights(model)),
                "base": os.getcwd(),
                "options": scorer_options,
                **settings,
            },
            compute=data.ActorPoolStrategy(min_size=least, max_size=most, initial_size=least),
            batch_size=batch_size or (ROWS_ON_GPU if num_gpus else ROWS),
            batch_format="pyarrow",
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
            **_limits(ds.map_batches),
        )


def _limits(map_batches: Any) -> dict[str, int]:
    """Options against an image that kills every worker that tries it, where this version of Ray takes them.

    Workers are restarted as often as it takes, since machines come and go; a piece of work is given up in the end.
    """
    takes = {parameter.kind for parameter in inspect.signature(map_batches).parameters.values()}
    free = inspect.Parameter.VAR_KEYWORD in takes
    return {"max_restarts": -1, "max_task_retries": RETRIES} if free else {}


def _pool(
    concurrency: int | tuple[int, int] | None, num_cpus: float, num_gpus: float, spare: int
) -> tuple[int, int]:
    """Fewest and most workers.

    Where nobody says how many, the pool grows from one to what fits the cluster, so that a cluster that is busy
    with other things delays the job but does not keep it from starting.
    """
    if concurrency is None:
        total = the_ray().cluster_resources()
        rooms = [(total.get("CPU", 0) - spare) // num_cpus] + (
            [total.get("GPU", 0) // num_gpus] if num_gpus else []
        )
        concurrency = (1, max(1, int(min(rooms))))
    least, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    if not 1 <= least <= most:
        raise ConfigError(f"need at least one worker, and no more at least than at most; got {concurrency}")
    return least, most


def _weights(model: ModelRef) -> Weights:
    if isinstance(model, Scorer):
        model = model.current_weights()
    elif not isinstance(model, Weights):
        model = load(model)
    # Tensors, not the name of a file that only this machine has.
    return dataclasses.replace(model, adapter=dict(model.adapter), backbone=model.backbone_state())


class _Worker:
    """One actor, with one model."""

    def __init__(self, weights: Any, base: str, options: ScorerOptions) -> None:
        self._base = base
        self._scorer = Scorer(the_ray().get(weights), options)
        _ = self._scorer.engine  # made now, not with the first row

    def _scores(self, values: Iterable[Any]) -> Iterator[AnyScore]:
        """One score for each value, with the name it had in the data set."""
        named = [image_of_cell(value, self._base) for value in values]
        scores = self._scorer.score_many(source for _, source in named)
        for (name, _), score in zip(named, scores, strict=True):
            yield score if name is None else dataclasses.replace(score, path=name)


class _FrameWorker(_Worker):
    """Adds the columns of `score_dataset`."""

    def __init__(self, column: str, prefix: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._column, self._prefix = column, prefix

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        check_columns(table.column_names, self._column, self._prefix)
        scores = list(self._scores(value.as_py() for value in table.column(self._column)))
        for name, values in columns_of(scores, self._prefix).items():
            # The type is stated: a batch without any error must fit together with one of nothing but errors.
            kind = pyarrow.string() if name == f"{self._prefix}error" else pyarrow.float64()
            table = table.append_column(name, pyarrow.array(values, kind))
        return table


class _ScoreWorker(_Worker):
    """Paths as bytes to whole `Score` objects as JSON: it keeps every digit, and file names that are not UTF-8."""

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        paths = (os.fsdecode(value.as_py()) for value in table.column(_SOURCE))
        results = [json.dumps(dataclasses.asdict(score)) for score in self._scores(paths)]
        return pyarrow.table({_RESULT: pyarrow.array(results, pyarrow.string())})


def _from_json(text: str) -> AnyScore:
    fields: dict[str, Any] = json.loads(text)
    if "error" in fields:
        return FailedScore(**fields)
    return Score(**{**fields, "patch_values": tuple(fields["patch_values"])})


def _blocks(paths: Iterable[str], rows: int) -> Iterator[Any]:
    """References to small tables of paths in the object store, so that this process holds none of the names."""
    import pyarrow

    stream = iter(paths)
    while part := [os.fsencode(path) for path in islice(stream, rows)]:
        yield the_ray().put(pyarrow.table({_SOURCE: pyarrow.array(part, pyarrow.binary())}))
