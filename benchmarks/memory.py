"""Head and loss, forward and backward: peak extra memory and time, each case in a process of its own.

Ours, `torch.nn.functional.linear_cross_entropy` (as it comes, and in chunks whose logits take 32 MB), full logits.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from setting import machine, resident
from torch import nn

from forgetting.model.head import token_nll

MEGABYTE = 1e6
KINDS = ["ours", "library", "library, 32 MB", "full logits"]

ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
"""glibc gives back what is freed; else holes that its heap has by chance, ± 8 MB, would be counted."""


def run(kind: str, hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    match kind:
        case "ours":
            return token_nll(hidden, targets, head)
        case "full logits":
            return F.cross_entropy(head(hidden).float(), targets, reduction="none")
        case "library":
            options = nn.LinearCrossEntropyOptions()
        case _:
            chunk = 2**25 // (4 * head.out_features)
            options = nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=chunk)
    return F.linear_cross_entropy(hidden, head.weight, targets, reduction="none", options=options)


def measure(kind: str, positions: int, vocab: int, width: int, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Peak memory above what was there before, and seconds, of one forward and backward pass."""
    torch.manual_seed(0)
    head = nn.Linear(width, vocab, bias=False, dtype=dtype, device=device).requires_grad_(False)
    hidden = torch.randn(positions, width, dtype=dtype, device=device, requires_grad=True)
    targets = torch.randint(vocab, (positions,), device=device)
    sent = torch.rand(positions, device=device)
    (token_nll(hidden[:2], targets[:2], head).sum()).backward()  # libraries load, kernels are chosen
    hidden.grad = None
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = resident("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    nll = run(kind, hidden, head, targets)
    (nll * sent).sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    assert hidden.grad is not None
    return {"extra": peak - before, "seconds": seconds, "cpu": cpu, "hidden": hidden.nbytes,
            "nll": float(nll.double().mean()), "gradient": float(hidden.grad.double().norm())}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, nargs="*", default=[2048, 16384])
    parser.add_argument("--vocab", type=int, nargs="*", default=[32_000, 128_256])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--limit", type=float, default=9e9, help="leave out full logits of more bytes than this")
    parser.add_argument("--one", help="measure one case here and print it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.one:
        warnings.filterwarnings("ignore")
        (positions,), (vocab,) = options.positions, options.vocab
        print(json.dumps(measure(options.one, positions, vocab, options.hidden, getattr(torch, options.dtype), device)))
        return
    print(f"{machine()}, {options.threads} thread(s), {options.dtype}, hidden {options.hidden}")
    print(
        f"{'vocabulary':>10} {'positions':>9}  {'':<20}{'extra MB':>9} {'beyond hidden':>13} {'seconds':>8} {'CPU':>6}"
    )
    beyond: dict[tuple[str, int], list[float]] = {}
    for vocab in options.vocab:
        for positions in options.positions:
            for kind in options.kinds:
                if kind == "full logits" and 3 * 4 * vocab * positions > options.limit:
                    logits = 4 * vocab * positions / MEGABYTE
                    print(f"{vocab:>10,} {positions:>9,}  {kind:<20}{logits:>9,.0f} (logits alone; not run)")
                    continue
                case = {"--one": kind, "--positions": positions, "--vocab": vocab, "--hidden": options.hidden,
                        "--dtype": options.dtype, "--threads": options.threads}  # fmt: skip
                command = [sys.executable, __file__, *(str(part) for pair in case.items() for part in pair)]
                output = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
                found = json.loads(output)
                rest = found["extra"] - found["hidden"]  # the gradient that goes on to the decoder
                beyond.setdefault((kind, vocab), []).append(rest)
                numbers = f"{found['extra'] / MEGABYTE:>9,.0f} {rest / MEGABYTE:>13,.0f} {found['seconds']:>8.2f}"
                check = f"{found['cpu']:>6.2f}   nll {found['nll']:.5f}, gradient {found['gradient']:.5f}"
                print(f"{vocab:>10,} {positions:>9,}  {kind:<20}{numbers} {check}", flush=True)
    for (kind, vocab), values in beyond.items():
        if len(values) == len(options.positions) > 1:
            print(f"{kind}, vocabulary {vocab:,}: {values[-1] / values[0] - 1:+.1%} from {options.positions[0]:,} to "
                  f"{options.positions[-1]:,} positions, beyond the hidden states' gradient")  # fmt: skip
    print(f"largest process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / MEGABYTE:,.0f} MB")


if __name__ == "__main__":
    main()
