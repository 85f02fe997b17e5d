"""Files are read as untrusted: sizes, types and ranges are checked before anything is built from them.

Every error is a ValueError of one line that names the file, the value, and what was expected. torch is imported only
where tensors are read.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LARGEST_JSON = 1 << 20
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
AGAIN = "Fetch or save it again."
NOT_PRINTED = r"[\x00-\x1f\x7f\ud800-\udfff]"  # what no line of a message or a page can hold


class _Short(reprlib.Repr):
    """As reprlib's, with longer texts, and of a tensor its dtype and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_Tensor(self, value: Tensor, level: int) -> str:
        """Called for objects of this class name."""
        return f"a tensor, {value.dtype} {tuple(value.shape)}"


def shown(value: object) -> str:
    """A value for a message: of any size, but short and on one line."""
    return " ".join(_Short().repr(value).split())


def parse_json(raw: bytes, said: str) -> Any:
    """Parse UTF-8 JSON.

    Raises:
        ValueError: it is not JSON; the message begins with `said`.
    """
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{said}: {error}. {AGAIN}") from error


def read_json(path: str | os.PathLike[str], largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file of at most `largest` bytes.

    Raises:
        ValueError: it is larger, not JSON, or not an object.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        raw = file.read(largest + 1)
    if len(raw) > largest:
        raise ValueError(f"{path} is larger than {largest} bytes, more than such a file has. {AGAIN}")
    return parse_object(raw, path)


def parse_object(raw: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in the text of a file, read or to be written.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    values = parse_json(raw, f"{path} is not valid JSON")
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}, expected an object.")
    return values


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """In the block, a ValueError that does not name the file gets its name."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def errors_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """For library code that reads a file without checking it: in the block its errors become a ValueError."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error) and "\n" not in str(error):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} cannot be used: {shown(said)}. {AGAIN}") from error


class Fields:
    """The fields of a JSON object, each taken as what it has to be.

    Args:
        values: what was read.
        where: what messages begin with, e.g. the file.

    Raises:
        ValueError: `values` is not an object; from the methods: a field is absent, of another type or out of range.
    """

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{where}: expected an object, found {shown(values)}. {AGAIN}")
        self.values, self.where = values, where

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise ValueError(f"{self.where}: {name} is missing. {AGAIN}")
        return self.values[name]

    def wrong(self, name: str, expected: str) -> ValueError:
        """The error that says what a field is and what it should be."""
        return ValueError(f"{self.where}: {name}={shown(self[name])} is out of range; expected {expected}. {AGAIN}")

    def whole(self, name: str, least: int = 0, most: int = 2**53) -> int:
        """A whole number."""
        value = self[name]
        if not is_whole(value) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return int(value)

    def number(self, name: str, least: float = -math.inf, most: float = math.inf, finite: bool = True) -> float:
        """A number; finite unless said otherwise, and never NaN."""
        value = self[name]
        if not is_number(value, finite) or not least <= value <= most:
            raise self.wrong(name, f"a number from {least} to {most}")
        return float(value)

    def text(self, name: str, pattern: str = rf"(?:(?!{NOT_PRINTED}).){{0,4096}}") -> str:
        """A string that matches the whole pattern; by default one line of any text."""
        value = self[name]
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise self.wrong(name, f"text of the form {pattern}")
        return value

    def items(self, name: str, most: int = 4096) -> list[Any]:
        """A list."""
        value = self[name]
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(name, f"a list of at most {most}")
        return value

    def fields(self, name: str) -> Fields:
        """An object inside this one."""
        return Fields(self[name], f"{self.where}: {name}")


def is_whole(value: object) -> bool:
    """Whether it is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object, finite: bool = True) -> bool:
    """Whether it is an int or float, not NaN, that a float can hold; finite unless said otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value) or (not finite and not math.isnan(value))
    except OverflowError:
        return False


class Stored(NamedTuple):
    """A tensor as a file's header describes it: safetensors' name of the dtype ("F32"), and the shape."""

    dtype: str
    shape: tuple[int, ...]


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """An opened safetensors file, of which only the header has been read.

    Raises:
        ValueError: it is not a whole safetensors file; its header then disagrees with its length, among other things.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(path, framework="pt")
    except OSError as error:
        raise error if str(path) in str(error) else OSError(f"{path} cannot be read: {error}") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: not a whole safetensors file ({shown(str(error))}). {AGAIN}") from error
    try:
        with opened as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: not a whole safetensors file ({shown(str(error))}). {AGAIN}") from error


def stored_in(file: Any) -> dict[str, Stored]:
    """What the header of an opened safetensors file says of its tensors."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
    return {name: Stored(str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}


def read_tensors(
    path: str | os.PathLike[str], expected: Mapping[str, Sequence[int]], dtypes: Collection[str] = FLOATS
) -> dict[str, Tensor]:
    """All tensors of a safetensors file, whose header is compared first.

    Args:
        path: of the file.
        expected: name -> shape, of every tensor that has to be there; others may not be.
        dtypes: that they may have, as safetensors names them.

    Raises:
        ValueError: the file is damaged, or holds other tensors.
        OSError: it cannot be read.
    """
    with open_tensors(path) as file:
        stored = stored_in(file)
        for name in sorted(stored.keys() | expected.keys()):
            found, wanted = stored.get(name), expected.get(name)
            if found is None or wanted is None or found.shape != tuple(wanted) or found.dtype not in dtypes:
                said = "absent" if found is None else f"{found.dtype} {shown(found.shape)}"
                needed = "no such tensor" if wanted is None else f"{' or '.join(dtypes)} {tuple(wanted)}"
                raise ValueError(
                    f"{path} is damaged or from another model: {name[:200]!r} is {said}, expected {needed}. {AGAIN}"
                )
        return {name: file.get_tensor(name) for name in stored}


def read_array(path: str | os.PathLike[str], dtype: str, shape: Sequence[int | None]) -> np.ndarray:
    """An .npy file, mapped into memory and not read; pickled objects are refused.

    Args:
        path: of the file.
        dtype: numpy's name of the one it has to have.
        shape: that it has to have; None: any number >= 1.

    Raises:
        ValueError: the file is damaged, or holds another array.
        OSError: it cannot be read.
    """
    import numpy as np

    try:
        array = np.lib.format.open_memmap(os.fspath(path), mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python text, and what is wrong with that is of any kind
        raise ValueError(f"{path} is damaged: not a whole .npy file ({shown(str(error))}). {AGAIN}") from error
    fits = len(array.shape) == len(shape) and all(
        found >= 1 if wanted is None else found == wanted for found, wanted in zip(array.shape, shape, strict=True)
    )
    if array.dtype != np.dtype(dtype) or not fits:
        wanted_shape = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{path} is damaged or belongs to other work: it holds {array.dtype} {array.shape}, expected {dtype} "
            f"({wanted_shape}). Delete it: it is made again."
        )
    return array
