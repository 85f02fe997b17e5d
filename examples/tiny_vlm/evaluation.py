"""Scenes to answer about, of images that no training scene shows, and how they are written down."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from hf_efficient.representation.evaluation.questions import Question
from hf_efficient.representation.evaluation.questions import Scene as AskedScene

from .questions import FAMILIES
from .scenes import LAYOUTS, Images, Scene, compose_scene

Ask = Callable[[np.random.Generator, Any], tuple[str, str] | None]


def questions_of(rng: np.random.Generator, scene: Any, families: Mapping[str, Ask]) -> tuple[Question, ...]:
    """One question of each family that fits a scene."""
    turns = {family: ask(rng, scene) for family, ask in families.items()}
    return tuple(Question(*turn, family) for family, turn in turns.items() if turn is not None)


def held_out(layout: str, seed: int, count: int, images: Images) -> Iterator[tuple[Scene, tuple[Question, ...]]]:
    """`count` scenes of a layout, with questions; `images`: Fashion-MNIST's test images, by word."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = compose_scene(rng, images, LAYOUTS[layout])
        yield scene, questions_of(rng, scene, FAMILIES)


def line_of(name: str, questions: tuple[Question, ...], **more: str) -> str:
    """The line of `metadata.jsonl` about an image, as `load_evaluation_set` reads it."""
    return json.dumps({"file_name": name, "questions": [asdict(question) for question in questions], **more})


def digest_of(scenes: Iterable[AskedScene]) -> str:
    """First 16 digits of the SHA-256 of every scene's pixels and line: they tell whether a set is as it was."""
    digest = hashlib.sha256()
    for scene in scenes:
        more = {} if scene.photograph is None else {"photograph": scene.photograph}
        digest.update(scene.image.tobytes() + line_of(scene.name, scene.questions, **more).encode())
    return digest.hexdigest()[:16]
