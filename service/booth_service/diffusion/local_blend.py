"""Local blend (Hertz et al. 2022, 3.2): outside of where an edit's words are drawn, the source stays as it is."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

THRESHOLD = 0.3  # of a map's largest value, as in the authors' code
MASK_CELLS = 8 * 8  # of a map that is worth being a mask
START = 0.2  # of the steps: before that nothing is drawn yet that a map could find (theirs too)


@dataclass
class LocalBlend:
    """Where the words of one edit are drawn, summed up over layers and steps so far.

    `source_places` and `edited_places` are the words' token positions in either prompt; one may be empty, not both.
    """

    source_places: list[int]
    edited_places: list[int]
    latent_size: tuple[int, int]
    _sums: dict[int, Tensor] = field(default_factory=dict)

    def read(self, source: Tensor, edited: Tensor) -> None:
        """Add one layer's maps (heads, cells, tokens) of both rows."""
        pairs = ((source, self.source_places), (edited, self.edited_places))
        both = torch.stack([maps[..., places].sum(-1).mean(0) for maps, places in pairs])
        cells = both.shape[-1]
        self._sums[cells] = self._sums[cells] + both if cells in self._sums else both

    def blended(self, source: Tensor, edited: Tensor) -> Tensor:
        """The edited latents (channels, height, width) where a word is drawn in either picture, else the source's."""
        level = self._level()
        maps = self._sums[level].reshape(2, 1, *level_size(self.latent_size, level))
        return torch.where(mask_of(maps, self.latent_size).any(0), edited, source)

    def _level(self) -> int:
        """Cells of the coarsest level with a quarter of the latents' side or more: 16 x 16 of 64 x 64, as the authors'.

        Where that is too small to be a mask the next finer one, or the finest there is.
        """
        height, width = self.latent_size
        least = max(-(-height // 4) * -(-width // 4), MASK_CELLS)
        return min((cells for cells in self._sums if cells >= least), default=max(self._sums))


def mask_of(maps: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """Where maps (rows, 1, height, width), widened by a cell, exceed the threshold: booleans, of the latents' size."""
    widened = interpolate(max_pool2d(maps, 3, stride=1, padding=1), size=latent_size)
    return widened > THRESHOLD * widened.amax(dim=(2, 3), keepdim=True)


def level_size(latent_size: tuple[int, int], cells: int) -> tuple[int, int]:
    """Height and width of the UNet's level of so many cells: the latents', halved until it fits.

    Raises ValueError where no level has that many.
    """
    height, width = latent_size
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != cells:
        raise ValueError(f"no level of {latent_size[0]} x {latent_size[1]} latents has {cells} cells")
    return height, width
