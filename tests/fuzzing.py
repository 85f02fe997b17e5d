"""Mutants of files and of states, and the limits under which they are read."""

import copy
import functools
import json
import random
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MEMORY = 2**29  # more than a reader of these small files may reserve
SECONDS = 2.0  # that reading one of them may take
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**36, 2**53, 2**63, 10**9, 10**30, 0.5, -0.0, 1e-300,
    1e308, float("nan"), float("inf"), -float("inf"), "", "x", "1", "0.5", "\ud800", "a\nb", "../x", "x" * 5000, [], {},
    [[]], [0], [-1], ["x"], [None], {"a": 1}, {"": None}, [1] * 300,
)  # fmt: skip


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """In the block this process cannot reserve more than `more` bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutated_bytes(raw: bytes, chance: random.Random) -> bytes:
    """Truncated, extended, with bits flipped, or with a piece overwritten or moved."""
    kind, at = chance.randrange(5), chance.randrange(len(raw))
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw + chance.randbytes(chance.randrange(1, 64))
    if kind == 2:
        out = bytearray(raw)
        for _ in range(chance.randrange(1, 4)):
            out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
        return bytes(out)
    size = chance.randrange(1, 48)
    piece = chance.randbytes(size) if kind == 3 else raw[(start := chance.randrange(len(raw))) : start + size]
    return raw[:at] + piece + raw[at + len(piece) :]


def places_in(value: Any, inside: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in nested dicts and lists, at most twenty of each list."""
    keys = list(value) if isinstance(value, dict) else range(min(20, len(value))) if isinstance(value, list) else ()
    for key in keys:
        yield (*inside, key)
        yield from places_in(value[key], (*inside, key))


