"""Tasks from folders of pictures, which are read when a batch needs them."""

import contextlib
import functools
import hashlib
import operator
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from citynb.tasks.split import Split

PICTURE_FILES = (".jpg", ".jpeg", ".png")
PARTS = ("train", "validation", "test")
COLORS = ("red", "green", "blue")
# What every whole JPEG and PNG ends with, and how far from the end of the file it is looked for:
# phones append a few kilobytes of their own.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
TAIL = 16_384


class PictureFiles:
    """JPEG and PNG files as one array of bytes (n, height, width, 3), each read when asked for.

    A picture is turned as its camera noted (EXIF), made RGB, cut in the middle to the shape, and
    scaled (bilinear), as `keras.utils.load_img` does with `keep_aspect_ratio=True`. `[rows]` takes
    what an index of a one-dimensional array takes, and reads the pictures in parallel.

    Args:
        paths: sequence of n paths.
        shape: (height, width) in pixels.

    Attributes:
        paths: array (n,) of Path.
        shape, dtype: those of the array that the files stand for.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths, shape):
        self.paths = np.empty(len(paths), object)
        self.paths[:] = [Path(path) for path in paths]
        self.shape = (len(self.paths), *shape, 3)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, rows):
        """Return the pictures of these rows, uint8.

        Raises:
            ValueError: a file is not a whole JPEG or PNG picture; the message names it.
        """
        if isinstance(rows, tuple) or rows is Ellipsis:
            raise IndexError("files of pictures are indexed by rows only: inputs[rows][..., 0]")
        paths = self.paths[rows]
        if isinstance(paths, Path):
            return _read(paths, self.shape[1:3])
        pictures = np.empty((len(paths), *self.shape[1:]), np.uint8)

        def read(place):
            pictures[place] = _read(paths[place], self.shape[1:3])

        list(_pool().map(read, range(len(paths))))  # a list, so that errors are raised
        return pictures

    def __array__(self, dtype=None, copy=None):
        """Read all pictures into memory: height x width x 3 bytes each, 3 GB for 20,000 of 224."""
        return np.asarray(self[:], dtype)

    def take(self, rows):
        """Return the files of these rows; nothing is read."""
        return PictureFiles(self.paths[rows], self.shape[1:3])

    def digest(self):
        """Return a checksum of the files' bytes, in order; no picture is decoded."""
        sums = _pool().map(_digest, self.paths)
        return hashlib.sha256("".join(sums).encode()).hexdigest()


def color_statistics(inputs, batch_size=64):
    """Return what a model without a network can know of pictures: their colors.

    Args:
        inputs: (n, height, width, 3), uint8 or float32, read `batch_size` at a time.

    Returns:
        DataFrame (n, 6), float32: the mean and the spread (standard deviation) of red, green and
        blue over the pixels of each picture, where 1 is full brightness.
    """
    rows = []
    for start in range(0, inputs.shape[0], batch_size):
        stop = min(start + batch_size, inputs.shape[0])
        batch = np.asarray(inputs[np.arange(start, stop)])
        scale = 255 if batch.dtype == np.uint8 else 1
        batch = batch.astype(np.float32) / np.float32(scale)
        both = np.stack([batch.mean((1, 2)), batch.std((1, 2))], axis=-1)  # (b, colors, 2)
        rows.append(both.reshape(len(batch), -1))
    columns = [f"{statistic} {color}" for color in COLORS for statistic in ("mean", "spread")]
    return pd.DataFrame(np.concatenate(rows), columns=columns)


