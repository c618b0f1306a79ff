"""The encoders to compare: pathology foundation models, DINOv2, ImageNet's ResNet-50, and a random network.

Facts are those of the model cards on the hub, read in stored copies; where another source served it is named.
Commits marked "pinned" are those that public code pins or has in its cache, since the hub itself could not be asked.
docs/encoders.md holds the table.
"""

from __future__ import annotations

import timm
import torch
from timm.layers import SwiGLUPacked, to_2tuple
from torch import Tensor, nn

from zoomfeat.conf.schema import EncoderConfig
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.layouts import from_dinov2, from_old_swin, from_transformers, without_classifier
from zoomfeat.encoders.pretrained import TimmEncoder, pretrained
from zoomfeat.encoders.registry import encoder_info, register
from zoomfeat.magnification import Magnification

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pretrained(
    dim=1024,
    input_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bilinear",  # transforms.Resize(224), torchvision's default
    feature="cls",
    magnification="20x",
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    hub="MahmoodLab/UNI",
    revision="b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",  # pinned
    file="pytorch_model.bin",
    parameters=303_350_784,
)
def uni() -> nn.Module:
    """UNI, ViT-L/16 by DINOv2; the embeddings that ZoomLDM was trained on."""
    return timm.create_model(
        "vit_large_patch16_224", pretrained=False, num_classes=0, init_values=1e-5, dynamic_img_size=True
    )


@pretrained(
    dim=1536,
    input_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bilinear",
    feature="cls",
    magnification="20x",
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    hub="MahmoodLab/UNI2-h",
    revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43",  # pinned
    file="pytorch_model.bin",
    parameters=681_394_176,
)
def uni2_h() -> nn.Module:
    """UNI 2, ViT-H/14 with 8 registers by DINOv2, H&E and IHC."""
    return timm.create_model(
        "vit_giant_patch14_224",
        pretrained=False,
        num_classes=0,
        img_size=224,
        patch_size=14,
        depth=24,
        num_heads=24,
        init_values=1e-5,
        embed_dim=1536,
        mlp_ratio=2.66667 * 2,
        no_embed_class=True,
        mlp_layer=SwiGLUPacked,
        act_layer=nn.SiLU,
        reg_tokens=8,
        dynamic_img_size=True,
    )


@pretrained(
    convert=from_transformers,
    dim=768,
    input_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bilinear",  # the default of ViTImageProcessor; the card's configuration names none
    feature="cls",
    magnification="20x",
    licence="Owkin non-commercial",
    hub="owkin/phikon",
    revision="057cc0295895c2df3dd7681a89680da6015cbefe",  # pinned
    file="model.safetensors",
    parameters=85_798_656,
)
def phikon() -> nn.Module:
    """Phikon, ViT-B/16 by iBOT on TCGA."""
    # LayerNorm's epsilon is 1e-6, timm's own, since a commit of the repository that says so (1a3b784).
    return timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)


@pretrained(
    convert=from_transformers,
    dim=1024,
    input_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",  # the default of BitImageProcessor, which DINOv2's models in transformers come with
    feature="cls",
    magnification="20x",
    licence="Owkin non-commercial",
    hub="owkin/phikon-v2",
    revision="419e8285b80eac3b60beca0d9b91942d48ad7b8e",  # its page on the hub
    file="model.safetensors",
    parameters=303_350_784,
)
def phikon_v2() -> nn.Module:
    """Phikon-v2, ViT-L/16 by DINOv2 on public cohorts, TCGA among them."""
    return timm.create_model("vit_large_patch16_224", pretrained=False, num_classes=0, init_values=1.0)


@pretrained(
    dim=2560,
    input_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    feature="cls+mean",
    magnification="5x-40x",  # arXiv 2408.00738
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    hub="paige-ai/Virchow2",
    revision="3158645804b69e3f3bc4439d4116edddf0840a72",  # pinned
    file="model.safetensors",
    parameters=631_239_424,
)
def virchow2() -> nn.Module:
    """Virchow2, ViT-H/14 with 4 registers by DINOv2, H&E and IHC at four magnifications."""
    return timm.create_model(
        "vit_huge_patch14_224",
        pretrained=False,
        num_classes=0,
        init_values=1e-5,
        reg_tokens=4,
        mlp_ratio=5.3375,
        global_pool="",
        mlp_layer=SwiGLUPacked,
        act_layer=nn.SiLU,
        dynamic_img_size=True,
    )


