"""Scenes of which it is known what every patch shows: what `where_tokens_know` asks about."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from hf_efficient.representation.evaluation.questions import Scene

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class ObjectScene:
    """An image with questions, and where its objects are.

    Args:
        scene: the image and what is asked.
        owner: (rows, columns) int, the object that each patch shows, -1 for background. A (rows, columns) bool mask of
            objects will do as well, as `mask.astype(int) - 1`, where `words` is empty.
        words: what each object is; empty where that is not known, then no probe is asked for it.
    """

    scene: Scene
    owner: Longs
    words: tuple[str, ...] = ()

    @property
    def distance(self) -> Longs:
        """(rows * columns,) patches from each patch to the nearest that shows an object, diagonal steps as one."""
        return np.asarray(distance_transform_cdt(self.owner < 0, "chessboard"), np.int64).ravel()

    @property
    def nearest(self) -> Longs:
        """(rows * columns,) the object nearest to each patch; one of several as near."""
        at = distance_transform_cdt(self.owner < 0, "chessboard", return_distances=False, return_indices=True)
        return self.owner[tuple(at)].ravel()

    @property
    def places(self) -> list[int]:
        """Place of each object, 0 to 8 in reading order: that of its middle on a raster of 3 x 3."""
        (rows, columns), places = self.owner.shape, []
        for item in range(int(self.owner.max()) + 1):
            down, right = (float(at.mean()) if len(at) else 0.0 for at in np.nonzero(self.owner == item))
            places.append(int((down + 0.5) * 3 / rows) * 3 + int((right + 0.5) * 3 / columns))
        return places


def tiny_scenes(seed: int, layout: str, count: int) -> Iterator[ObjectScene]:
    """Held-out scenes of the tiny VLM (needs Fashion-MNIST); `layout` is one of `examples.tiny_vlm.scenes.LAYOUTS`."""
    from examples.tiny_vlm.evaluation import held_out
    from examples.tiny_vlm.scenes import GRID, LAYOUTS, load_fashion_mnist

    _check_layout(layout, LAYOUTS)
    scenes = held_out(layout, seed, count, load_fashion_mnist("t10k"))
    for number, (made, questions) in enumerate(scenes):
        scene = Scene(f"{layout} {seed} {number}", made.image(), questions)
        yield ObjectScene(scene, made.owner.reshape(GRID, GRID), tuple(item.word for item in made.items))


def photo_scenes(seed: int, layout: str, count: int) -> Iterator[ObjectScene]:
    """Validation scenes of the VLM behind DINOv2; `layout` is one of `examples.photo_vlm.scenes.LAYOUTS`."""
    from examples.photo_vlm.evaluation import held_out
    from examples.photo_vlm.scenes import GRID, LAYOUTS
    from examples.tiny_vlm.scenes import load_fashion_mnist

    _check_layout(layout, LAYOUTS)
    scenes = held_out("validation", layout, seed, count, load_fashion_mnist("t10k"))
    for number, (made, questions) in enumerate(scenes):
        scene = Scene(f"{layout} {seed} {number}", made.image(), questions, made.photograph)
        yield ObjectScene(scene, made.owner.reshape(GRID, GRID), tuple(item.name for item in made.items))


def _check_layout(layout: str, known: Iterable[str]) -> None:
    if layout not in known:
        raise ValueError(f"{layout!r} is not a layout of scenes; expected one of {', '.join(map(repr, known))}.")


def scenes_of(source: str, seed: int, layout: str, count: int) -> list[ObjectScene]:
    """`count` scenes of the generator "module:function", called like `tiny_scenes`.

    Raises:
        ValueError: there is no such generator, or no such layout of it; or a scene without any object, whose distances
            would mean nothing.
    """
    module, _, function = source.partition(":")
    try:
        generator = getattr(importlib.import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(
            f"source {source!r}: {error}; expected MODULE:FUNCTION, such as {tiny_scenes.__module__}:tiny_scenes."
        ) from error
    made: Sequence[ObjectScene] = list(generator(seed, layout, count))
    empty = [one.scene.name for one in made if (one.owner < 0).all()]
    if empty:
        raise ValueError(f"{len(empty)} scenes of {source} show no object, {empty[0]!r} first; expected one in each.")
    return list(made)