def folder_splits(folder, *, image_size=96, group_of=None, seed=0, name=None):
    """Make the three splits of `CityTask.from_folder`, which says what the arguments mean.

    Headers are read at once, and so are whole pictures that look cut off. All other pixels are
    read with their batch.

    Returns:
        (list of three Split, tuple of class names, what the splits were made by)

    Raises:
        FileNotFoundError, ValueError: as `CityTask.from_folder`.
    """
    folder = Path(folder)
    name = name or folder.name
    shape = _shape(image_size)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. It needs one folder of pictures for each class."
        )
    inside = _folders(folder)
    given = [part for part in PARTS if part in inside]
    if given and not {"train", "test"} <= set(given):
        raise ValueError(
            f"{folder} has {' and '.join(given)}, but a given split needs train and test. "
            "Add the missing folder, or put the classes at the top and let them be split here."
        )
    if given and (strange := sorted(set(inside) - set(PARTS))):
        way_out = "Rename it to validation" if strange[0].startswith("val") else "Move it elsewhere"
        raise ValueError(
            f"{folder / strange[0]} stands beside {' and '.join(given)}, where only train, "
            f"validation and test are read. {way_out}."
        )
    files = pd.DataFrame(
        [row for part in given or [""] for row in _list_pictures(folder / part, part)],
        columns=["path", "class", "part"],
    )
    class_names = tuple(sorted(files["class"].unique()))
    if len(class_names) < 2:
        raise ValueError(
            f"{folder} has {len(class_names)} class folder(s) with pictures "
            f"({', '.join(class_names) or 'none'}); a task needs two or more."
        )
    for part, classes in files.groupby("part")["class"]:
        if missing := sorted(set(class_names) - set(classes)):
            raise ValueError(
                f"{folder / part} has no pictures of the class {missing[0]!r}, which other "
                "splits have. Every split needs the same class folders."
            )
    # One after the other: threads that read a few bytes each wait for one another twice as long.
    files["size"] = [_check_header(path) for path in files["path"]]
    files["content"] = _contents(files, folder)
    order = files["part"].map({"test": 0, "validation": 1, "train": 2, "": 3})
    kept_in = files.iloc[order.argsort(kind="stable")].groupby("content")["part"].transform("first")
    leaks = kept_in.reindex(files.index) != files["part"]
    if leaks.any():
        warnings.warn(
            f"{name}: {leaks.sum()} picture(s) also stand in another split and were left out, "
            f"{files['path'][leaks.idxmax()]} for example.",
            stacklevel=3,
        )
        files = files[~leaks].reset_index(drop=True)
    files["group"] = files["content"]
    if group_of is not None:
        files["group"] = [_group(group_of, path) for path in files["path"]]
        files["group"] = files.groupby("content")["group"].transform("first")

    rng = np.random.default_rng(seed)
    if not given:
        _deal_groups(files, "", {"train": 0.6, "validation": 0.2, "test": 0.2}, rng, name)
    elif "validation" not in given:
        _deal_groups(files, "train", {"train": 0.8, "validation": 0.2}, rng, name)
    splits = []
    for part in PARTS:
        rows = files[files["part"] == part]
        splits.append(
            Split(
                inputs=PictureFiles(rows["path"], shape),
                labels=rows["class"].map(class_names.index).to_numpy(np.int64),
                groups=rows["group"].to_numpy(str),
                table=color_statistics,
            )
        )
    made_by = "given folders" if given else "picture" if group_of is None else "group"
    return splits, class_names, made_by


@functools.cache
def _pool():
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), "pictures")


def _shape(image_size):
    try:
        pair = image_size if np.iterable(image_size) else (image_size, image_size)
        height, width = map(operator.index, pair)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(
            f"image_size is {image_size!r}; give whole pixels from 1, as one number or as "
            "(height, width)."
        )
    return height, width


