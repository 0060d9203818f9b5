"""Control: SH-PEFT whose candidates are the weights of the patch embedding's kernel only."""

from torch import nn

from peftbench.core.fields import Share, checked
from peftbench.errors import RequestError
from peftbench.methods.shpeft import SHPEFT


@checked
class ControlPatch(SHPEFT):
    """The importance and the k of SH-PEFT, which selects many weights of this kernel, on the kernel alone."""

    ratio: Share = 0.001  # share of the backbone's weights; the kernel is 0.687% of ViT-B/16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates != "all":
            raise RequestError(f"control_patch: candidates must be 'all' (of the kernel), got {self.candidates!r}.")

    def candidates_in(self, vit: nn.Module) -> list[str]:
        """Return the kernel."""
        return ["patch_embed.proj.weight"]


plugin = ControlPatch
