"""Files of fixed-size records: NumPy's .npy, written piece by piece and read where one looks."""

from __future__ import annotations

import contextlib
import mmap
import os
import pathlib
import typing

import numpy as np

SUFFIX = ".npy"


class Writer:
    """Writes one array [n] of a structured dtype, of which no more than a piece is ever in memory.

    The file appears under its name when it is closed, whole; memory is that of one piece.
    """

    def __init__(self, path: str | os.PathLike[str], dtype: np.dtype):
        self._path, self._dtype, self.num_records = pathlib.Path(path), dtype, 0
        self._aside = self._path.with_name(f".{self._path.name}")
        self._file = self._aside.open("wb")
        self._write_header()

    def append(self, records: np.ndarray) -> None:
        """Writes [k] more records."""
        write(self._file, np.ascontiguousarray(records, self._dtype))
        self.num_records += len(records)

    def close(self) -> None:
        with full_disk_of(self._file):  # what is in the buffer is written now
            self._file.seek(0)
            self._write_header()
            self._file.close()
        self._aside.replace(self._path)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(OSError):  # of a full disk, of which the first error told
                self._file.close()
            self._aside.unlink(missing_ok=True)

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        facts = {"descr": descr, "fortran_order": False, "shape": (self.num_records,)}
        np.lib.format.write_array_header_1_0(self._file, facts)  # leaves room for a longer shape


class Records:
    """The records of a file; what is read of it stays in the machine's cache of files, not in this process.

    Attributes:
        array: of the file's dtype [n], read only.
    Raises:
        ValueError: it is no such file, or ends early.
    """

    def __init__(self, path: str | os.PathLike[str]):
        with open(path, "rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            except ValueError as error:
                raise _damaged(path, str(error)) from error
            start = file.tell()
            size, wanted = os.fstat(file.fileno()).st_size, start + shape[0] * dtype.itemsize
            if size != wanted:
                raise _damaged(path, f"{size} bytes instead of {wanted}")
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.array = np.frombuffer(self._mapped, dtype, shape[0], start) if shape[0] else np.zeros(0, dtype)

    def release(self) -> None:
        """Takes what was read out of this process' memory; it is read again where it is asked for."""
        self._mapped.madvise(mmap.MADV_DONTNEED)

    def pieces(self, num_records: int) -> typing.Iterator[np.ndarray]:
        """Yields the array in pieces, releasing each."""
        for start in range(0, len(self.array), num_records):
            yield self.array[start : start + num_records]
            self.release()


def write(file: typing.BinaryIO, array: np.ndarray) -> None:
    """Writes the bytes of an array [n]; unlike NumPy's `tofile`, it says of a full disk that it is full."""
    with full_disk_of(file):
        file.write(np.ascontiguousarray(array).view(np.uint8).data)


@contextlib.contextmanager
def full_disk_of(file: typing.BinaryIO) -> typing.Iterator[None]:
    """Names the file in an error of the system that does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def structured(columns: typing.Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns columns [n] and [n, k] as one structured array [n]."""
    dtype = np.dtype([(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
    result = np.empty(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        result[name] = values
    return result


def _damaged(path: object, message: str) -> ValueError:
    return ValueError(f"Example files must be whole. Received, in {path}: {message}. Write the examples again.")