def _folders(folder):
    """Return the names of the folders inside, without hidden ones such as .ipynb_checkpoints."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_pictures(folder, part):
    """Return a row for each picture in the class folders of `folder`; refuse what is no picture."""
    rows = []
    for class_name in _folders(folder):
        class_folder = folder / class_name
        pictures = sorted(path for path in class_folder.iterdir() if not path.name.startswith("."))
        strange = [path for path in pictures if path.suffix.lower() not in PICTURE_FILES]
        if strange:
            raise ValueError(
                f"{strange[0]} is no picture ({', '.join(PICTURE_FILES)}). Move it elsewhere; "
                "a class folder holds only pictures."
            )
        if not pictures:
            raise ValueError(f"The class folder {class_folder} is empty. Fill it or remove it.")
        rows += [(path, class_name, part) for path in pictures]
    return rows


def _contents(files, folder):
    """Return a name for the content of each file, the same for exact copies: the path of the first.

    Only files of equal size can be copies, so that only those are read.
    """
    first, names = {}, []
    alike = files["size"].duplicated(keep=False)
    digests = map(_digest, files["path"][alike])
    for path, may_be_copy in zip(files["path"], alike):
        name = path.relative_to(folder).as_posix()
        names.append(first.setdefault(next(digests), name) if may_be_copy else name)
    return names


def _digest(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _group(group_of, path):
    try:
        group = group_of(path)
    except Exception as error:
        raise ValueError(
            f"group_of failed for {path}: {type(error).__name__}: {error}. It takes the picture's "
            "Path and returns its group."
        ) from error
    if pd.api.types.is_scalar(group) and pd.isna(group):
        raise ValueError(
            f"group_of gave {group} for {path}. Give every picture a group; one that shares "
            "nothing is a group of its own, such as its file name."
        )
    return str(group)


def _deal_groups(files, part, shares, rng, name):
    """Give whole groups of `part` to new parts, class by class, so that each gets its share."""
    undealt = files[files["part"] == part]
    # A group goes with the class it has most of, so that rare classes reach every part.
    counts = undealt.groupby(["group", "class"]).size().unstack(fill_value=0)
    main_class = counts.idxmax(axis=1)
    dealt = {}
    for _, groups in main_class.groupby(main_class):
        shuffled = rng.permutation(groups.index.to_numpy())
        ends = np.round(np.cumsum(list(shares.values())) * len(groups)).astype(int)
        least = np.arange(1, len(shares) + 1)  # a group for each part, as far as they reach
        most = len(groups) - np.arange(len(shares) - 1, -1, -1)
        ends = np.clip(ends, least, np.maximum(most, least)).clip(max=len(groups))
        for new_part, members in zip(shares, np.split(shuffled, ends[:-1])):
            dealt |= dict.fromkeys(members, new_part)
    parts = undealt["group"].map(dealt)
    # A rare class may be nowhere the main one and still reach every part, inside of groups.
    for class_name, reached in parts.groupby(undealt["class"]):
        if missing := [part for part in shares if part not in set(reached)]:
            groups = undealt["group"][undealt["class"] == class_name].nunique()
            enough = groups >= len(shares)
            way_out = "Choose another seed" if enough else "Add pictures from other places"
            raise ValueError(
                f"{name}: the class {class_name!r} has {groups} group(s), and none of them came "
                f"to {missing[0]}; each of {', '.join(shares)} needs one. {way_out}, or give train, "
                "validation and test folders yourself."
            )
    files.loc[undealt.index, "part"] = parts


def _check_header(path):
    """Return the size of a file in bytes after a look at its header and its end."""
    if not path.is_file():  # a pipe would wait for ever
        raise ValueError(f"{path} is not a regular file. Remove it.")
    with _naming(path), open(path, "rb") as stream:
        with Image.open(stream, formats=tuple(ENDS)) as picture:
            # MPO is what Pillow calls a JPEG file with a second picture in it.
            end = ENDS.get(picture.format, ENDS["JPEG"])
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL))
            whole = end in stream.read()
    if not whole:  # cut off, or with much appended: only all of it can tell
        _read(path, (8, 8))
    return size


def _read(path, shape):
    if not path.is_file():
        raise ValueError(f"{path} is gone, or is not a regular file. Get it again.")
    with _naming(path), Image.open(path, formats=tuple(ENDS)) as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # 16 bits of grey, which convert() would cut at 255
            picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
        picture = picture.convert("RGB")
        (height, width), (wide, high) = shape, picture.size
        if (wide, high) != (width, height):
            cut_high = max(1, min(high, wide * height // width))
            cut_wide = max(1, min(wide, high * width // height))
            left, top = (wide - cut_wide) // 2, (high - cut_high) // 2
            box = (left, top, left + cut_wide, top + cut_high)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture)


@contextlib.contextmanager
def _naming(path):
    """Name the picture in whatever Pillow raises; broken files make it raise a dozen kinds."""
    try:
        yield
    except Exception as error:
        reason = error
        if isinstance(error, UnidentifiedImageError):  # its text names an address in memory
            reason = "its content is neither JPEG nor PNG"
        raise ValueError(
            f"{path} cannot be read as a picture ({reason}). Remove it or get it again."
        ) from error
