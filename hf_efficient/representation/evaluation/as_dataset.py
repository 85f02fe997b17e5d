"""An evaluation set as a `datasets.Dataset`: a row a question."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .questions import EVALUATION_SET, load_evaluation_set

#: Column -> what it holds.
COLUMNS = {
    "image": "RGB; the same picture stands in the row of each question about it",
    "question": "as the model is asked, without a template",
    "answer": "the one that is right, word for word",
    "family": "of questions that ask for the same kind of thing",
    "scene": "name of the picture: resample by it, for the questions about a picture are not independent",
    "photograph": "that the picture was made on; None where it was made on none",
}


def evaluation_dataset(folder: str | os.PathLike[str] = EVALUATION_SET) -> Any:
    """A folder of images with questions, as `find_plan` takes it and `push_to_hub` sends it.

    Nothing is fetched. Rows hold the bytes of their pictures, so that Parquet files do: of a picture that is given by
    its path `to_parquet` writes the path alone. They stand there once for each question about the picture.

    Args:
        folder: as of `load_evaluation_set`; by default the shipped set.

    Returns:
        A `datasets.Dataset` with the columns of `COLUMNS`, in the order of the folder.

    Raises:
        ImportError: datasets is not installed.
        TypeError, FileNotFoundError, ValueError: as `load_evaluation_set`.
    """
    try:
        from datasets import Dataset, Features, Image, Value
    except ImportError as error:
        raise ImportError("datasets is not installed: pip install datasets") from error
    features = Features({name: Image(mode="RGB") if name == "image" else Value("string") for name in COLUMNS})
    rows = []
    for scene in load_evaluation_set(folder):
        # without a path: where it names a file of the working directory, datasets would take that one instead
        image = {"bytes": (Path(folder) / scene.name).read_bytes(), "path": None}
        rows += [
            {"image": image, "question": q.question, "answer": q.answer, "family": q.family, "scene": scene.name,
             "photograph": scene.photograph}
            for q in scene.questions
        ]  # fmt: skip
    return Dataset.from_list(rows, features=features)
