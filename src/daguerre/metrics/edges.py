"""How well the edges of an image follow those of a condition map.

    F1 = 2·P·R / (P + R)

P is the share of the image's edge pixels with an edge of the map within `tolerance` pixels, R the share of the map's edge pixels with one
of the image (Martin et al. 2004, doi:10.1109/TPAMI.2004.1273918, without the one-to-one matching).
"""

import numpy as np
from PIL import Image, ImageFilter

TOLERANCE = 2  # pixels, in each direction


def edge_f1(found: Image.Image, wanted: Image.Image, tolerance: int = TOLERANCE) -> float:
    """The F1 score in [0, 1] of two edge maps of one size, white on black. Two empty maps agree: 1."""
    maps = [image.convert("L") for image in (found, wanted)]
    masks = [np.asarray(image) > 127 for image in maps]
    near = [np.asarray(image.filter(ImageFilter.MaxFilter(2 * tolerance + 1))) > 127 for image in maps]
    if not masks[0].any() and not masks[1].any():
        return 1.0
    matched = [masks[0] & near[1], masks[1] & near[0]]
    precision, recall = (hit.sum() / max(mask.sum(), 1) for hit, mask in zip(matched, masks, strict=True))
    return float(2 * precision * recall / max(precision + recall, np.finfo(float).tiny))