def mutated_value(value: Any, chance: random.Random) -> Any:
    """A copy with one or two values changed, renamed, taken out or put elsewhere; tensors are changed as tensors."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2))):
        places = list(places_in(value))
        if not places:
            break
        place = chance.choice(places)
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        key, old = place[-1], parent[place[-1]]
        kind = chance.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[chance.choice(("x", str(key) + "x", "self", ""))] = parent.pop(key)
        elif kind == 2:
            other = value
            for step in chance.choice(places):
                other = other[step]
            parent[key] = copy.deepcopy(other)
        elif isinstance(old, Tensor) and kind != 3:
            parent[key] = mutated_tensor(old, chance)
        elif isinstance(old, (int, float)) and kind in (4, 5):
            parent[key] = chance.choice((old + 1, old - 1, -old, old * 2, old * 10**6, float(old), str(old), [old]))
        else:
            parent[key] = copy.deepcopy(chance.choice(ODD))
    return value


def mutated_tensor(tensor: Tensor, chance: random.Random) -> Tensor:
    """Another length, shape, dtype, or other numbers."""
    flat, whole = tensor.flatten(), not tensor.dtype.is_floating_point
    changes: list[Callable[[], Tensor]] = [
        lambda: flat[:-1], lambda: torch.cat([flat, flat]), lambda: flat[None], lambda: tensor.double(),
        lambda: tensor.float(), lambda: tensor.int(), lambda: tensor.new_zeros(0), lambda: tensor.new_zeros(()),
        lambda: tensor + 100, lambda: tensor * -1, lambda: tensor * 0, lambda: flat.flip(0).view(tensor.shape),
        lambda: tensor + 2**30, lambda: tensor.bool(), lambda: tensor.clone().fill_(-1 if whole else float("nan")),
        lambda: flat.roll(1).view(tensor.shape),
    ]  # fmt: skip
    return chance.choice(changes)().clone()


def mutated_json(raw: bytes, chance: random.Random) -> bytes:
    """A JSON document of other values, or with other bytes, or nested too deep."""
    kind = chance.randrange(10)
    if kind == 0:
        return mutated_bytes(raw, chance)
    if kind == 1:
        return chance.choice((b"", b"[]", b"3", b"null", b'"x"', b"[" * 50_000, b'{"a":' * 50_000, raw + raw, b"\xff"))
    return json.dumps(mutated_value(json.loads(raw), chance)).encode()


def mutated_lines(raw: bytes, chance: random.Random) -> bytes:
    """JSON lines, one of them mutated."""
    lines = raw.splitlines()
    at = chance.randrange(len(lines))
    return b"\n".join([*lines[:at], mutated_json(lines[at], chance), *lines[at + 1 :]])


def mutated_safetensors(raw: bytes, chance: random.Random) -> bytes:
    """Another header (also the JSON inside its metadata), another length of it, or other bytes."""
    size = int.from_bytes(raw[:8], "little")
    header, data, kind = json.loads(raw[8 : 8 + size]), raw[8 + size :], chance.randrange(6)
    inside = [k for k, v in header.get("__metadata__", {}).items() if v.startswith("{")]
    if kind == 0:
        return mutated_bytes(raw, chance)
    if kind == 1:
        return chance.choice((0, 1, size - 1, size + 1, 2**31, 2**62, 2**64 - 1)).to_bytes(8, "little") + raw[8:]
    if kind == 2 and data:
        return raw[: 8 + size] + mutated_bytes(data, chance).ljust(len(data), b"\0")[: len(data)]
    if kind in (3, 4) and inside:
        key = chance.choice(inside)
        header["__metadata__"][key] = mutated_json(header["__metadata__"][key].encode(), chance).decode(
            errors="replace"
        )
    elif kind == 4:
        entry = chance.choice([v for k, v in header.items() if k != "__metadata__"])
        entry["dtype"] = chance.choice(("F64", "F16", "BF16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "X"))
    else:
        header = mutated_value(header, chance)
    text = json.dumps(header).encode(errors="replace")
    return len(text).to_bytes(8, "little") + text + data


def mutated_npy(raw: bytes, chance: random.Random) -> bytes:
    """Another header of an .npy file, or other bytes."""
    size = 10 + int.from_bytes(raw[8:10], "little")
    if chance.randrange(2):
        return mutated_bytes(raw[:size], chance) + raw[size:]
    words = raw[10:size].split(b"'")
    at = chance.randrange(len(words))
    odd = (
        b"|O",
        b"<f8",
        b"<u1",
        b"(-1, 3)",
        b": (9999999999999, 5), ",
        b": (2, ), ",
        b"V9",
        b"<M8[s]",
        b": True, ",
        b"",
    )
    words[at] = chance.choice(odd)
    header = b"'".join(words)
    return raw[:8] + len(header).to_bytes(2, "little") + header + raw[size:]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutated_json, ".jsonl": mutated_lines, ".safetensors": mutated_safetensors, ".npy": mutated_npy,
}  # fmt: skip


@dataclass
class Report:
    """What became of the mutants of one format."""

    refused: int = 0
    equal: int = 0
    different: int = 0
    slowest: float = 0.0
    grown: int = 0  # MiB that the process has in use at most beyond what it had at the start
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.refused} refused, {self.equal} loaded as saved, {self.different} loaded as changed, slowest "
            f"{self.slowest:.3f} s, {self.grown} MiB more at the peak, {len(self.faults)} faults"
        )


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal, tensors in them bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def tried(load: Callable[[], Any], expected: Any, named: tuple[str, ...], report: Report, what: str) -> None:
    """Load one mutant: an error that says what is wrong with which file, or a result; in bounds of memory and time."""
    began = time.process_time()
    try:
        with limited_memory(MEMORY), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = load()
    except (ValueError, OSError) as error:
        report.refused += 1
        said = str(error)
        if "\n" in said or len(said) > 1500 or not any(name in said for name in named):
            report.faults.append(f"{what}: the message {said[:300]!r}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        report.faults.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    else:
        if same(result, expected):
            report.equal += 1
        else:
            report.different += 1
    seconds = time.process_time() - began  # of this process: other work on the machine does not count
    report.slowest = max(report.slowest, seconds)
    if seconds > SECONDS:
        report.faults.append(f"{what}: took {seconds:.1f} s")


def fuzzed_files(
    folder: Path, names: list[str], load: Callable[[], Any], mutants: int, seed: int, sign: Callable[[str], None] | None
) -> Report:
    """Mutate files in turn; what they were is put back after each.

    Args:
        folder: where they lie.
        names: of the files.
        load: reads them, and computes something with what it read.
        mutants: how many.
        seed: of chance.
        sign: called with the name of what was mutated, to put checksums right; what it changes is put back too.
    """
    chance, report = random.Random(seed), Report()
    originals = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    expected, before = load(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(mutants):
        name = names[number % len(names)]
        change = MUTATIONS.get(Path(name).suffix, mutated_bytes)
        (folder / name).write_bytes(change(originals[folder / name], chance))
        if sign is not None:
            sign(name)
        tried(load, expected, (str(folder), *names), report, f"mutant {number} of {name}")
        for path, content in originals.items():
            if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
                path.write_bytes(content)
    assert same(load(), expected)
    report.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return report


def fuzzed_states(state: Any, load: Callable[[Any], Any], named: str, mutants: int, seed: int) -> Report:
    """Mutate a state of plain values and tensors, as `torch.load` brings it."""
    chance, report = random.Random(seed), Report()
    expected, before = load(copy.deepcopy(state)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(mutants):
        changed = mutated_value(state, chance)
        tried(functools.partial(load, changed), expected, (named,), report, f"mutant {number}")
    report.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return report
