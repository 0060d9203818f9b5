"""Control: SH-PEFT whose candidates are the weights of the patch embedding's kernel alone."""

from dataclasses import dataclass
from typing import Literal  # noqa: F401 - inherited fields are annotated with it, and read from here

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods.shpeft import SHPEFT


@dataclass(frozen=True)
class ControlPatch(SHPEFT):
    """The same importance and the same k; only where to look differs, for SH-PEFT puts much of its mask there."""

    ratio: float = 0.001  # share of the backbone's weights; the kernel is 0.687% of ViT-B/16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates != "all":
            raise RequestError(
                f"control_patch: candidates = {self.candidates} will not do: all weights of the kernel are."
            )

    def candidates_in(self, vit: nn.Module) -> list[str]:
        """The kernel."""
        return ["patch_embed.proj.weight"]


plugin = ControlPatch
