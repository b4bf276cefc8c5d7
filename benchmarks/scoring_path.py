"""How much code a reader of the main path meets: what runs when ``grmp-score photo.jpg`` scores one JPEG.

    python benchmarks/scoring_path.py [PHOTO]

Prints modules of the package that run at least one function, modules that are imported, distinct functions that
run, and the package's frames on the stack where attention is computed: once for the command line and once for
`Scorer.score`.  Runs in one process; nothing is timed.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import grmp_score

ROOT = os.path.dirname(os.path.abspath(grmp_score.__file__))
PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "astronaut.jpg"


def traced(run: Callable[[], object]) -> tuple[set[tuple[str, str]], list[str]]:
    """Functions of the package (file, name) that ``run`` calls, and the package's frames at attention."""
    import torch

    functions: set[tuple[str, str]] = set()
    stack: list[str] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def record(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # Bodies of modules and classes run too, when they are imported; they are not functions.
        if event == "call" and code.co_filename.startswith(ROOT) and code.co_flags & inspect.CO_OPTIMIZED:
            functions.add((os.path.relpath(code.co_filename, ROOT), code.co_qualname))

    def counted(*args: Any, **options: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        stack.clear()
        while frame is not None:
            if frame.f_code.co_filename.startswith(ROOT):
                stack.append(frame.f_code.co_qualname)
            frame = frame.f_back
        return attention(*args, **options)

    torch.nn.functional.scaled_dot_product_attention = counted  # type: ignore[assignment]
    torch.set_num_threads(1)  # the model runs in this thread, so that the whole stack is seen
    threading.setprofile(record)
    sys.setprofile(record)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        torch.nn.functional.scaled_dot_product_attention = attention
    return functions, stack[::-1]


def report(title: str, run: Callable[[], object]) -> None:
    functions, stack = traced(run)
    modules = {file for file, _ in functions}
    named = {f for f in functions if "<" not in f[1].rpartition(".")[2]}  # without lambdas and comprehensions
    imported = [name for name in sys.modules if name.split(".")[0] == "grmp_score"]
    print(
        f"{title}: {len(modules)} modules run, {len(imported)} imported, {len(named)} functions, "
        f"{len(stack)} package frames at attention"
    )
    print(f"  stack: {' > '.join(stack)}")
    for module in sorted(modules):
        print(f"  {module}: {', '.join(sorted(name for file, name in named if file == module))}")


def main() -> None:
    photo = sys.argv[1] if len(sys.argv) > 1 else str(PHOTO)
    from grmp_score.cli.main import cli

    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "scores.csv")
        report("command line", lambda: cli.main([photo, "-o", output], standalone_mode=False))
    report("Scorer.score", lambda: grmp_score.Scorer().score(photo))


if __name__ == "__main__":
    main()