@pretrained(
    dim=1536,
    input_size=224,
    mean=(0.707223, 0.578729, 0.703617),
    std=(0.211883, 0.230117, 0.177517),
    interpolation="bicubic",  # the card takes tiles of 224 px and names none; this is timm's default for the network
    feature="cls",
    magnification="20x",
    licence="Apache-2.0",
    gated=True,  # not at its release; later copies of the hub say so
    hub="bioptimus/H-optimus-0",
    revision="b145cc1e6c6b30d3251aa8b1f844e6974188a743",  # pinned
    file="pytorch_model.bin",
    parameters=1_134_774_272,
)
def h_optimus_0() -> nn.Module:
    """H-optimus-0, ViT-g/14 with 4 registers by DINOv2 on 500,000 slides."""
    return timm.create_model(
        "vit_giant_patch14_reg4_dinov2", pretrained=False, num_classes=0, img_size=224, init_values=1e-5
    )


@pretrained(
    convert=from_dinov2,
    dim=1024,
    input_size=224,  # as its authors evaluate it on ImageNet; it was last trained at 518 px
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    feature="cls",
    licence="Apache-2.0",
    hub="timm/vit_large_patch14_reg4_dinov2.lvd142m",
    revision="7626c8e2d0172194c8ed40aebf683adbb46a5f93",  # its page on the hub
    file="model.safetensors",
    parameters=304_370_688,
)
def dinov2_vitl14_reg() -> nn.Module:
    """DINOv2, ViT-L/14 with 4 registers, natural images."""
    return timm.create_model("vit_large_patch14_reg4_dinov2", pretrained=False, num_classes=0, dynamic_img_size=True)


@pretrained(
    convert=without_classifier,
    dim=2048,
    input_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bilinear",
    feature="mean",
    licence="BSD-3-Clause",
    hub="timm/resnet50.tv_in1k",
    revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",  # its page on the hub
    file="model.safetensors",
    parameters=23_508_032,
)
def resnet50() -> nn.Module:
    """ResNet-50, ImageNet (torchvision's first weights), the average of its last layer."""
    return timm.create_model("resnet50", pretrained=False, num_classes=0)


class ConvStem(nn.Module):
    """The convolutional patch embedding of CTransPath.

    Three convolutions in place of one: 3 x 3 by 2 to an eighth of the width, 3 x 3 by 2 to a quarter, 1 x 1 to all
    of it (Wang et al., Medical Image Analysis 2022, section 3.2, and ctran.py of github.com/Xiyue-Wang/TransPath).

    Args:
        img_size: side of the input in pixels, or height and width.
        patch_size: 4.
        in_chans: channels of the input.
        embed_dim: width of a token.
        norm_layer: makes the norm behind it.
        options: what timm's Swin tells its patch embedding besides; it changes nothing here.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        norm_layer: type[nn.Module],
        **options: object,
    ) -> None:
        super().__init__()
        self.img_size = to_2tuple(img_size)
        self.patch_size = to_2tuple(patch_size)
        self.grid_size = tuple(side // patch_size for side in self.img_size)
        eighth, quarter = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, eighth, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(eighth),
            nn.ReLU(),
            nn.Conv2d(eighth, quarter, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(quarter),
            nn.ReLU(),
            nn.Conv2d(quarter, embed_dim, kernel_size=1),
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens ``(B, H / 4, W / 4, embed_dim)`` of images ``(B, 3, H, W)``."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


@pretrained(
    convert=from_old_swin,
    dim=768,
    input_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bilinear",  # get_features_CTransPath.py of the authors: transforms.Resize(224)
    feature="mean",
    magnification="10x",  # 1 um/px by the authors' advice, says the README of owkin/HistoSSLscaling
    licence="GPL-3.0",
    hub="jamesdolezal/CTransPath",  # a copy; the authors give a Google Drive on github.com/Xiyue-Wang/TransPath
    revision="d0f68075a0389e46b5481931842d762928e5482f",  # its page on the hub
    file="ctranspath.pth",
    parameters=27_520_038,
)
def ctranspath() -> nn.Module:
    """CTransPath, Swin-T on a convolutional stem, by contrastive learning on TCGA and PAIP."""
    return timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0, embed_layer=ConvStem)


@register(
    dim=512,
    input_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bilinear",
    feature="mean",
    licence="MIT",
    parameters=11_176_512,
)
def resnet_random(options: EncoderConfig, magnification: str | Magnification | None, device: str) -> PatchEncoder:
    """ResNet-18 with random weights of a fixed seed: a floor that knows nothing, offline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Without zero_init_last=False every residual branch starts, and so would stay, at zero.
        network = timm.create_model("resnet18", pretrained=False, num_classes=0, zero_init_last=False)
    note = "random weights: a floor for comparisons, no trained encoder"
    return TimmEncoder(encoder_info("resnet-random"), network, magnification, device, note=note)
