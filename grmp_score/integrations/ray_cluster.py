"""The connection to a Ray cluster: made, kept quiet, closed, and its failures told as ours."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

from grmp_score.errors import GrmpScoreError, MissingExtraError

#: How often a piece of work is tried again when the worker that had it died.  Not for ever: an image that kills its
#: worker would keep the job from ending.
RETRIES = 3


def explained(batches: Iterable[Any]) -> Iterator[Any]:
    """Passes batches on; failures of Ray become one of ours."""
    exceptions = the_ray().exceptions
    try:
        yield from batches
    except exceptions.RayActorError as error:
        raise GrmpScoreError(
            f"a piece of work was given up because its worker died {RETRIES + 1} times",
            hint="Is there enough memory per worker? Fewer workers need less; Ray's logs name the cause",
        ) from error
    except exceptions.RayError as error:
        lines = str(getattr(error, "cause", None) or error).strip().splitlines()
        raise GrmpScoreError(f"the Ray job failed: {lines[-1] if lines else type(error).__name__}") from error


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster, closed at the end if it was made here."""
    ray = the_ray()
    if ray.is_initialized():
        yield
        return
    # Ray reports to nobody, and keeps its own messages in its log files.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _nothing_on_stdout(ray):
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise GrmpScoreError(
                f"cannot reach the Ray cluster: {reason}",
                path=address,
                hint="Start one with: ray start --head (and on the other machines: ray start --address=HOST:6379)",
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _nothing_on_stdout(ray: Any) -> Iterator[None]:
    """Ray tells of workers that died on stdout, between the results, and has no setting against it.

    What is used here is the switch of its own debugger; a Ray without it prints as it likes.
    """
    module = getattr(getattr(ray, "_private", None), "worker", None)
    before = getattr(module, "_worker_logs_enabled", None)
    if module is None or before is None:
        yield
        return
    module._worker_logs_enabled = False
    try:
        yield
    finally:
        module._worker_logs_enabled = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and notes of Ray Data on the screen; results alone go to stdout."""
    context = ray_data().DataContext.get_current()
    logger = logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start, level = before
        logger.setLevel(level)


def the_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingExtraError("scoring on a Ray cluster", "ray", "ray") from error
    return ray


def ray_data() -> Any:
    the_ray()
    try:
        import ray.data
    except ImportError as error:  # Ray without its data part
        raise MissingExtraError("scoring on a Ray cluster", "ray[data]", "ray") from error
    return ray.data
