"""Reads many damaged files and says what became of them.

    python benchmarks/fuzz_images.py --files 20000

JPEG, PNG, WebP, TIFF, GIF and BMP files with flipped bytes, cut off, with junk appended or inside; the same for the
same seed.  A file that takes longer than the limit, an exception that is no `ImageReadError`, or a decoder's crash
ends the run with an exit code other than 0.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from grmp_score.errors import ImageReadError
from grmp_score.images import read_image
from tests.fuzzing import damaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=10, help="seconds for one file (default: %(default)s)")
    args = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    slowest, start = (0.0, ""), time.perf_counter()
    for name, data in damaged(args.files, seed=args.seed):
        # A decoder that hangs does so in C: only a watchdog outside of Python's loop can end it.
        faulthandler.dump_traceback_later(args.limit, exit=True)
        begin = time.perf_counter()
        try:
            read_image(data, max_pixels=50_000_000)
            counts["image"] += 1
        except ImageReadError as error:
            counts["ImageReadError"] += 1
            reasons[error.reason.split(":")[0].split(" has ")[0]] += 1
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)
        finally:
            faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, (time.perf_counter() - begin, name))
    seconds = time.perf_counter() - start
    print(
        f"{args.files} files in {seconds:.0f} s, seed {args.seed}: "
        + ", ".join(f"{n} {k}" for k, n in counts.items())
    )
    print(f"slowest: {slowest[0]:.2f} s ({slowest[1]})")
    for reason, number in reasons.most_common(12):
        print(f"{number:7d}  {reason}")


if __name__ == "__main__":
    main()
