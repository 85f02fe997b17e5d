"""Scenes to answer about: on photographs and garments that no training scene shows."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from examples.tiny_vlm.evaluation import questions_of
from examples.tiny_vlm.scenes import Images
from hf_efficient.representation.evaluation.questions import Question

from .questions import FAMILIES
from .scenes import LAYOUTS, Scene, compose_scene
from .sources import SPLITS


def held_out(
    split: str, layout: str, seed: int, count: int, garments: Images
) -> Iterator[tuple[Scene, tuple[Question, ...]]]:
    """`count` scenes of a split, as many on each photograph, with one question of each family that fits.

    Args:
        split: "test" or "validation": whose photographs.
        layout: of `LAYOUTS`.
        seed: another seed makes other scenes.
        count: scenes; number n lies on photograph n modulo their number.
        garments: test images of Fashion-MNIST.
    """
    names = SPLITS[split]
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = compose_scene(rng, garments, replace(LAYOUTS[layout], photographs=(names[number % len(names)],)))
        yield scene, questions_of(rng, scene, FAMILIES)
