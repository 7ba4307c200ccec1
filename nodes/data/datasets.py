"""Labelled images from files the user has: bounds checked, nothing is downloaded.

Every loader returns all samples of a data set, including those its authors set aside for
testing: the experiment makes its own seeded split (:mod:`nodes.data.partition`).
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATASET_NAMES = ("digits", "mnist", "cifar10", "ham10000")
HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

_MAX_IDX_BYTES = 1 << 30
_CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32
_MAX_CSV_ROWS = 1_000_000


class DatasetError(ValueError):
    """A data set could not be read; the message says which file, what was expected, what to try."""


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes
    ----------
    name : the name it was loaded by
    images : float32 ``[num_samples, channels, height, width]``, scaled to -1 .. 1
    labels : int64 ``[num_samples]``, 0 .. num_classes - 1
    num_classes : number of classes
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        if self.images.dtype != np.float32 or self.images.ndim != 4:
            raise DatasetError(
                f"data set {self.name!r}: images are {self.images.dtype} {self.images.shape}, expected "
                "float32 [num_samples, channels, height, width]"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise DatasetError(
                f"data set {self.name!r}: labels are {self.labels.dtype} {self.labels.shape}, expected int64 "
                f"[{len(self.images)}]"
            )
        if len(self.labels) == 0:
            raise DatasetError(f"data set {self.name!r} has no samples")
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise DatasetError(
                f"data set {self.name!r}: labels from {self.labels.min()} to {self.labels.max()}, expected "
                f"0 to {self.num_classes - 1}"
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)

    def __len__(self) -> int:
        return len(self.labels)


def load_dataset(name: str, path: str | Path | None = None, *, image_size: int = 64) -> Dataset:
    """The data set `name`, read from the folder `path` (not needed for ``digits``).

    Parameters
    ----------
    name : ``digits`` (bundled with scikit-learn), ``mnist`` (four IDX files, gzipped or not),
        ``cifar10`` (the binary version, ``data_batch_*.bin`` and ``test_batch.bin``) or
        ``ham10000`` (folder of jpg files and ``HAM10000_metadata.csv``)
    path : folder of the files
    image_size : height and width to resize to, for ``ham10000`` [pixel]

    Raises
    ------
    DatasetError
        If the name is unknown, a file is missing, truncated or inconsistent.
    """
    if name == "digits":
        return _load_digits()
    loaders: dict[str, Callable[[Path], Dataset]] = {
        "mnist": _load_mnist,
        "cifar10": _load_cifar10,
        "ham10000": lambda folder: _load_ham10000(folder, image_size),
    }
    loader = loaders.get(name)
    if loader is None:
        raise DatasetError(f"data set {name!r} is unknown; known are {', '.join(DATASET_NAMES)}")
    if path is None:
        raise DatasetError(f"data set {name!r} is read from files: set data.path to their folder")
    folder = Path(path)
    if not folder.is_dir():
        raise DatasetError(f"data set {name!r}: {folder} is not a folder; set data.path to that of its files")
    return loader(folder)


def _scaled(pixels: np.ndarray, full_scale: float) -> np.ndarray:
    """Pixels 0 .. full_scale as float32 -1 .. 1: centred inputs train faster."""
    return pixels.astype(np.float32) * np.float32(2.0 / full_scale) - np.float32(1.0)


def _load_digits() -> Dataset:
    # The file that scikit-learn's load_digits reads; importing it would cost a second of CPU.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DatasetError("data set 'digits' comes with scikit-learn, which is not installed")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.float32)
    except (OSError, ValueError) as exc:
        raise DatasetError(f"data set 'digits': {path} of scikit-learn cannot be read: {exc}") from exc
    if rows.shape != (1797, 65):
        raise DatasetError(f"data set 'digits': {path} holds {rows.shape} numbers, expected (1797, 65)")
    images = _scaled(rows[:, :64].reshape(-1, 1, 8, 8), 16.0)
    return Dataset("digits", images, rows[:, 64].astype(np.int64), 10)


# --------------------------------------------------------------------------------------- MNIST


def _load_mnist(folder: Path) -> Dataset:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for part in ("train", "t10k"):
        image_file = _find_idx(folder, f"{part}-images", "idx3-ubyte")
        label_file = _find_idx(folder, f"{part}-labels", "idx1-ubyte")
        pixels, classes = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(pixels) != len(classes):
            raise DatasetError(
                f"data set 'mnist': {image_file.name} holds {len(pixels)} images but {label_file.name} "
                f"{len(classes)} labels; fetch both files again"
            )
        if images and pixels.shape[1:] != images[0].shape[1:]:
            raise DatasetError(
                f"data set 'mnist': {image_file} holds images of {pixels.shape[1:]} pixels, the training "
                f"images have {images[0].shape[1:]}; fetch the files from one source"
            )
        images.append(pixels)
        labels.append(classes)
    stacked = np.concatenate(images)[:, None, :, :]
    return Dataset("mnist", _scaled(stacked, 255.0), np.concatenate(labels).astype(np.int64), 10)


def _find_idx(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{separator}{kind}{suffix}" for separator in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DatasetError(
        f"data set 'mnist': none of {', '.join(names)} is in {folder}; put the four IDX files there"
    )


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """The unsigned bytes of an IDX file, ``.gz`` or plain, shaped as its header declares.

    Header: two zero bytes, type code 0x08, number of dimensions, then each size as a big-endian
    32-bit integer.

    Raises
    ------
    DatasetError
        If it is not such a file or its length contradicts its header.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    header_bytes = 4 + 4 * num_dimensions
    try:
        with opener(path, "rb") as file:
            header = file.read(header_bytes)
            if len(header) < header_bytes or header[:3] != b"\0\0\x08" or header[3] != num_dimensions:
                raise DatasetError(
                    f"reading {path}: it does not start like an IDX file of unsigned bytes with "
                    f"{num_dimensions} dimensions; is it the right file, completely downloaded?"
                )
            shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4", offset=4))
            num_bytes = 1
            for size in shape:
                num_bytes *= size
            if not 0 < num_bytes <= _MAX_IDX_BYTES:
                raise DatasetError(f"reading {path}: its header declares {shape}, which is not plausible")
            data = file.read(num_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"reading {path}: {error}; fetch the file again") from error
    if len(data) != num_bytes:
        fewer = "more" if len(data) > num_bytes else f"only {len(data)}"
        raise DatasetError(
            f"reading {path}: its header declares {shape} ({num_bytes} bytes) but it holds {fewer}; "
            "fetch the file again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


# ------------------------------------------------------------------------------------- CIFAR-10


def _load_cifar10(folder: Path) -> Dataset:
    nested = folder / "cifar-10-batches-bin"
    if nested.is_dir():
        folder = nested
    files = sorted(folder.glob("data_batch_*.bin"))
    if not files:
        hint = ""
        if (folder / "data_batch_1").exists() or (folder / "cifar-10-batches-py").exists():
            hint = " (what is there is the pickled version, which is not read: pickle can run code)"
        raise DatasetError(
            f"data set 'cifar10': no data_batch_*.bin in {folder}{hint}; get the binary version of CIFAR-10"
        )
    test_file = folder / "test_batch.bin"
    if test_file.is_file():
        files.append(test_file)
    images, labels = [], []
    for file in files:
        size = file.stat().st_size
        if size == 0 or size % _CIFAR_RECORD_BYTES:
            raise DatasetError(
                f"reading {file}: {size} bytes is not a whole number of {_CIFAR_RECORD_BYTES}-byte records; "
                "fetch the file again"
            )
        records = np.fromfile(file, dtype=np.uint8).reshape(-1, _CIFAR_RECORD_BYTES)
        if records[:, 0].max() > 9:
            raise DatasetError(
                f"reading {file}: label {records[:, 0].max()} where CIFAR-10 has 0 to 9; is it CIFAR-100?"
            )
        labels.append(records[:, 0].astype(np.int64))
        images.append(_scaled(records[:, 1:].reshape(-1, 3, 32, 32), 255.0))
    return Dataset("cifar10", np.concatenate(images), np.concatenate(labels), 10)


# ------------------------------------------------------------------------------------- HAM10000


def _load_ham10000(folder: Path, image_size: int) -> Dataset:
    if not 8 <= image_size <= 1024:
        raise DatasetError(f"data set 'ham10000': image size {image_size}; choose 8 to 1024 pixels")
    metadata = folder / "HAM10000_metadata.csv"
    if not metadata.is_file():
        raise DatasetError(f"data set 'ham10000': {metadata} is missing; it comes with the images")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DatasetError(
            "data set 'ham10000' needs Pillow to read jpg files; install the extra 'images'"
        ) from error
    where = {file.stem: file for pattern in ("*.jpg", "*/*.jpg") for file in sorted(folder.glob(pattern))}
    names, labels = _read_ham10000_metadata(metadata)
    images = np.empty((len(names), 3, image_size, image_size), dtype=np.float32)
    for row, name in enumerate(names):
        file = where.get(name)
        if file is None:
            raise DatasetError(
                f"data set 'ham10000': {metadata.name} lists {name}, but {name}.jpg is neither in {folder} "
                "nor in a folder directly below it"
            )
        try:
            with Image.open(file) as picture:
                resized = picture.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DatasetError(f"reading {file}: {error}; fetch the file again") from error
        images[row] = _scaled(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1), 255.0)
    return Dataset("ham10000", images, np.array(labels, dtype=np.int64), len(HAM10000_CLASSES))


def _read_ham10000_metadata(path: Path) -> tuple[list[str], list[int]]:
    names: list[str] = []
    labels: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"image_id", "dx"} <= set(reader.fieldnames or ()):
                raise DatasetError(
                    f"reading {path}: columns image_id and dx are needed, found {reader.fieldnames}"
                )
            for row in reader:
                if row["dx"] not in HAM10000_CLASSES:
                    raise DatasetError(
                        f"reading {path}, line {reader.line_num}: diagnosis {row['dx']!r} is not one of "
                        f"{', '.join(HAM10000_CLASSES)}"
                    )
                names.append(row["image_id"])
                labels.append(HAM10000_CLASSES.index(row["dx"]))
                if len(names) > _MAX_CSV_ROWS:
                    raise DatasetError(f"reading {path}: over {_MAX_CSV_ROWS} rows; is it the right file?")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"reading {path}: {error}") from error
    if not names:
        raise DatasetError(f"reading {path}: it lists no image")
    return names, labels
