"""Outlines of the classes in a label map, as GeoJSON in pixel coordinates.

Outlines run along the edges of pixels: pixel (row y, column x) is the square from (x, y) to (x + 1, y + 1). Rasterised
by the centres of pixels, as GDAL does, they give the label map back exactly. Each polygon is a 4-connected region; its
rings touch neither themselves nor, except at single points, each other, as the OGC's simple features demand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.opencv import cv2
from isnet_trt.pictures.label_maps import LabelMap, class_shares, with_void

Points = NDArray[np.int32]
"""(N, 2) as (x, y)."""
Ring = list[tuple[int, int]]
"""Corners as (x, y), the first not repeated at the end."""


def feature_collection(labels: LabelMap, names: Sequence[str], palette: NDArray[np.uint8]) -> dict[str, Any]:
    """A GeoJSON feature collection: one MultiPolygon for each class that occurs, the largest class first.

    ``properties`` of a feature: ``class_id``, ``name``, ``color`` (R, G, B) and ``area`` in pixels.
    """
    ids = with_void(labels, len(names))
    features = [
        {
            "type": "Feature",
            "properties": {
                "class_id": number,
                "name": names[number],
                "color": palette[number].tolist(),
                "area": round(share * ids.size),
            },
            "geometry": {"type": "MultiPolygon", "coordinates": _polygons(ids == number)},
        }
        for number, share in class_shares(ids, len(names)).items()
    ]
    height, width = ids.shape
    return {"type": "FeatureCollection", "height": height, "width": width, "features": features}


def _polygons(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """The 4-connected regions of ``mask``, each as its outline and then its holes, closed rings."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    inside = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    _, regions = cv2.connectedComponents(np.pad(inside, 1), connectivity=4)
    regions = np.asarray(regions)
    rings: dict[int, list[Ring]] = {}
    for ring in _rings(inside):
        rings.setdefault(_region(ring, regions), []).append([(x + left, y + top) for x, y in ring])
    return [_polygon(region) for region in rings.values()]


def _rings(mask: NDArray[np.uint8]) -> Iterator[Ring]:
    """Outlines and holes along the edges of pixels, found by OpenCV, which traces the centres of border pixels.

    In a mask enlarged to 2×2 pixels for each, border pixels lie at 2x and 2x + 1 for the edges x and x + 1 of an
    outline, at 2x − 1 and 2x + 2 for those of a hole: half of the next coordinate, rounded down, is the edge.
    """
    doubled = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    points: Points = (np.concatenate(contours)[:, 0].astype(np.int32) + 1) // 2
    lengths = np.array([len(contour) for contour in contours])
    # Diagonal steps became steps of no length.
    points, lengths = _select(points, lengths, (points != points[_neighbours(lengths)[0]]).any(1))
    before, after = (points - points[index] for index in _neighbours(lengths))
    points, lengths = _select(points, lengths, (before[:, 0] == 0) != (after[:, 0] == 0))
    yield from _follow(points, _part_diagonals(points, _neighbours(lengths)[1]))


def _neighbours(lengths: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the point before and the point after each one, in rings of these lengths one after the other."""
    ends = np.cumsum(lengths)
    before, after = np.arange(ends[-1]) - 1, np.arange(ends[-1]) + 1
    before[ends - lengths], after[ends - 1] = ends - 1, ends - lengths
    return before, after


def _select(points: Points, lengths: NDArray[np.intp], keep: NDArray[np.bool_]) -> tuple[Points, NDArray[np.intp]]:
    """The points to ``keep``, and how many of them each ring has."""
    return points[keep], np.add.reduceat(keep, np.cumsum(lengths) - lengths, dtype=np.intp)


def _part_diagonals(points: Points, following: NDArray[np.intp]) -> NDArray[np.intp]:
    """The points after each one, such that pixels that touch by a corner only are in different rings.

    OpenCV takes them for connected: its rings pass such a corner twice, each time from one pixel to the other.
    """
    x, y = points.T.astype(np.int64)
    order = np.argsort(keys := y << 32 | x, kind="stable")
    twice = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    first, second = order[twice], order[twice + 1]
    following[first], following[second] = following[second], following[first]
    return following


def _follow(points: Points, following: NDArray[np.intp]) -> Iterator[Ring]:
    """The rings in which each point is followed by the one of this index, none with a repeated point."""
    corners, after = list(map(tuple, points.tolist())), following.tolist()
    for start in range(len(corners)):
        ring, index = [], start
        while after[index] >= 0:
            ring.append(corners[index])
            after[index], index = -1, after[index]
        if ring:
            yield from _split(ring)


def _split(ring: Ring) -> Iterator[Ring]:
    """Rings without a repeated point that together enclose what ``ring`` does."""
    path: Ring = []
    index: dict[tuple[int, int], int] = {}
    for point in ring:
        if point in index:
            start = index[point]
            yield path[start:]
            for passed in path[start + 1 :]:
                del index[passed]
            del path[start + 1 :]
        else:
            index[point] = len(path)
            path.append(point)
    yield path


def _region(ring: Ring, regions: NDArray[Any]) -> int:
    """The region, of those in the mask with a border of one pixel, on one side of the ring's first edge."""
    (x, y), (next_x, next_y) = ring[:2]
    column, row = min(x, next_x), min(y, next_y)
    other = (row, column + 1) if y == next_y else (row + 1, column)
    return max(int(regions[row + 1, column + 1]), int(regions[other]))


def _polygon(rings: list[Ring]) -> list[Ring]:
    """The rings of a region, the outline first, each closed and in the direction of RFC 7946, 3.1.6."""
    areas = [_area(ring) for ring in rings]
    outline = max(range(len(rings)), key=lambda i: abs(areas[i]))  # it encloses the others
    turned = [
        ring if (area > 0) == (i == outline) else ring[::-1]
        for i, (ring, area) in enumerate(zip(rings, areas, strict=True))
    ]
    order = [outline, *(i for i in range(len(rings)) if i != outline)]
    return [[*turned[i], turned[i][0]] for i in order]


def _area(ring: Ring) -> int:
    """Twice the area; positive if x turns towards y."""
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], ring[0]], strict=True))
