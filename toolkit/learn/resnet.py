"""Residual networks for small images."""

from torch import nn
from torchvision.models import resnet18


def cifar_resnet18(classes: int) -> nn.Module:
    """ResNet-18 for 32×32 images: a 3×3 stem without pooling."""
    model = resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model
