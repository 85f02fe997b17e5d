"""When an answer counts as right: word for word, but for families whose answers may be nearly right."""

import re
from collections.abc import Callable

#: IoU from which a box counts as found.
FOUND = 0.5
_BOX = re.compile(r"\s*".join([r"<x(\d+)>"] * 4))

Box = tuple[int, int, int, int]


def box_of(words: str) -> Box | None:
    """The box that four coordinate words (`<x3> <x4> <x9> <x12>`) and no others name: left, top, right, bottom."""
    found = _BOX.fullmatch(words.strip())
    if found is None:
        return None
    left, top, right, bottom = map(int, found.groups())
    return left, top, right, bottom


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes given by their edges; 0 where either is empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (one, other)]
    return both / (sum(areas) - both) if both else 0.0


def points_at(given: str, right: str) -> bool:
    """Whether the box given overlaps the right one by an IoU of `FOUND` or more."""
    boxes = box_of(given), box_of(right)
    return boxes[0] is not None and boxes[1] is not None and overlap(boxes[0], boxes[1]) >= FOUND


#: Families of questions whose answers need not be word for word: what of (given, right) is right.
RULES: dict[str, Callable[[str, str], bool]] = {"point": points_at}
